"""The tokenizer: byte-level BPE trained on the training split, with a chat template.

Saved with the class name that transformers 4.57 and 5 both know.  The template is ChatML
(``<|im_start|>role``, content, ``<|im_end|>``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path

from pipeline import strict_json
from pipeline.chat_templates import forged, turn_end
from pipeline.conversations.documents import DOCUMENT_END
from pipeline.conversations.marks import without_clean_up
from pipeline.conversations.template import ConversationError, frozen
from pipeline.conversations.tokenizer import ChatTokenizer, chat_tokenizer, chosen
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
            DOCUMENT_END: END_OF_TEXT,
        },
    )


def copy_tokenizer(
    base: Path, folder: Path, template: Path | None = None, day: date | None = None
) -> list[str]:
    """Save a base model's tokenizer, with the given chat template, or ours where it has none.

    Its ``eos_token`` becomes what the template ends a turn with, for that is where an answer ends; documents go on to end in
    the one that it had.  ``day`` is written into a template that reads the date.  Returns the turns that a user's text can pass
    for (:func:`pipeline.chat_templates.forged`).
    Raises :class:`InputError` where the tokenizer has no end-of-sequence token, or the template cannot be rendered.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    except Exception as error:  # tokenizers raises nothing narrower
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"model.base: the tokenizer in {base} cannot be read: {said}") from None
    if tokenizer.eos_token is None:
        raise InputError(f"model.base: the tokenizer in {base} names no eos_token")
    document_end = tokenizer.init_kwargs.get(DOCUMENT_END, str(tokenizer.eos_token))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    own = chosen(tokenizer.chat_template) if template is None else template.read_text(encoding="utf-8")
    if own is None and any(
        tokenizer.convert_tokens_to_ids(t) in (None, tokenizer.unk_token_id) for t in (TURN_START, TURN_END)
    ):
        raise InputError(
            f"model.base: the tokenizer in {base} has neither a chat template nor the tokens "
            f"{TURN_START} and {TURN_END} that ours needs; give it a chat template by model.chat_template"
        )
    try:
        tokenizer.chat_template = frozen(own or CHAT_TEMPLATE, day) if day else own or CHAT_TEMPLATE
        rendering = chat_tokenizer(tokenizer).template
        assert rendering is not None
        spelled = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
        tokenizer.eos_token = turn_end(rendering, spelled, str(tokenizer.eos_token))
    except ConversationError as error:
        raise InputError(f"{template or base}: {error}") from None
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        DOCUMENT_END: document_end,
        # transformers 5 writes a file of its own for it, which older readers ignore
        "chat_template": tokenizer.chat_template,
    }
    write_json(folder / "tokenizer_config.json", config)
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    without_clean_up(definition.get("decoder"))
    (folder / "tokenizer.json").write_text(
        strict_json.dumps(definition, ensure_ascii=False), encoding="utf-8"
    )
    return forged(chat_tokenizer(tokenizer))


def counter(folder: Path) -> Callable[[str], int]:
    """A function that counts the tokens of a text, special tokens left out."""
    tokenizer = ChatTokenizer.of_folder(folder)
    return lambda text: len(tokenizer.text(text))
