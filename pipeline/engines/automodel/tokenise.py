"""Curated records as token sequences, with the loss where it belongs.

Texts and conversations become tokens in :mod:`pipeline.conversations`, as they do when the model is asked: no text gives a
control token, and prompt and answer are tokenised apart, so no token ever spans the boundary between them.  What is
learned are the answer as the chat template renders it and the token that ends its turn.  A template that does not render an answer
as it was written, between the prompt and the end of the turn, is refused (:func:`check_template`).

An example longer than the context is dealt with as ``too_long`` says, and counted:

``drop``        leave it out: a cut answer would teach the model to stop in mid-sentence
``cut-prompt``  cut the beginning of its prompt, never its answer
``error``       stop, naming it
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline import chat_templates
from pipeline.attributes import conditioned
from pipeline.conversations.documents import document_ends
from pipeline.conversations.template import ConversationError
from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.engines.automodel.examples import IGNORED, Examples
from pipeline.stages.step import InputError

Sequence = tuple[list[int], list[int]]  # input tokens, labels


def text_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of each text, none of them a control token, none added."""
    return chat_tokenizer(tokenizer).texts(texts)


def document_examples(tokenizer: Any, texts: list[str], context: int) -> tuple[Examples, dict[str, int]]:
    """Documents as next-token examples, each between the tokens that begin and end a document.

    A document longer than the context is cut into windows; nothing of it is lost.
    """
    begin, end = document_ends(tokenizer)
    sequences = []
    windows = 0
    for ids in text_ids(tokenizer, texts):
        whole = [begin, *ids, end]
        for start in range(0, len(whole) - 1, context):
            window = whole[start : start + context + 1]
            if len(window) > 1:
                sequences.append((window[:-1], window[1:]))
                windows += start > 0
    return Examples.of(sequences), {"documents": len(texts), "further_windows": windows}


def instruction_examples(
    tokenizer: Any,
    records: list[dict[str, Any]],
    context: int,
    *,
    answers: str = "last",
    too_long: str = "drop",
    where: str = "the instruction data",
    attributes: Collection[str] = (),
) -> tuple[Examples, dict[str, int]]:
    """Chat examples with the loss on the ``last`` answer, or on ``all``, and their end tokens.

    Those of a record's ``attributes`` that are named here are written into its prompt
    (:mod:`pipeline.attributes`).  Raises :class:`InputError` where the template is refused, or an example is (``too_long``
    ``error``, or nothing in it to learn); ``where`` names the data to the reader.
    """
    check_template(tokenizer)
    fit = _Fit(context, too_long, where)
    sequences = []
    described = 0
    for number, record in enumerate(records, start=1):
        given = {name: v for name, v in record.get("attributes", {}).items() if name in attributes}
        messages = conditioned(record["messages"], given)
        try:
            runs = _chat(tokenizer, messages, answers)
        except ConversationError as error:
            raise InputError(f"{where}: example {number}: {error}") from None
        made = fit.one(runs, number)
        if made is not None:
            sequences.append(made)
            described += bool(given)
    counts = {"examples": len(sequences), **fit.counts()}
    return Examples.of(sequences), {**counts, "with_attributes": described} if attributes else counts


