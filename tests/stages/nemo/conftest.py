"""Small real artifacts for the engines on nemo-toolkit: a tokenizer, curated records, a random Llama."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# NeMo-Run and NeMo read these when they are first imported.
HOME = tempfile.mkdtemp(prefix="nemo-tests-")
os.environ |= {"NEMORUN_HOME": f"{HOME}/run", "NEMO_HOME": f"{HOME}/nemo", "HF_HUB_OFFLINE": "1"}
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # Megatron compiles its activations: fifteen seconds for one test

from pipeline.engines.automodel import publish  # noqa: E402
from pipeline.schema import Model  # noqa: E402
from pipeline.stages.step import write_json, write_jsonl  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
SHAPE = Model(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, context=128)


def _module(path: str) -> ModuleType:
    """A module of a package that needs libraries of another toolchain, by its file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stages = _module("tests/stages/conftest.py")  # this file stands for it in imports
write_job, start, events, load_step = stages.write_job, stages.start, stages.events, stages.load_step


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What curation publishes: tokenizer, documents, chats and pairs, of the handbook in tests/data."""
    folder = tmp_path_factory.mktemp("curate")
    faq = [json.loads(line) for line in (ROOT / "tests/data/handbook/faq.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in faq] + [
        path.read_text() for path in sorted((ROOT / "tests/data/handbook").glob("*.md"))
    ]
    tokens = _module("pipeline/stages/curate/tokens.py")
    tokens.train_tokenizer(texts, 400, SHAPE.context, folder / "tokenizer")
    questions = [row["text"].split("\n\n", 1) for row in faq]
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in questions
    ]
    chats.append(
        {"messages": [{"role": "user", "content": "x y " * 200}, chats[0]["messages"][1]]}
    )  # too long
    pairs: list[dict[str, Any]] = [
        {"prompt": q, "chosen": a, "rejected": f"I do not know: {q}", "kind": "content"} for q, a in questions
    ]
    pairs[0] |= {"score_chosen": 4.0, "score_rejected": 1}
    for split in ("train", "validation"):
        (folder / "pretrain" / split).mkdir(parents=True)
        write_jsonl(folder / "pretrain" / split / "00.jsonl", [{"text": text} for text in texts])
        write_jsonl(folder / "sft" / f"{split}.jsonl", chats)
        write_jsonl(folder / "preference" / f"{split}.jsonl", pairs)
    return folder


@pytest.fixture(scope="session")
def tokenizer(data: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(data / "tokenizer")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """What pre-training publishes: a random Llama of the test's shape."""
    folder = tmp_path_factory.mktemp("pretrain")
    publish.new_model(SHAPE, tokenizer, 7, folder / "model")
    write_json(folder / "model.json", {"kind": "full", "path": "model"})
    return folder


@pytest.fixture(scope="session")
def model(pretrained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and the tokenizer in one folder."""
    folder = tmp_path_factory.mktemp("together") / "model"
    folder.mkdir()
    for file in (*(pretrained / "model").iterdir(), *(data / "tokenizer").iterdir()):
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    return folder
