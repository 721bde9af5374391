"""Every filter, modifier and classifier of Curator, by name, through our stages and through Curator's."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from nemo_curator.stages.text.filters import ScoreFilter
from nemo_curator.stages.text.modifiers import Modify
from nemo_curator.tasks import DocumentBatch

from pipeline import schema
from pipeline.curation import catalogue
from pipeline.recipe import load
from pipeline.stages.curate import passes
from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.curate.text_stages import FilterText, Ledger, ledger_of
from pipeline.stages.step import InputError
from pipeline.toolchains import ROOT

FILTERS = sorted(name for name, entry in catalogue().items() if entry["kind"] == "filter")
MODIFIERS = sorted(name for name, entry in catalogue().items() if entry["kind"] == "modifier")
CLASSIFIERS = sorted(name for name, entry in catalogue().items() if entry["kind"] == "classifier")
# Thresholds in the middle of this corpus's scores, where the default keeps or drops everything.
MIDDLE: dict[str, dict[str, Any]] = {
    "AlphaFilter": {"min_alpha_ratio": 0.7},
    "BoilerPlateStringFilter": {},
    "LongWordFilter": {"max_word_length": 20},
    "NumbersFilter": {"max_number_to_text_ratio": 0.02},
    "WhiteSpaceFilter": {"max_white_space_ratio": 0.2},
    "HTMLBoilerplateFilter": {"min_lang_content_num_chars": 300},
    "XMLHeaderFilter": {},
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = [d["text"] for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")]
    sources = [Path(f).read_text() for _, f in package_sources("networkx")[:60]]
    odd = [
        '<?xml version="1.0"?><a>b</a>',
        "See https://porn.example.org",
        "lorem ipsum " * 9,
        "# # # #",
        "naïve 東京",
    ]
    return found[:600] + sources + odd


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> dict[str, Any]:
    """The models and files that some filters need, made here."""
    import fasttext
    import sentencepiece
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("files")
    labelled = folder / "labelled.txt"
    with open(labelled, "w") as handle:
        for number, text in enumerate(texts[:300]):
            label, words = "hq" if len(text) > 500 else "lq", " ".join(text.split()[:40])
            handle.write(f"__label__{label} {words}\n")
            handle.write(f"__label__{'en' if number % 2 else 'de'} {words}\n")
    model = fasttext.train_supervised(str(labelled), epoch=5, minn=2, maxn=4, dim=16, thread=1, verbose=0)
    model.save_model(str(folder / "model.bin"))
    (folder / "plain.txt").write_text("\n".join(" ".join(t.split()) for t in texts[:300]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "plain.txt"), model_prefix=str(folder / "sp"), vocab_size=500, minloglevel=2
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(texts[:100], trainers.BpeTrainer(vocab_size=600, show_progress=False))
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    histogram = folder / "histograms" / "checkpoint" / "edunov" / "cc60_multilingual" / "clean_hists"
    histogram.mkdir(parents=True)
    (histogram / "en").write_text("\n".join("etaoinshrdlu cmfwyp.,\n]".replace("\n", "")) + "\n")
    with open(folder / "meta.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(
            ["language", "extension", "Include", "Long_line_threshold", "Alphanum_threshold", "Alpha filter"]
        )
        writer.writerow(["python", "py", "1", "100", "0.25", "0.25"])
    return {
        "FastTextLangId": {"model_path": str(folder / "model.bin"), "min_langid_score": 0.2},
        "FastTextQualityFilter": {"model_path": str(folder / "model.bin"), "label": "__label__hq"},
        "TokenizerFertilityFilter": {
            "path_to_tokenizer": str(folder / "sp.model"),
            "min_char_to_token_ratio": 3.0,
        },
        "TokenCountFilter": {
            "hf_model_name": str(folder / "tokenizer"),
            "min_tokens": 100,
            "max_tokens": 400,
        },
        "HistogramFilter": {"cache_dir": str(folder), "threshold": 0.8},
        "PerExtensionFilter": {
            "lang": "python",
            "extension": "py",
            "metadata_file": str(folder / "meta.csv"),
        },
        "SubstringFilter": {"substring": "Parameters", "position": "any"},
        "GeneralCommentToCodeFilter": {"language": "text/x-python", "max_comment_to_code_ratio": 0.05},
    }


def batch(texts: list[str]) -> DocumentBatch:
    frame = pd.DataFrame({"id": [str(n) for n in range(len(texts))], "text": texts}, dtype=object)
    return DocumentBatch(dataset_name="d", data=frame)


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_keeps_what_curators_stage_keeps(name: str, texts: list[str], files: dict[str, Any]) -> None:
    given = files.get(name, MIDDLE.get(name, {}))
    curate = schema.Curate(stages=[name], filters={name: given})
    (stage,) = passes.build([name], curate)
    assert isinstance(stage, FilterText)
    stage.setup()
    ours = batch(texts)
    kept = stage.process(ours).to_pandas()["id"].tolist()
    ledger: Ledger = ledger_of(ours)
    assert len(kept) + ledger.dropped.total() == len(texts)
    if name == "RepeatingTopNGramsFilter":
        return  # ties go by the text here, by Python's sets there: see test_quick.py
    if name == "FastTextQualityFilter":
        # Curator draws from a global generator; ours draws the same for the same text, in any order.
        stage.setup()
        again = stage.process(batch(texts[::-1])).to_pandas()["text"].tolist()
        assert sorted(again) == sorted(texts[int(n)] for n in kept)
        assert 0 < len(kept) < len(texts)
        return
    theirs = ScoreFilter(passes.make(name, curate), text_field="text")
    theirs.setup()
    assert kept == theirs.process(batch(texts)).to_pandas()["id"].tolist()
    assert len(kept) > 0


@pytest.mark.parametrize("name", MODIFIERS)
def test_a_modifier_changes_what_curators_stage_changes(name: str, texts: list[str]) -> None:
    given = {
        "LineRemover": {"patterns": ["----------", "Parameters"]},
        "Slicer": {"left": 3, "right": 200},
    }.get(name, {})
    curate = schema.Curate(stages=[name], modifiers={name: given})
    (stage,) = passes.build([name], curate)
    stage.setup()
    ours = batch(texts)
    changed = stage.process(ours).to_pandas()
    theirs = Modify(passes.make(name, curate), input_fields="text").process(batch(texts)).to_pandas()
    theirs = theirs[theirs["text"].str.strip() != ""]
    assert changed["text"].tolist() == theirs["text"].tolist()
    assert ledger_of(ours).dropped.total() == len(texts) - len(changed)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_refused_without_a_gpu(name: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.fail("not executed here: this machine has a GPU, run the classifier on it")
    with pytest.raises(
        InputError, match=f"{name} is a model-based classifier of NeMo Curator and needs an NVIDIA GPU"
    ):
        passes.require(schema.Curate(stages=[name]))


def test_what_curator_refuses_is_told_with_the_setting(tmp_path: Path) -> None:
    for name, given, words in (
        ("HistogramFilter", {"cache_dir": str(tmp_path)}, "holds no folder 'histograms'"),
        ("TokenCountFilter", {"hf_model_name": "gpt2"}, "is no local folder with a tokenizer.json"),
        ("SubstringFilter", {"substring": "x", "position": "middle"}, "Invalid position"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            passes.build([name], schema.Curate(stages=[name], filters={name: given}))
        assert f"curate.filters.{name}" in str(refused.value)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "configs" / "curate").glob("*.yaml")))
def test_every_preset_builds(preset: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"stages: [curate]\nuse: {{curate: {preset}}}\ncurate: {{sources: [{{kind: text, path: x}}]}}\n"
    )
    curate = load(str(recipe), ROOT).settings.curate
    for each in passes.passes(curate):
        stages = passes.build(each.names, curate)
        for stage in stages:
            stage.setup()
        assert bool(stages) == bool(each.names)
