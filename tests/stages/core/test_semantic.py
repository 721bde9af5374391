"""Semantic duplicates: recall against brute force, determinism, embeddings of a real encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.stages.curate import semantic
from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.step import InputError


def bag_of_words(texts: list[str], width: int = 256) -> Any:
    import hashlib

    vectors = np.zeros((len(texts), width), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            digest = hashlib.sha256(word.encode()).digest()
            vectors[row, int.from_bytes(digest[:4], "big") % width] += 1 if digest[4] & 1 else -1
    return semantic.normalised(vectors)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = [d["text"] for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")]
    return found[:1800]


def pairs_of(vectors: Any, clusters: int, threshold: float) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for one, two, cosine in semantic.pairs(
        vectors, clusters=clusters, threshold=threshold, seed=1, memory_mb=64
    ):
        assert (one < two).all()
        assert (cosine >= threshold).all()
        found.update(zip(one.tolist(), two.tolist(), strict=True))
    return found


def test_recall_against_brute_force(texts: list[str]) -> None:
    vectors = bag_of_words(texts)
    cosines = vectors @ vectors.T
    one, two = np.nonzero(np.triu(cosines, 1) >= 0.9)
    truth = set(zip(one.tolist(), two.tolist(), strict=True))
    assert len(truth) > 30
    found = pairs_of(vectors, 20, 0.9)
    assert len(found & truth) / len(truth) > 0.99
    assert found <= {(a, b) for a, b in zip(*np.nonzero(cosines >= 0.8999), strict=True)}
    assert pairs_of(vectors, 1, 0.9) == truth


def test_threads_do_not_change_the_outcome(texts: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", bag_of_words(texts))
    code = (
        "import sys, numpy as np\nfrom pipeline.stages.curate import semantic\n"
        "v = np.load(sys.argv[1])\n"
        "print([(int(a), int(b), float(c)) for x, y, z in semantic.pairs(v, clusters=20, threshold=0.8, seed=1, "
        "memory_mb=64) for a, b, c in zip(x, y, z)])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "v.npy")],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True, check=True, text=True,
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1
    assert len(next(iter(seen))) > 100


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.train_from_iterator(
        texts[:300], trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[PAD]", "[UNK]"])
    )
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_a_local_encoder_embeds(encoder: Path) -> None:
    batches = [["one text", "another longer text with more words"], ["one text"]]
    blocks = list(semantic.embed(iter(batches), encoder, max_tokens=64))
    assert [block.shape for block in blocks] == [(2, 32), (1, 32)]
    assert np.allclose(np.linalg.norm(np.concatenate(blocks), axis=1), 1, atol=1e-5)
    assert np.allclose(blocks[0][0], blocks[1][0], atol=1e-4)  # padding counts for nothing


def test_a_folder_that_is_no_encoder_is_named(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(InputError, match="is no local encoder"):
        list(semantic.embed(iter([["x"]]), tmp_path, max_tokens=8))
    import shutil

    pickled = tmp_path / "pickled"
    shutil.copytree(encoder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="is no local encoder"):
        list(semantic.embed(iter([["x"]]), pickled, max_tokens=8))
    with_part = tmp_path / "with-part"
    shutil.copytree(encoder, with_part)
    (with_part / "modules.json").write_text("[]")
    (with_part / "2_Dense").mkdir()
    (with_part / "2_Dense" / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match=r"2_Dense/pytorch_model\.bin is a pickle and is not read"):
        list(semantic.embed(iter([["x"]]), with_part, max_tokens=8))


def test_embeddings_that_come_with_the_data(tmp_path: Path) -> None:
    rows = [{"id": str(n), "embedding": json.loads(v)} for n, v in enumerate(["[3, 4]", "[0, 0]"])]
    assert semantic.from_records(rows).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    with pytest.raises(InputError, match="document b has 3 numbers, others have 2"):
        semantic.from_records([{"id": "a", "embedding": [1, 2]}, {"id": "b", "embedding": [1, 2, 3]}])
