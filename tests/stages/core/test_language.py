"""Languages told by CLD2 and by a fastText model; kept, dropped and routed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from nemo_curator.tasks import DocumentBatch

from pipeline import schema
from pipeline.stages.curate.language import UNKNOWN, IdentifyLanguage, check_codes, cld2
from pipeline.stages.curate.text_stages import ledger_of
from pipeline.stages.step import InputError

TEXTS = {
    "en": "The city council met on Tuesday to talk about the new bridge over the river, and most were in favour.",
    "de": "Der Stadtrat traf sich am Dienstag, um über die neue Brücke über den Fluss zu sprechen, und die meisten waren dafür.",
    "fr": "Le conseil municipal s'est réuni mardi pour parler du nouveau pont sur la rivière, et la plupart étaient pour.",
    "ru": "Городской совет собрался во вторник, чтобы обсудить новый мост через реку, и большинство было за.",
    "zh": "市议会周二开会讨论横跨河流的新桥，大多数人表示赞成。市长说建造需要三年时间。",
}


def run(settings: schema.Language, texts: list[str]) -> tuple[list[str], dict[tuple[str, str], int]]:
    stage = IdentifyLanguage(settings)
    stage.setup()
    frame = pd.DataFrame({"text": texts, "id": [str(n) for n in range(len(texts))]}, dtype=object)
    batch = DocumentBatch(dataset_name="d", data=frame)
    after = stage.process(batch)
    return after.to_pandas()["language"].tolist(), dict(ledger_of(batch).dropped)


def test_cld2_tells_languages() -> None:
    kept, dropped = run(schema.Language(), list(TEXTS.values()))
    assert kept == list(TEXTS)
    assert not dropped


def test_unknown_is_a_language_of_its_own() -> None:
    assert run(schema.Language(), ["1 2 3", "\x00\x07\ufdd0"])[0] == [UNKNOWN, UNKNOWN]
    kept, dropped = run(schema.Language(keep_unknown=False), ["1 2 3", TEXTS["en"]])
    assert (kept, dropped) == (["en"], {("language", "language unknown"): 1})


def test_keep_drop_and_route() -> None:
    kept, dropped = run(schema.Language(keep=["en"], route=["de"]), list(TEXTS.values()))
    assert kept == ["en", "de"]
    assert dropped["language", "language fr not kept"] == 1
    kept, _ = run(schema.Language(drop=["ru", "zh"]), list(TEXTS.values()))
    assert kept == ["en", "de", "fr"]


def test_a_fasttext_model(tmp_path: Path) -> None:
    import fasttext

    training = tmp_path / "train.txt"
    with open(training, "w") as handle:
        for code in ("en", "de", "fr"):
            words = TEXTS[code].split()
            for start in range(200):
                part = " ".join(words[(start + i) % len(words)] for i in range(6))
                handle.write(f"__label__{code} {part}\n")
    model = fasttext.train_supervised(str(training), epoch=25, minn=2, maxn=4, dim=16, thread=1, verbose=0)
    path = tmp_path / "lid.bin"
    model.save_model(str(path))
    kept, _ = run(schema.Language(model=str(path)), [TEXTS["fr"], TEXTS["en"], TEXTS["de"]])
    assert kept == ["fr", "en", "de"]
    with pytest.raises(InputError, match=r"none\.bin not found"):
        run(schema.Language(model=str(tmp_path / "none.bin")), ["x"])


def test_codes_are_those_of_iso_639() -> None:
    hebrew = "מועצת העיר התכנסה ביום שלישי כדי לדון בגשר החדש מעל הנהר, ורוב הנוכחים תמכו בבנייתו. "
    assert cld2(hebrew * 3)[0] == "he"
    check_codes(schema.Language(keep=["he", "en"], route=["zh"]))
    for wrong in ("english", "xx", "EN", "iw"):
        with pytest.raises(InputError, match="no language"):
            check_codes(schema.Language(keep=[wrong]))
