"""A tokenizer in which marks, which no text holds, stand in the place of the control tokens' spelling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

# Code points that are no characters, in pairs: of marks, and masks.  A text that holds one is given another pair.
SPARE = [(chr(code), chr(code + 1)) for code in range(0xFDD0, 0xFDF0, 2)]
BORDER = "b"  # the mark between two runs of tokens


def mark(sign: str, what: str) -> str:
    """The mark of a control token's id, or of a border."""
    return f"{sign}{what}{sign}"


def with_marks(
    definition: dict[str, Any], control: dict[str, int], whole: Any, sign: str
) -> tuple[Any, dict[int, int], int]:
    """The tokenizer of ``definition`` that knows marks of ``sign`` instead of ``control``'s spellings.

    Besides: what its ids are in ``whole``, the tokenizer as it is, where they differ; and the id of a border.
    """
    from tokenizers import Tokenizer

    names = {text: mark(sign, str(number)) for text, number in control.items()}
    border = mark(sign, BORDER)
    model = dict(definition["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(word, word): number for word, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(word, word), *rest] for word, *rest in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
    for faithful in (True, False):
        added = []
        for token in definition.get("added_tokens") or []:
            text = token["content"]
            own = {"content": names[text]} if text in names else {}
            # A mark that the normaliser would change (it changes the spelling of "normalized" tokens, too) is kept from it.
            normalized = token["normalized"] and (faithful or text not in names)
            added.append({**token, **own, "normalized": normalized})
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": 0, "content": border, **flags, "special": True})
        made = Tokenizer.from_str(
            json.dumps(
                {**definition, "model": model, "added_tokens": added, "post_processor": None}, allow_nan=False
            )
        )
        ids = {made.token_to_id(names.get(text, text)): number for text, number in _added(definition, whole)}
        marks = {text: made.encode(name, add_special_tokens=False).ids for text, name in names.items()}
        if all(found == [made.token_to_id(names[text])] for text, found in marks.items()):
            break
    return made, {ours: theirs for ours, theirs in ids.items() if ours != theirs}, made.token_to_id(border)


def _added(definition: dict[str, Any], whole: Any) -> Iterator[tuple[str, int]]:
    for token in definition.get("added_tokens") or []:
        yield token["content"], int(whole.token_to_id(token["content"]))


def mapped(ids: list[int], other: dict[int, int]) -> list[int]:
    """The ids, with ``other`` in place of those that it names."""
    return [other.get(token, token) for token in ids] if other else list(ids)


def aligned(text: str, seen: str, mask: str) -> bool:
    """Whether ``seen`` is ``text`` but for masked characters."""
    if len(text) != len(seen):
        return False
    done = 0
    for part in seen.split(mask):
        if not text.startswith(part, done):
            return False
        done += len(part) + 1
    return True


def without_clean_up(decoder: dict[str, Any] | None) -> None:
    """Have a tokenizer's decoder give texts as tokens spell them, in place."""
    if decoder is not None:
        if "cleanup" in decoder:
            decoder["cleanup"] = False
        for each in decoder.get("decoders") or []:
            without_clean_up(each)
