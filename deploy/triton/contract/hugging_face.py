"""The tokenizer of the bundle, for engines that take token ids and bring no tokenizer of their own."""

from __future__ import annotations

from pathlib import Path

from parameters import RequestError
from transformers import AutoTokenizer


class HuggingFaceTokenizer:
    """``folder`` holds the bundle's tokenizer with its chat template."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation as the prompt text of the model's chat template."""
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def encode(self, text: str) -> list[int]:
        """The token ids of a rendered prompt, nothing added."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def as_text(self, ids: list[int], rendered: str) -> str:
        """Text that whoever adds special tokens by itself reads as exactly these ids.

        A chat template writes the token that begins a text, and so does a tokenizer that is asked to: one of them is
        too many.  Raises :class:`RequestError` where no such text is found.
        """
        begin = self._tokenizer.bos_token or ""
        for text in (rendered, rendered.removeprefix(begin)):
            if list(self._tokenizer(text)["input_ids"]) == ids:
                return text
        raise RequestError(
            f"this server adds special tokens to a text: one must begin with {begin!r}, as the chat template's does"
        )
