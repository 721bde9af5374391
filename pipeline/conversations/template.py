"""Chat templates: as transformers renders them, without what would read anything outside the conversation."""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages = list[dict[str, Any]]
DATED = re.compile(r"""strftime_now\(\s*(['"])((?:(?!\1).)*)\1\s*\)""")
ROLE = re.compile(r"[a-z_]{1,32}")


class ConversationError(ValueError):
    """The conversation cannot be given to the model as it is; says why."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``, with which a template tells a trainer where answers are; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _date(_: str = "") -> str:
    raise jinja2.TemplateError("it reads the date (strftime_now); freeze it by setting model.template_date")


def environment() -> ImmutableSandboxedEnvironment:
    """As transformers renders chat templates, without what would read anything outside the conversation."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            allow_nan=False,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": _refuse, "strftime_now": _date}
    del made.globals["lipsum"], made.filters["random"]
    return made


def reads_date(source: str) -> bool:
    """Whether a template calls for today's date anywhere.  Raises :class:`ConversationError` where it is no template."""
    try:
        tree = environment().parse(source)
    except jinja2.TemplateError as error:
        raise ConversationError(f"the chat template cannot be read: {error}") from None
    calls = (call.node for call in tree.find_all(nodes.Call))
    return any(isinstance(called, nodes.Name) and called.name == "strftime_now" for called in calls)


def frozen(source: str, day: date) -> str:
    """The template with the day written out wherever it calls for today's, so that it is the same text to whoever reads it.

    Raises :class:`ConversationError` where it calls for it in another way than by a format in quotes.
    """
    written = DATED.sub(
        lambda found: json.dumps(day.strftime(found[2]), ensure_ascii=False, allow_nan=False), source
    )
    if reads_date(written):
        raise ConversationError("the chat template reads the date by a format that is not written out in it")
    return written


class ChatTemplate:
    """A chat template; ``named`` are the tokens that it may call by name (``bos_token`` and kin)."""

    def __init__(self, source: str, named: dict[str, str]) -> None:
        self.source, self.named = source, named
        try:
            self._compiled = environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ConversationError(f"the chat template cannot be read: {error}") from None

    def render(self, messages: Messages, generation: bool = True) -> str:
        """The text of a conversation; with ``generation`` up to where the next answer begins."""
        for message in messages:
            if not ROLE.fullmatch(str(message.get("role"))):
                raise ConversationError(f"{message.get('role')!r} is not a role")
        try:
            return self._compiled.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=generation, **self.named
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConversationError(f"the chat template does not take this conversation: {error}") from None
