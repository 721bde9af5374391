"""Conversations and texts as token ids: one code for training, evaluation, sampling, parity and every served model.

Text is text.  Whatever a message or a document spells, no control token comes of it: only the chat template
writes those.  A conversation is rendered twice, as it is and with one character masked in every place where a
message spells a control token (or a part of one that could be completed by what stands beside it).  The masked rendering's
control tokens are the template's own.  In the rendering proper they are replaced by marks, which a copy of the tokenizer knows in
place of the control tokens' spelling, so that template and text are tokenised together, as a base model was
trained, in all that the tokenizer does at their borders (prefix spaces, white space that a token swallows).

An answer begins in a piece of its own: what is trained on and what stands in the history of a later question are, token
for token, the prompt that was asked and the tokens that answered it.

The exporter copies this folder into every served model (:mod:`pipeline.serving.repository`), where transformers may be
missing: it needs jinja2 and tokenizers.  It reads nothing outside the conversation: no date, no chance.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .marks import BORDER, SPARE, aligned, mapped, mark, with_marks, without_clean_up
from .template import ChatTemplate, ConversationError, Messages

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BRACKETED = re.compile(r"\W*[<\[{].*[>\]}]\W*", re.DOTALL)
ASKED = {"role": "user", "content": "What is asked?"}
PROBES: tuple[Messages, ...] = (
    [ASKED],
    [ASKED, {"role": "assistant", "content": "What is answered."}],
    [{"role": "system", "content": "Be kind."}, ASKED],
    [ASKED, {"role": "assistant", "content": "What is answered."}, {"role": "tool", "content": "Found."}],
)


@dataclass(frozen=True)
class _Rendered:
    """``text``; where the template's own control tokens stand in it, as (start, end); where answers begin."""

    text: str
    control: list[tuple[int, int]]
    answers: list[int]


