"""The tokens between which documents stand in pre-training."""

from __future__ import annotations

from typing import Any

DOCUMENT_END = "document_end"  # in tokenizer_config.json, where curation writes it


def document_ends(tokenizer: Any) -> tuple[int, int]:
    """The tokens that a document begins and ends with; ``tokenizer`` is a fast tokenizer of transformers.

    It ends in what the base's documents ended in: its own end token, which need not be the one that ends an answer.  It begins with
    the tokenizer's token for that, or, where it has none, as if another document stood before it.
    """
    name = tokenizer.init_kwargs.get(DOCUMENT_END)
    end = tokenizer.eos_token_id if name is None else tokenizer.convert_tokens_to_ids(name)
    begin = tokenizer.bos_token_id
    return (end if begin is None else begin), end


def answer_ends(tokenizer: Any) -> set[int]:
    """The tokens that end what a model says: of a turn, and of a document."""
    return {tokenizer.eos_token_id, document_ends(tokenizer)[1]} - {None}
