"""Curated data in the forms that NeMo's data modules read.

Fine-tuning: ``training.jsonl`` and ``validation.jsonl`` with ``input`` (the conversation rendered by the
chat template, up to where the answer begins) and ``output``; NeMo's ``GPTSFTDataset`` with the template
:data:`TEMPLATE` tokenises the two apart, adds the end token and puts the loss on the output, which are
the tokens and labels that the automodel engine trains on (a test holds the two together).  NeMo strips
spaces at the ends of both texts.

Pre-training: Megatron's indexed data set, one document an item, each ended by the token that ends documents; Megatron
cuts and joins documents to full sequences, so one sequence can hold several.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.conversations.documents import document_ends
from pipeline.conversations.template import ConversationError
from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.stages.data_sets import documents
from pipeline.stages.step import InputError, read_jsonl, write_jsonl

TEMPLATE = "{input}{output}"
FILES = {"train": "training.jsonl", "validation": "validation.jsonl"}


def write_chats(data: Path, tokenizer: Any, context: int, target: Path) -> dict[str, dict[str, int]]:
    """Write curation's chats for ``FineTuningDataModule``; returns counts by split.

    A chat longer than the context is left out and counted, and so is one of whose text NeMo would make other tokens
    than the model is asked with: where a message spells a control token.  Raises :class:`InputError` when a
    split has nothing left.
    """
    target.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, name in FILES.items():
        kept, counted = [], {"examples": 0, "too_long": 0, "read_otherwise": 0}
        for number, record in enumerate(read_jsonl(data / "sft" / f"{split}.jsonl"), start=1):
            try:
                row, why = _chat(tokenizer, record["messages"], context)
            except ConversationError as error:
                raise InputError(f"train: {split} example {number}: {error}") from None
            counted[why] += 1
            kept += [row] if why == "examples" else []
        if not kept:
            raise InputError(
                f"train: no {split} example is left: {counted['too_long']} do not fit model.context = {context}, of "
                f"{counted['read_otherwise']} NeMo would make other tokens than the model is asked with "
                "(train.engine=automodel would not)"
            )
        write_jsonl(target / name, kept)
        counts[split] = counted
    return counts


def _chat(tokenizer: Any, messages: list[dict[str, str]], context: int) -> tuple[dict[str, str], str]:
    """A chat as NeMo reads it, and under what it is counted."""
    ours = chat_tokenizer(tokenizer)
    prompt, answer = ours.answered(messages)
    asked, answered = ours.answered_text(messages)
    read = [*ours.spelled(asked.strip(" ")), *ours.spelled(answered.strip(" ")), tokenizer.eos_token_id]
    if read != prompt + answer:
        return {}, "read_otherwise"
    fits = len(read) <= context + 1
    return {"input": asked, "output": answered}, "examples" if fits else "too_long"


def left_out(counts: dict[str, dict[str, int]]) -> str:
    """What was left out of the data for NeMo, in a sentence; empty where nothing was."""
    reasons = {
        "too_long": "longer than model.context",
        "read_otherwise": "of whose text NeMo would make other tokens than the model is asked with",
    }
    said = [
        f"{counted[name]:,} of {split}, {reason}"
        for split, counted in counts.items()
        for name, reason in reasons.items()
        if counted.get(name)
    ]
    return f"left out of the data for NeMo: {'; '.join(said)}" if said else ""


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

    _, end = document_ends(tokenizer)
    builder = IndexedDatasetBuilder(str(prefix) + ".bin", DType.optimal_dtype(len(tokenizer)))
    tokens = 0
    for text in texts:
        ids = [*chat_tokenizer(tokenizer).text(text), end]
        builder.add_document(torch.tensor(ids), [len(ids)])
        tokens += len(ids)
    builder.finalize(str(prefix) + ".idx")
    if not tokens:
        raise InputError(f"pretrain: curation's split {prefix.name} holds no document")
    return tokens