class ChatTokenizer:
    """``definition`` is the content of ``tokenizer.json``, ``named`` the tokens with a name."""

    def __init__(self, definition: dict[str, Any], template: str | None, named: dict[str, str]) -> None:
        from tokenizers import Tokenizer

        self._definition = {**definition, "truncation": None, "padding": None}
        without_clean_up(self._definition.get("decoder"))
        self._whole = Tokenizer.from_str(json.dumps(self._definition, allow_nan=False))
        self.named = named
        self.template = None if template is None else ChatTemplate(template, named)
        self.control = self._control()  # spelling -> id
        self.end: str | None = named.get("eos_token")
        self.end_id = None if self.end is None else self._whole.token_to_id(self.end)
        spelled = sorted(self.control, key=len, reverse=True)
        self._longest = len(spelled[0]) if spelled else 0
        either = "|".join(map(re.escape, spelled)) or r"(?!)"
        self._spelled = re.compile(either)
        self._begins = re.compile(f"(?:(?={either}))(.)", re.DOTALL)
        self._heads = {token[at:] for token in spelled for at in range(1, len(token))}
        self._tails = {token[:at] for token in spelled for at in range(1, len(token))}
        self._marked: dict[str, tuple[Any, dict[int, int], int]] = {}
        self._opening = self._opening_of_answers()
        self._with_marks(
            SPARE[0][0]
        )  # a second or two for a large vocabulary, which no request shall wait for

    @classmethod
    def of_folder(cls, folder: Path) -> ChatTokenizer:
        """From a Hugging Face folder's ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``."""
        definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        named = {
            name: value["content"] if isinstance(value, dict) else str(value)
            for name in NAMES
            if (value := config.get(name)) is not None
        }
        written = folder / "chat_template.jinja"
        template = written.read_text(encoding="utf-8") if written.is_file() else config.get("chat_template")
        return cls(definition, chosen(template), named)

    # -- texts -------------------------------------------------------------------------

    def text(self, text: str) -> list[int]:
        """The tokens of a text, none of them a control token, nothing added."""
        return self._encode(text, self._spare(text))[0]

    def texts(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, on all cores."""
        sign = SPARE[0][0]
        plain = [text if sign not in text else "" for text in texts]
        marked, ids, _ = self._with_marks(sign)
        found = [mapped(each.ids, ids) for each in marked.encode_batch_fast(plain, add_special_tokens=False)]
        return [self.text(text) if sign in text else each for text, each in zip(texts, found, strict=True)]

    def spelled(self, text: str) -> list[int]:
        """The tokens of a prompt that its caller rendered: what spells a control token is one, nothing added."""
        return list(self._whole.encode(text, add_special_tokens=False).ids)

    def read(self, text: str) -> list[int]:
        """As :meth:`spelled`, and the tokens that the tokenizer adds by itself."""
        return list(self._whole.encode(text, add_special_tokens=True).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """What tokens spell: special tokens and the one that ends answers left out, nothing cleaned up."""
        shown = [token for token in tokens if token != self.end_id]
        return str(self._whole.decode(shown, skip_special_tokens=True))

    def spelled_in(self, text: str) -> list[str]:
        """The control tokens that a text spells."""
        return sorted(set(self._spelled.findall(text)))

    # -- conversations -----------------------------------------------------------------

    def render(self, messages: Messages, generation: bool = True) -> str:
        """The conversation as text.  Raises :class:`ConversationError` where the template refuses it."""
        if self.template is None:
            raise ConversationError("the tokenizer has no chat template")
        return self.template.render(messages, generation)

    def prompt(self, messages: Messages) -> list[int]:
        """The tokens of a conversation, up to where the next answer begins."""
        return [token for run in self.runs(messages) for token in run]

    def runs(self, messages: Messages, generation: bool = True) -> list[list[int]]:
        """The tokens of a conversation, a new run where each answer begins."""
        rendered = self._rendered(messages, generation)
        return self._runs(rendered)

    def joined(self, messages: Messages) -> list[int]:
        """As :meth:`prompt`, answers in the history not begun anew: as whoever reads the text gives it."""
        rendered = self._rendered(messages, True)
        return self._runs(_Rendered(rendered.text, rendered.control, []))[0]

    def answered(self, messages: Messages) -> tuple[list[int], list[int]]:
        """The prompt's tokens and those of the last message, an answer, with the end of its turn.

        Raises :class:`ConversationError` where the template renders the prompt or the answer otherwise than it was given.
        """
        rendered, _, _ = self._last_answer(messages)
        *before, last = self._runs(rendered)
        return [token for run in before for token in run], self._ended(last)

    def answered_text(self, messages: Messages) -> tuple[str, str]:
        """As :meth:`answered`, as text: the prompt, and the answer up to the token that ends its turn, and without it."""
        rendered, start, end = self._last_answer(messages)
        return rendered.text[:start], rendered.text[start:end]

    def all_answers(self, messages: Messages) -> list[tuple[list[int], int]]:
        """The tokens of a conversation in runs, a new one where each answer begins, and how many of each are the answer's."""
        rendered = self._rendered(messages, False)
        answers = [message for message in messages if message["role"] == "assistant"]
        if len(answers) != len(rendered.answers):
            raise ConversationError(
                "the chat template renders earlier turns otherwise when later ones follow, so only the last "
                "answer of a conversation can be learned: set train.answers=last"
            )
        for place, answer in zip(rendered.answers, answers, strict=True):
            self._end_of_answer(rendered, place, answer)
        first, *runs = self._runs(rendered)
        lengths = [len(self._ended(run)) for run in runs]
        runs[-1] = runs[-1][: lengths[-1]]
        return [(first, 0), *zip(runs, lengths, strict=True)]

    # -- how it is done ----------------------------------------------------------------

    def _control(self) -> dict[str, int]:
        """The added tokens that mark something: special ones, those with names, those that the template writes, and
        those in brackets that the model's own vocabulary lacks.

        What else was added is text with an id of its own (runs of spaces, HTML, words): a base was trained on it.
        """
        vocabulary = self._definition["model"]["vocab"]
        words = set(vocabulary) if isinstance(vocabulary, dict) else {entry[0] for entry in vocabulary}
        written = "" if self.template is None else self.template.source + "\n".join(self._probes())
        named = set(self.named.values())
        found = {}
        for token in self._definition.get("added_tokens") or []:
            text = token["content"]
            marks = (
                token["special"]
                or text in named
                or (text in written and not text.isalnum())
                or (BRACKETED.fullmatch(text) and text not in words)
            )
            if text.strip() and marks:
                found[text] = int(self._whole.token_to_id(text))
        return found

    def _probes(self) -> Iterator[str]:
        assert self.template is not None
        for messages in PROBES:
            try:
                yield self.template.render(messages)
            except ConversationError:
                continue  # many templates take no system turn or tool

    def _opening_of_answers(self) -> str:
        """What the template writes before an answer, where a control token is in it; else nothing."""
        if self.template is None:
            return ""
        try:
            turn, asked = (self.template.render([ASKED], generation) for generation in (False, True))
        except ConversationError:
            return ""
        opening = asked[len(turn) :] if asked.startswith(turn) else ""
        return opening if self._spelled.search(opening) else ""

    def _rendered(self, messages: Messages, generation: bool) -> _Rendered:
        text = self.render(messages, generation)
        mask = SPARE[self._spare(text)][1]
        masked = [
            {key: value if key == "role" else self._masked(value, mask) for key, value in message.items()}
            for message in messages
        ]
        seen = text
        if masked != messages:
            seen = self.render(masked, generation)
            if not aligned(text, seen, mask):
                raise ConversationError(
                    "the chat template reads control tokens that a message spells, "
                    f"{', '.join(self.spelled_in(json.dumps(messages, ensure_ascii=False, allow_nan=False))) or 'in parts'}: "
                    "leave them out of the text"
                )
        control = [found.span() for found in self._spelled.finditer(seen)]
        return _Rendered(text, control, self._answer_places(messages, text, seen))

    def _masked(self, value: Any, mask: str) -> Any:
        """The value with a character masked wherever it spells a control token, or could be a part of one."""
        if isinstance(value, dict):
            return {key: self._masked(each, mask) for key, each in value.items()}
        if isinstance(value, list):
            return [self._masked(each, mask) for each in value]
        if not isinstance(value, str):
            return value
        text = self._begins.sub(mask, value)
        bare = value.strip()
        sizes = range(1, min(len(bare), self._longest - 1) + 1)
        inside = len(bare) < self._longest and any(bare in token for token in self.control)
        if bare and (inside or any(bare[:size] in self._heads for size in sizes)):
            first = len(value) - len(value.lstrip())
            text = text[:first] + mask + text[first + 1 :]
        if any(bare[-size:] in self._tails for size in sizes):
            last = len(value.rstrip()) - 1
            text = text[:last] + mask + text[last + 1 :]
        return text

    def _answer_places(self, messages: Messages, text: str, seen: str) -> list[int]:
        if self._opening:
            return [found.end() for found in re.finditer(re.escape(self._opening), seen)]
        places = []
        for turn, message in enumerate(messages):
            if message["role"] == "assistant" and turn:
                try:
                    asked = self.render(messages[:turn])
                except ConversationError:
                    continue
                if text.startswith(asked):
                    places.append(len(asked))
        return places

    def _last_answer(self, messages: Messages) -> tuple[_Rendered, int, int]:
        """The conversation, and from where to where the last message stands in it."""
        asked = self.render(messages[:-1])
        rendered = self._rendered(messages, False)
        if not rendered.text.startswith(asked):
            raise ConversationError("the chat template renders what was asked otherwise once it is answered")
        start = len(asked)
        places = [*(place for place in rendered.answers if place < start), start]
        rendered = _Rendered(rendered.text, rendered.control, places)
        return rendered, start, self._end_of_answer(rendered, start, messages[-1])

    def _end_of_answer(self, rendered: _Rendered, place: int, message: dict[str, Any]) -> int:
        """Where the token stands that ends the answer; raises unless the answer is there as it was given."""
        ends = (at for at, end in rendered.control if at >= place and rendered.text[at:end] == self.end)
        end = next(ends, None)
        if end is None:
            raise ConversationError(
                f"the chat template does not end an answer with the eos_token, {self.end}"
            )
        content = message.get("content")
        if isinstance(content, str) and rendered.text[place:end].strip() != content.strip():
            raise ConversationError(
                "the chat template does not render an answer as it was given, right behind the prompt and before the "
                f"eos_token, {self.end}"
            )
        return end

    def _ended(self, run: list[int]) -> list[int]:
        assert self.end_id is not None
        return run[: run.index(self.end_id) + 1]

    def _runs(self, rendered: _Rendered) -> list[list[int]]:
        spare = self._spare(rendered.text)
        sign, text = SPARE[spare][0], rendered.text
        pieces, done = [], 0
        marks = [(start, end, "") for start, end in rendered.control]
        marks += [(place, place, BORDER) for place in rendered.answers]
        for start, end, kind in sorted(marks):
            what = kind or str(self.control[text[start:end]])
            pieces += [text[done:start], mark(sign, what)]
            done = end
        return self._encode("".join([*pieces, text[done:]]), spare)

    def _encode(self, text: str, spare: int) -> list[list[int]]:
        """The runs of tokens of a text in which marks stand for control tokens and for where answers begin."""
        marked, ids, border = self._with_marks(SPARE[spare][0])
        runs: list[list[int]] = [[]]
        for token in marked.encode(text, add_special_tokens=False).ids:
            if token == border:
                runs.append([])
            else:
                runs[-1].append(ids.get(token, token))
        return runs

    def _spare(self, text: str) -> int:
        for number, pair in enumerate(SPARE):
            if pair[0] not in text and pair[1] not in text:
                return number
        raise ConversationError(
            "the text holds all code points from U+FDD0 to U+FDEF, which are no characters"
        )

    def _with_marks(self, sign: str) -> tuple[Any, dict[int, int], int]:
        if sign not in self._marked:
            self._marked[sign] = with_marks(self._definition, self.control, self._whole, sign)
        return self._marked[sign]


def chosen(template: Any) -> str | None:
    """The template among those that a tokenizer names; they are a text, a mapping, or a list of both by name."""
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template else None


_known: weakref.WeakKeyDictionary[Any, tuple[Any, ChatTokenizer]] = weakref.WeakKeyDictionary()


def chat_tokenizer(tokenizer: Any) -> ChatTokenizer:
    """That of a fast tokenizer of transformers, as it is now; kept, for it takes a while to make."""
    named = {name: str(value) for name in NAMES if (value := getattr(tokenizer, name, None)) is not None}
    state = (tokenizer.chat_template, named, len(tokenizer))
    known = _known.get(tokenizer)
    if known is None or known[0] != state:
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        known = (state, ChatTokenizer(definition, chosen(tokenizer.chat_template), named))
        _known[tokenizer] = known
    return known[1]
