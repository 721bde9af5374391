"""A Hugging Face model asked for greedy answers and logits."""

from __future__ import annotations

from typing import Any

import numpy as np


class Reference:
    """``model`` in evaluation mode, on whatever device it is; ``ends`` are the tokens that end an answer."""

    def __init__(self, model: Any, ends: list[int], pad: int) -> None:
        from transformers import GenerationConfig

        self.model = model
        self._ends, self._pad = ends, pad
        self._settings = GenerationConfig

    def answer(self, prompt: list[int], tokens: int) -> list[int]:
        """The greedy continuation, the end token included."""
        import torch

        greedy = self._settings(
            do_sample=False, max_new_tokens=tokens, eos_token_id=sorted(self._ends), pad_token_id=self._pad
        )
        ids = torch.tensor([prompt], device=self.model.device)
        # The model's own defaults (a repetition penalty, say) must not fill the gaps of `greedy`.
        kept, self.model.generation_config = self.model.generation_config, greedy
        try:
            with torch.no_grad():
                output = self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=greedy
                )
        finally:
            self.model.generation_config = kept
        answer: list[int] = output[0, len(prompt) :].tolist()
        return answer

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        return [self.answer(prompt, tokens) for prompt in prompts]

    def logits(self, ids: list[int]) -> np.ndarray:
        """(tokens, vocabulary) in fp32: the distribution after each token."""
        import torch

        with torch.no_grad():
            found = self.model(torch.tensor([ids], device=self.model.device)).logits[0]
        return np.asarray(found.float().cpu().numpy())
