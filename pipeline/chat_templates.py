"""What is asked of a chat template before hours of work rest on it; jinja2 is all that this needs.

A model is trained on what it is asked: a template must render a question alike before and after it was answered, the answer as
it was given, and the end of its turn behind it.  And it must not read anything but the conversation.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from pipeline.conversations.template import ChatTemplate, ConversationError, Messages, frozen, reads_date
from pipeline.conversations.tokenizer import NAMES, ChatTokenizer, chosen

ANSWERED = "What is answered."
PROBE: Messages = [
    {"role": "user", "content": "What is asked?"},
    {"role": "assistant", "content": ANSWERED},
]
SYSTEM = {"role": "system", "content": "Be kind."}


def fault(template: ChatTemplate, end: str | None) -> str | None:
    """What is wrong with a template whose answers end in the token ``end``, after "the chat template"; None: nothing."""
    try:
        if reads_date(template.source):
            return "reads the date (strftime_now); freeze it by setting model.template_date"
        prompt, whole = template.render(PROBE[:1]), template.render(PROBE, generation=False)
    except ConversationError as error:
        return str(error).removeprefix("the chat template ")
    if not whole.startswith(prompt):
        return "renders a question otherwise once it is answered"
    behind = whole[len(prompt) :].lstrip()
    if not behind.startswith(ANSWERED):
        return "does not put the answer right behind the prompt"
    if not end or not behind[len(ANSWERED) :].lstrip().startswith(end):
        return f"does not end an answer with the tokenizer's eos_token, {end}"
    return None


def history_fault(template: ChatTemplate) -> str | None:
    """Why only the last answer of a conversation can be learned with this template; None: all can (``train.answers``)."""
    later = template.render([*PROBE, PROBE[0]])
    if not later.startswith(template.render(PROBE[:1])) or ANSWERED not in later:
        return "renders earlier turns otherwise when later ones follow"
    return None


def turn_end(template: ChatTemplate, spelled: list[str], otherwise: str) -> str:
    """Which of the tokens stands behind an answer; ``otherwise`` where none does, and the template is refused then."""
    behind = template.render(PROBE, generation=False).rsplit(ANSWERED, 1)[-1].lstrip()
    return next(
        (token for token in sorted(spelled, key=len, reverse=True) if behind.startswith(token)), otherwise
    )


def base_fault(base: Path, given: Path | None, day: date | None) -> str | None:
    """What is wrong with the chat template of a base model's folder, or with the one that is given for it.

    For the plan, before anything is spent.  ``day`` is ``model.template_date``.  None also where neither has a template.
    """
    try:
        return _base_fault(base, given, day)
    except ConversationError as error:
        return str(error).removeprefix("the chat template ")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"cannot be read: {error}"


def _base_fault(base: Path, given: Path | None, day: date | None) -> str | None:
    config = _read(base / "tokenizer_config.json")
    own = base / "chat_template.jinja"
    source = own.read_text(encoding="utf-8") if own.is_file() else chosen(config.get("chat_template"))
    if given is not None:
        source = given.read_text(encoding="utf-8")
    if source is None:
        return None
    named = {
        name: str(value["content"]) if isinstance(value, dict) else str(value)
        for name in NAMES
        if (value := config.get(name)) is not None
    }
    if day is not None and not reads_date(source):
        return "reads no date, so model.template_date would change nothing"
    tokens = [token["content"] for token in _read(base / "tokenizer.json").get("added_tokens") or []]
    template = ChatTemplate(source if day is None else frozen(source, day), named)
    end = turn_end(template, [*tokens, *named.values()], named.get("eos_token", ""))
    return fault(template, end)


def forged(tokenizer: ChatTokenizer) -> list[str]:
    """The turns that a user's text alone can pass for, because the template marks them by text and not by tokens.

    Tried out: a message that holds the rendering of other turns has the same tokens as these turns; or no token of the
    template's stands between a question and its answer.
    """
    user, found = PROBE[0], []
    system = ([SYSTEM, user], [user, SYSTEM, user])
    if any(_passes(tokenizer, turns) for turns in system):
        found.append("a system turn")
    behind = tokenizer.render([user]).rpartition(str(user["content"]))[2]
    if not tokenizer.spelled_in(behind) or _passes(tokenizer, [*PROBE, user]):
        found.append("an answer")
    return found


def _passes(tokenizer: ChatTokenizer, turns: Messages) -> bool:
    """Whether one message can have the tokens of these turns."""
    user = PROBE[0]
    try:
        before, _, after = tokenizer.render([user]).partition(user["content"])
        whole = tokenizer.render(turns)
        if not (whole.startswith(before) and whole.endswith(after)):
            return False
        text = whole[len(before) : len(whole) - len(after)]
        return tokenizer.joined([{**user, "content": text}]) == tokenizer.joined(turns)
    except ConversationError:  # many templates take no system turn, or not in the middle
        return False


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