def preference_examples(
    tokenizer: Any,
    records: list[dict[str, Any]],
    context: int,
    *,
    too_long: str = "drop",
    where: str = "the preference data",
    mismatched: bool = False,
    rewards: bool = False,
) -> tuple[Examples, list[dict[str, Any]], dict[str, int]]:
    """Preference pairs as two examples each (chosen, rejected), and the records they came from.

    A prompt is cut alike on both sides, so that they go on from the same tokens.  With
    ``mismatched`` a third follows, the prompt with the chosen answer of the pair half a list
    away, cut to the context (for KTO's estimate of the KL); with ``rewards`` the pairs carry their
    ground-truth rewards.  Raises :class:`InputError` for a pair that has none.
    """
    check_template(tokenizer)
    fit = _Fit(context, too_long, where)
    pairs: list[tuple[list[int], list[list[int]]]] = []
    kept = []
    for number, record in enumerate(records, start=1):
        asked = record["prompt"]  # one user turn, or the turns of a conversation
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        try:
            prompt = prompt_ids(tokenizer, turns)
            sides = [answer_ids(tokenizer, turns, record[side]) for side in ("chosen", "rejected")]
        except ConversationError as error:
            raise InputError(f"{where}: pair {number}: {error}") from None
        over = len(prompt) + max(map(len, sides)) - (context + 1)
        prompt_left = fit.cut(len(prompt), over, number)
        if prompt_left is None:
            continue
        if rewards and not all(
            isinstance(record.get(f"score_{s}"), int | float) for s in ("chosen", "rejected")
        ):
            raise InputError(
                f"{where}: pair {number} has no score_chosen and score_rejected, which the rpo losses rest on"
            )
        pairs.append((prompt[len(prompt) - prompt_left :], sides))
        kept.append(record)
    if mismatched and len(pairs) == 1:
        raise InputError(f"{where}: one pair has no other's answer, which kto needs to estimate the KL")
    sequences = []
    for place, (prompt, sides) in enumerate(pairs):
        sequences += [answer_example(prompt, side) for side in sides]
        if mismatched:
            other = pairs[(place + max(1, len(pairs) // 2)) % len(pairs)][1][0]
            sequences.append(answer_example(prompt, other[: context + 1 - len(prompt)]))
    given = [(record["score_chosen"], record["score_rejected"]) for record in kept] if rewards else None
    made = Examples.of(sequences, group=3 if mismatched else 2, rewards=given)
    return made, kept, {"pairs": len(kept), **fit.counts()}


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Tokens of a conversation up to where the assistant's answer begins.

    Raises :class:`ConversationError` where the chat template does not take it.
    """
    return chat_tokenizer(tokenizer).prompt(messages)


def answer_ids(tokenizer: Any, messages: list[dict[str, str]], answer: str) -> list[int]:
    """Tokens of an answer to a conversation, and of the end of its turn; raises as :func:`prompt_ids` does."""
    turns = [*messages, {"role": "assistant", "content": answer}]
    return chat_tokenizer(tokenizer).answered(turns)[1]


def text_of(tokenizer: Any, tokens: list[int]) -> str:
    """What tokens spell, special ones left out and nothing cleaned up."""
    return chat_tokenizer(tokenizer).decode(tokens)


def answer_example(prompt: list[int], answer: list[int]) -> Sequence:
    """Input tokens and labels of prompt and answer; only the answer's tokens are predicted."""
    whole = prompt + answer
    labels = [IGNORED] * (len(prompt) - 1) + answer
    return whole[:-1], labels


def check_template(tokenizer: Any) -> None:
    """Raise :class:`InputError` unless the chat template gives back what was put into it.

    Rendered as a whole, a conversation must begin with its own prompt, go on with the answer
    as it was written, and then end the turn with the tokenizer's ``eos_token``.
    """
    template = chat_tokenizer(tokenizer).template
    if template is None:
        raise InputError("the tokenizer has no chat template; give it one by model.chat_template")
    fault = chat_templates.fault(template, tokenizer.eos_token)
    if fault:
        raise InputError(
            f"the tokenizer's chat template {fault}, so a model would not be trained on what it is asked"
        )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of one of curation's JSONL files."""
    with open(path, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def _chat(tokenizer: Any, messages: list[dict[str, str]], answers: str) -> list[tuple[list[int], int]]:
    """A conversation as runs of tokens, each with how many of its first ones are learned."""
    ours = chat_tokenizer(tokenizer)
    if answers == "all":
        return ours.all_answers(messages)
    prompt, answer = ours.answered(messages)
    return [(prompt, 0), (answer, len(answer))]


class _Fit:
    """Holds examples against the context and counts what it does about it."""

    def __init__(self, context: int, too_long: str, where: str) -> None:
        self.context, self.too_long, self.where = context, too_long, where
        self.dropped = self.shortened = 0

    def counts(self) -> dict[str, int]:
        return {"too_long": self.dropped, "cut_prompts": self.shortened}

    def cut(self, prompt: int, over: int, number: int) -> int | None:
        """Tokens that stay of a prompt of ``prompt`` tokens, ``over`` too many; None: leave it out."""
        if over <= 0:
            return prompt
        if self.too_long == "error":
            raise InputError(
                f"{self.where}: example {number} is {over} tokens longer than model.context = {self.context}; "
                "shorten it, raise the context, or set too_long to drop or cut-prompt"
            )
        if self.too_long == "drop" or over >= prompt:
            self.dropped += 1
            return None
        self.shortened += 1
        return prompt - over

    def one(self, runs: list[tuple[list[int], int]], number: int) -> Sequence | None:
        """The example of these runs of tokens, or None where it is left out."""
        left = self.cut(len(runs[0][0]), sum(len(run) for run, _ in runs) - (self.context + 1), number)
        if left is None:
            return None
        runs = [(runs[0][0][len(runs[0][0]) - left :], 0), *runs[1:]]
        whole = [token for run, _ in runs for token in run]
        labels = [
            token if place < learned else IGNORED for run, learned in runs for place, token in enumerate(run)
        ]
        if all(label == IGNORED for label in labels[1:]):
            raise InputError(f"{self.where}: example {number} has no answer to learn from")
        return whole[:-1], labels[1:]
