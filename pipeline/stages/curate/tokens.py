"""The tokenizer: byte-level BPE trained on the training split, with a chat template.

Saved with the class name that transformers 4.57 and 5 both know.  The template is ChatML
(``<|im_start|>role``, content, ``<|im_end|>``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.stages.step import InputError, write_json

END_OF_TEXT, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIALS = [END_OF_TEXT, PAD, TURN_START, TURN_END]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


PIECE = 1 << 15  # characters
CUT = re.compile(r"(?<=\S)[ \n](?=\S)")


def pieces(text: str) -> Iterator[str]:
    """A text in pieces that together have exactly its tokens, under the tokenizer trained here.

    Cut before a white space that stands alone, where the byte-level pre-tokenizer begins a
    new word in any case; a stretch without one stays whole.
    """
    start = 0
    while len(text) - start > PIECE and (found := CUT.search(text, start + PIECE)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int, folder: Path) -> None:
    """Train byte-level BPE on the texts and save it as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "bos_token": END_OF_TEXT,
            "eos_token": TURN_END,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def copy_tokenizer(base: Path, folder: Path, template: Path | None = None) -> None:
    """Save a base model's tokenizer, with the given chat template, or ours where it has none.

    Its ``eos_token`` becomes what the template ends a turn with, for that is where an answer ends.
    Raises :class:`InputError` where the tokenizer has no end-of-sequence token.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    if tokenizer.eos_token is None:
        raise InputError(f"model.base: the tokenizer in {base} names no eos_token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if template is not None:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if tokenizer.chat_template:
        tokenizer.eos_token = _turn_end(tokenizer)
    else:
        if any(
            tokenizer.convert_tokens_to_ids(t) in (None, tokenizer.unk_token_id)
            for t in (TURN_START, TURN_END)
        ):
            raise InputError(
                f"model.base: the tokenizer in {base} has neither a chat template nor the tokens "
                f"{TURN_START} and {TURN_END} that ours needs; add a chat template to it"
            )
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.eos_token = TURN_END  # what the template ends a turn with
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    template = folder / "chat_template.jinja"
    if template.exists():  # transformers 5 writes a file of its own, which 4.57's OpenVINO path ignores
        config["chat_template"] = template.read_text(encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)


def _turn_end(tokenizer: Any) -> str:
    """The special token that stands behind an answer in the tokenizer's chat template.

    The ``eos_token`` where none does; the template is then refused when it comes to training.
    """
    turns = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "answered"}]
    behind = tokenizer.apply_chat_template(turns, tokenize=False).rsplit("answered", 1)[-1]
    special = sorted(tokenizer.all_special_tokens + list(tokenizer.get_added_vocab()), key=len, reverse=True)
    return next((token for token in special if behind.startswith(token)), str(tokenizer.eos_token))


def counter(folder: Path) -> Callable[[str], int]:
    """A function that counts the tokens of a text, special tokens left out."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
