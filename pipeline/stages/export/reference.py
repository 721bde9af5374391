"""A Hugging Face model asked for greedy answers and logits, many sequences at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

TOKENS_AT_ONCE = 1024  # of a batch, padding included: what is held besides the model are their logits
SEQUENCES_AT_ONCE = 16  # keys and values of answers under way are held, too


def batches(sequences: list[list[int]]) -> Iterator[list[int]]:
    """The places of sequences that are computed together: alike in length, the shortest first.

    Padded, a batch has at most ``TOKENS_AT_ONCE`` tokens; a longer sequence stands alone.
    """
    some: list[int] = []
    for place in sorted(range(len(sequences)), key=lambda each: len(sequences[each])):
        full = len(some) == SEQUENCES_AT_ONCE or (len(some) + 1) * len(sequences[place]) > TOKENS_AT_ONCE
        if some and full:
            yield some
            some = []
        some.append(place)
    if some:
        yield some


def padded(sequences: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask, both ``int64 [sequences, longest]``; padded on the left, so that all end together."""
    longest = max(map(len, sequences))
    ids = np.full((len(sequences), longest), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = sequence
        mask[row, longest - len(sequence) :] = 1
    return ids, mask


def positions(mask: np.ndarray) -> np.ndarray:
    """The place of each token in its own sequence, ``int64`` of the mask's shape; that of padding tells nothing."""
    return np.asarray(np.maximum(mask.cumsum(-1) - 1, 0))


class Reference:
    """``model`` in evaluation mode, on whatever device it is; ``ends`` are the tokens that end an answer."""

    def __init__(self, model: Any, ends: list[int], pad: int) -> None:
        from transformers import GenerationConfig

        self.model = model
        self._ends, self._pad = ends, pad
        self._settings = GenerationConfig

    def greedy(self, prompts: list[list[int]], tokens: int) -> list[tuple[list[int], np.ndarray]]:
        """The greedy continuation of each prompt of a batch, the end token included, and the logits of each of its tokens.

        Logits are (tokens of the answer, vocabulary) in fp32.
        """
        import torch

        greedy = self._settings(
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=sorted(self._ends),
            pad_token_id=self._pad,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids, mask = (torch.from_numpy(each).to(self.model.device) for each in padded(prompts, self._pad))
        # The model's own defaults (a repetition penalty, say) must not fill the gaps of `greedy`.
        kept, self.model.generation_config = self.model.generation_config, greedy
        try:
            with torch.no_grad():
                made = self.model.generate(ids, attention_mask=mask, generation_config=greedy)
        finally:
            self.model.generation_config = kept
        logits = [step.float().cpu().numpy() for step in made.logits]
        found = []
        for row, continued in enumerate(made.sequences[:, ids.shape[1] :].tolist()):
            ended = [place for place, token in enumerate(continued) if token in self._ends]
            answer = continued[: ended[0] + 1] if ended else continued
            found.append((answer, np.stack([logits[place][row] for place in range(len(answer))])))
        return found

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """The greedy continuations of a batch of prompts."""
        return [answer for answer, _ in self.greedy(prompts, tokens)]

    def logits(self, sequences: list[list[int]], last: list[int]) -> list[np.ndarray]:
        """The distributions after each of the ``last`` tokens of each sequence of a batch: (tokens, vocabulary) in fp32."""
        import torch

        ids, mask = padded(sequences, self._pad)
        values = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
        on = {name: torch.from_numpy(each).to(self.model.device) for name, each in values.items()}
        with torch.no_grad():
            found = self.model(**on, use_cache=False, logits_to_keep=max(last)).logits
        wide = found.float().cpu().numpy()
        return [wide[row, wide.shape[1] - count :] for row, count in enumerate(last)]
