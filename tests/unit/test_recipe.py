"""Recipes: layers, overrides, and errors that name the file, the line and the right key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import recipe as recipes
from pipeline.errors import UserError

SOURCES = "curate:\n  sources:\n    - {kind: python-docs, packages: [stdlib]}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "configs" / "sites").mkdir(parents=True)
    (tmp_path / "configs" / "train").mkdir()
    (tmp_path / "configs" / "sites" / "local.yaml").write_text("threads: 2\n")
    (tmp_path / "configs" / "train" / "quick.yaml").write_text("# a comment\nlr: 5e-4\nmax_steps: 100\n")
    write(tmp_path, SOURCES)
    return tmp_path


def write(root: Path, text: str, name: str = "small") -> None:
    (root / "recipes" / f"{name}.yaml").write_text(text)


def refuse(root: Path, overrides: str = "", name: str = "small") -> str:
    with pytest.raises(UserError) as caught:
        recipes.load(name, root, overrides)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_layers_override_each_other_in_order(root: Path) -> None:
    write(root, "use: {train: quick}\ntrain:\n  max_steps: 200\n" + SOURCES)
    loaded = recipes.load("small", root, "train.max_steps=300")
    assert loaded.settings.train.lr == 5e-4  # YAML 1.1 alone would read this as text
    assert loaded.settings.train.max_steps == 300
    assert loaded.settings.site.threads == 2
    layers = [(str(origin), value) for origin, value in loaded.history["train.max_steps"]]
    assert layers == [("configs/train/quick.yaml:3", 100), ("recipes/small.yaml:3", 200), ("SET", 300)]
    assert str(loaded.origin("train.beta2")) == "default"


def test_unknown_recipe_suggests_the_nearest(root: Path) -> None:
    assert "did you mean 'small'?" in refuse(root, name="smal")


def test_misspelt_key_names_file_line_and_nearest(root: Path) -> None:
    write(root, SOURCES + "train:\n  max_steps: 10\n  weigth_decay: 0.1\n")
    message = refuse(root)
    assert message.startswith("recipes/small.yaml:6: train.weigth_decay: unknown key")
    assert "did you mean 'weight_decay'?" in message


def test_misspelt_key_in_a_configs_file_names_that_file(root: Path) -> None:
    (root / "configs" / "train" / "quick.yaml").write_text("lr: 1e-3\nbeta: 0.9\n")
    write(root, "use: {train: quick}\n" + SOURCES)
    message = refuse(root)
    assert message.startswith("configs/train/quick.yaml:2: train.beta: unknown key")


def test_a_key_of_another_section_is_pointed_at(root: Path) -> None:
    assert "there is align.label_smoothing" in refuse(root, "train.label_smoothing=0.1")


def test_misspelt_key_inside_a_list_of_sources(root: Path) -> None:
    write(root, "curate:\n  sources:\n    - kind: jsonl\n      path: a.jsonl\n      text_feild: body\n")
    message = refuse(root)
    assert message.startswith("recipes/small.yaml:5: curate.sources.0.text_feild")
    assert "'text_field'" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr=fast", "train.lr: expected a number"),
        ("train.max_steps=1.5", "train.max_steps: expected a whole number"),
        ("train.max_steps=0", "must be at least 1"),
        ("train.lr=-1", "must be more than 0"),
        ("train.lr=.nan", "not a finite number"),
        ("train.peft=lorra", "did you mean 'lora'?"),
        ("train=3", "is a section"),
        ("trian.lr=1", "did you mean 'train'?"),
        ("bogus=1", "unknown key"),
        ("train.lr", "expected KEY=VALUE"),
        ("train.micro_batch_size=7", "does not divide"),
        ("train.engine=nemos", "did you mean 'nemo'?"),
        (
            "train.engine=nemo' 'train.nemo.tensor=3",
            "train.nemo.gpus: 1 x 8 GPUs cannot be cut into groups of 3",
        ),
        (
            "train.engine=nemo' 'train.micro_batch_size=32",
            "train.global_batch_size: 32 is no multiple of train.micro_batch_size = 32 times 8 replicas",
        ),
        (
            "pretrain.engine=nemo' 'pretrain.micro_batch_size=1' 'pretrain.nemo.sequence_parallel=true",
            "pretrain.nemo.sequence_parallel: needs pretrain.nemo.tensor above 1",
        ),
        (
            "align.engine=aligner' 'align.micro_batch_size=1' 'align.label_smoothing=0.1",
            "align.label_smoothing: 0.1 is for the engine automodel",
        ),
        ("model.heads=3", "does not divide model.hidden_size"),
        ("stages=[curate,trian]", "no stage 'trian'"),
        ("curate.sources=[]", "names no source"),
        ("curate.sources=5", "expected a list of sources"),
        ("curate.sources=[{kind: tape}]", "not one of: python-docs, jsonl, json, csv, parquet"),
        ("gate.override_reason=ok", "give a reason"),
        ("deploy.http_port=8001", "ports must differ"),
        ("curate.redact.email=mask", "'mask' is not one of: replace, hash, drop, keep"),
        ("curate.stages=[unicode]", "there is no stage 'unicode'"),
        ("curate.stages=[redact,redact]", "'redact' is listed twice"),
        ("curate.filters.WordCuontFilter.min_words=3", "did you mean 'WordCountFilter'?"),
        (
            "curate.filters.WordCountFilter.min_word=3",
            "there is no parameter 'min_word'; did you mean 'min_words'?",
        ),
        ("curate.filters.WordCountFilter.min_words=many", "expected int or float, found 'many'"),
        ("curate.stages=[LineRemover]", "needs patterns"),
        ("curate.filters.WordCountFilter=3", "expected PARAMETER: VALUE lines"),
        ("curate.tokens=1000", "give the sources weights"),
        ("export.model_name=a/b", "part of an address"),
        ("export.parity_tokens=256", "leaves no room"),
        ("curate.sources=[{kind: python-docs, packages: [stdlib], path: x}]", "has packages, not a path"),
    ],
)
def test_wrong_values_are_refused(root: Path, override: str, words: str) -> None:
    assert words in refuse(root, f"'{override}'")


def test_wrong_type_in_a_file_names_the_line(root: Path) -> None:
    write(root, SOURCES + "train:\n  lr: quick\n")
    assert refuse(root).startswith("recipes/small.yaml:5: train.lr: expected a number")


def test_range_error_in_a_source_names_its_own_line(root: Path) -> None:
    write(root, "curate:\n  sources:\n    - kind: jsonl\n      path: a\n      max_documents: -3\n")
    assert refuse(root).startswith("recipes/small.yaml:5: curate.sources.0.max_documents: -3 is out of range")


def test_broken_yaml_names_the_line(root: Path) -> None:
    write(root, "train:\n  lr: [1\nalign: 2\n")
    assert "recipes/small.yaml:3" in refuse(root) or "recipes/small.yaml:2" in refuse(root)


def test_unknown_section_choice_lists_what_is_there(root: Path) -> None:
    write(root, "use: {train: quik}\n" + SOURCES)
    message = refuse(root)
    assert "configs/train/quik.yaml" in message
    assert "did you mean 'quick'?" in message


def test_interpolation_is_resolved_and_a_wrong_one_is_told(root: Path) -> None:
    write(root, SOURCES + "train: {lr: 2e-3}\nalign:\n  lr: ${train.lr}\n")
    assert recipes.load("small", root).settings.align.lr == 2e-3
    write(root, SOURCES + "align:\n  lr: ${train.nothing}\n")
    assert "align.lr" in refuse(root)


SAMPLED = "stages: [curate, pretrain, train, reward, sample, align]\n" + SOURCES


@pytest.mark.parametrize(
    ("text", "override", "words"),
    [
        (
            SOURCES,
            "align.pairs=sample",
            "align.pairs: sample makes them, which is not among the recipe's stages",
        ),
        (SAMPLED.replace(" reward,", ""), "", "sample.scorer: reward is not among the recipe's stages"),
        (SAMPLED, "sample.max_new_tokens=256", "leaves no room for a prompt in model.context = 256"),
        (
            SAMPLED,
            "reward.parallel.tensor=2",
            "reward.parallel.tensor: a reward model is trained data-parallel only",
        ),
        (SOURCES, "train.attributes=[verbosity]", "evaluate.attributes: must give a value for each"),
        (SOURCES, "evaluate.attributes={verbosity: 1}", "train.attributes, which are none"),
        (
            SOURCES,
            "train.attributes=[verbosity] 'evaluate.attributes={verbosity: 7}'",
            "not a whole number from 0 to 4",
        ),
        (SOURCES, "train.attributes=[a,a] evaluate.attributes.a=1", "train.attributes.1: 'a' is there twice"),
        (SOURCES, "curate.attributes=[humour]", "'humour' cannot be measured"),
    ],
)
def test_rules_of_sampling_and_attributes(root: Path, text: str, override: str, words: str) -> None:
    write(root, text)
    if override.startswith("evaluate.attributes={"):
        override = f"'{override}'"
    assert words in refuse(root, override)


def test_sampling_and_attributes_that_fit_are_taken(root: Path) -> None:
    write(root, SAMPLED)
    settings = recipes.load(
        "small",
        root,
        "align.pairs=sample train.attributes=[verbosity,help] 'evaluate.attributes={verbosity: 1, help: 4}'",
    ).settings
    assert settings.evaluate.attributes == {"verbosity": 1, "help": 4}


IDLE = "curate:\n  sources:\n    - {kind: jsonl, path: a.jsonl}\n"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("  filters: {WordCountFilter: {min_words: 3}}\n", "curate.filters.WordCountFilter.min_words: changes nothing"),
        ("  modifiers: {UnicodeReformatter: {unescape_html: false}}\n", "modifiers.UnicodeReformatter.unescape_html: changes nothing"),
        ("  classifiers: {QualityClassifier: {filter_by: [High]}}\n", "classifiers.QualityClassifier.filter_by: changes nothing"),
        ("  redact: {email: drop}\n", "curate.redact.email: means nothing without the stage 'redact'"),
        ("  redact: {email: replace}\n", "curate.redact.email: means nothing without the stage 'redact'"),
        ("  language: {keep: [en]}\n", "curate.language.keep: means nothing without the stage 'language'"),
        ("  decontaminate: {ngram: 8}\n", "curate.decontaminate.ngram: means nothing without"),
        ("  near_duplicates: {threshold: 0.9}\n", "curate.near_duplicates.threshold: means nothing without"),
        ("  semantic_duplicates: {threshold: 0.9}\n", "curate.semantic_duplicates.threshold: means nothing"),
        ("  max_epochs: 3\n", "curate.max_epochs: changes nothing"),
        ("  pairs: false\n  content_share: 0.5\n", "curate.content_share: changes nothing"),
        ("  pairs: false\n  max_pairs: 5\n", "curate.max_pairs: changes nothing"),
        ("  chat_tokens: 100\n", "curate.chat_tokens: changes nothing"),
        ("  prompts: {threshold: 0.9}\n", "curate.prompts.threshold: changes nothing"),
        ("  scored: {min_margin: 1}\n", "curate.scored.min_margin: changes nothing"),
        ("  synthetic: {temperature: 1}\n", "curate.synthetic.temperature: changes nothing"),
    ],
)  # fmt: skip
def test_settings_of_curation_that_would_change_nothing_are_refused(
    root: Path, section: str, words: str
) -> None:
    write(root, f"{IDLE}  stages: [exact-duplicates]\n{section}")
    said = refuse(root)
    assert words in said
    assert said.startswith("recipes/small.yaml:")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "{kind: text, path: a, text_field: body}",
            "text_field: changes nothing: it is for sources of kind jsonl",
        ),
        ("{kind: jsonl, path: a, extractor: trafilatura}", "extractor: changes nothing"),
        ("{kind: jsonl, path: a, score_field: s}", "score_field: changes nothing"),
        ("{kind: jsonl, path: a, embedding_field: s}", "embedding_field: changes nothing"),
        ("{kind: jsonl, path: a, weight: 2}", "weight: changes nothing"),
    ],
)
def test_settings_of_a_source_that_would_change_nothing_are_refused(
    root: Path, source: str, words: str
) -> None:
    write(root, f"curate:\n  sources:\n    - {source}\n")
    said = refuse(root)
    assert f"curate.sources.0.{words}" in said
    assert said.startswith("recipes/small.yaml:3: ")


def test_a_list_of_stages_replaces_what_a_weaker_layer_set_for_its_own(root: Path) -> None:
    """A preset's filters go with its list of stages; the recipe's own are refused."""
    (root / "configs" / "curate").mkdir(parents=True, exist_ok=True)
    (root / "configs" / "curate" / "web.yaml").write_text(
        "stages: [filters, redact, near-duplicates]\nfilters: {WordCountFilter: {min_words: 3}}\n"
        "redact: {email: hash}\nnear_duplicates: {threshold: 0.9, ngram: 4}\n"
    )
    write(root, f"use: {{curate: web}}\n{IDLE}  stages: [redact]\n")
    curate = recipes.load("small", root).settings.curate
    assert curate.filters == {}
    assert curate.redact.email == "hash"
    assert curate.near_duplicates.threshold == 0.8
    assert curate.near_duplicates.ngram == 4  # the split goes by it as well
    write(
        root,
        f"use: {{curate: web}}\n{IDLE}  stages: [filters, redact]\n  near_duplicates: {{which: longest}}\n",
    )
    assert "curate.near_duplicates.which: means nothing" in refuse(root)
    write(root, f"use: {{curate: web}}\n{IDLE}  stages: [filters]\n  filters: {{WordCountFilter: null}}\n")
    assert "lists 'filters'" in refuse(root)


def test_a_recipe_written_down_whole_is_read_again(root: Path) -> None:
    """As a submission pins it."""
    import dataclasses

    import yaml

    write(root, f"{IDLE}  stages: [exact-duplicates]\n")
    first = recipes.load("small", root).settings
    (root / "recipes" / "whole.yaml").write_text(yaml.safe_dump({"curate": dataclasses.asdict(first.curate)}))
    assert recipes.load("whole", root).settings.curate == first.curate
