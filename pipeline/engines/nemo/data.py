"""Curated data in the forms that NeMo's data modules read.

Fine-tuning: ``training.jsonl`` and ``validation.jsonl`` with ``input`` (the conversation rendered by the
chat template, up to where the answer begins) and ``output``; NeMo's ``GPTSFTDataset`` with the template
:data:`TEMPLATE` tokenises the two apart, adds the end token and puts the loss on the output, which are
the tokens and labels that the automodel engine trains on (a test holds the two together).  NeMo strips
spaces at the ends of both texts.

Pre-training: Megatron's indexed data set, one document an item, each ended by the end-of-text token; Megatron
cuts and joins documents to full sequences, so one sequence can hold several.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.stages.data_sets import documents
from pipeline.stages.step import InputError, read_jsonl, write_jsonl

TEMPLATE = "{input}{output}"
FILES = {"train": "training.jsonl", "validation": "validation.jsonl"}


def write_chats(data: Path, tokenizer: Any, context: int, target: Path) -> dict[str, dict[str, int]]:
    """Write curation's chats for ``FineTuningDataModule``; returns counts by split.

    A chat longer than the context is left out and counted.  Raises :class:`InputError` when a
    split has nothing left.
    """
    target.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, name in FILES.items():
        records = read_jsonl(data / "sft" / f"{split}.jsonl")
        kept = [row for row in (_chat(tokenizer, record, context) for record in records) if row]
        if not kept:
            raise InputError(f"train: no {split} example fits model.context = {context}")
        write_jsonl(target / name, kept)
        counts[split] = {"examples": len(kept), "too_long": len(records) - len(kept)}
    return counts


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """A conversation as text, up to where the assistant's answer begins."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def token_count(tokenizer: Any, text: str) -> int:
    """Tokens of a text, none added."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _chat(tokenizer: Any, record: dict[str, Any], context: int) -> dict[str, str] | None:
    asked = render(tokenizer, record["messages"][:-1])
    answer = record["messages"][-1]["content"]
    length = token_count(tokenizer, asked) + token_count(tokenizer, answer) + 1
    return {"input": asked, "output": answer} if length <= context + 1 else None


def write_documents(data: Path, tokenizer: Any, target: Path) -> dict[str, int]:
    """Write curation's documents as Megatron indexed data sets ``train`` and ``validation``.

    Returns tokens by split.
    """
    target.mkdir(parents=True, exist_ok=True)
    return {
        split: _index(tokenizer, (record["text"] for record in documents(data, split)), target / split)
        for split in FILES
    }


def _index(tokenizer: Any, texts: Iterable[str], prefix: Path) -> int:
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    end = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    builder = IndexedDatasetBuilder(str(prefix) + ".bin", DType.optimal_dtype(len(tokenizer)))
    tokens = 0
    for text in texts:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
        builder.add_document(torch.tensor(ids), [len(ids)])
        tokens += len(ids)
    builder.finalize(str(prefix) + ".idx")
    if not tokens:
        raise InputError(f"pretrain: curation's split {prefix.name} holds no document")
    return tokens
