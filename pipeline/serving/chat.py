"""A conversation with the deployed model in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TextIO, cast

from pipeline import terminal
from pipeline.serving.client import Endpoint, ServingError, events

Answer = Callable[[list[dict[str, str]]], Iterator[str]]


def chat_loop(endpoint: Endpoint, source: TextIO, sink: TextIO, once: str | None = None) -> int:
    """Read questions from ``source`` and stream answers to ``sink`` until /quit or the end.

    What the model says is shown, and never a command to the terminal.

    With ``once``, ask that one question and return.  Ctrl-C ends the answer being given,
    not the conversation.  Returns an exit status: 1 when the one question failed.
    """
    sink = cast(TextIO, terminal.Guarded(sink))
    if once is not None:
        return 0 if _ask(endpoint, [{"role": "user", "content": once}], sink) is not None else 1
    sink.write(f"{endpoint.model} at {endpoint.url}\n")
    sink.write("/new forgets the conversation, /quit leaves, Ctrl-C ends an answer\n")
    messages: list[dict[str, str]] = []
    while True:
        sink.write("\n> ")
        sink.flush()
        try:
            line = source.readline()
        except KeyboardInterrupt:
            sink.write("\n(/quit leaves)\n")
            continue
        question = line.strip()
        if not line or question == "/quit":
            sink.write("" if line else "\n")
            return 0
        if question == "/new":
            messages = []
        elif question.startswith("/"):
            sink.write(f"{question}: there are only /new and /quit\n")
        elif question:
            turn = {"role": "user", "content": question}
            answer = _ask(endpoint, [*messages, turn], sink)
            if answer is not None:
                messages += [turn, {"role": "assistant", "content": answer}]


def _ask(endpoint: Endpoint, messages: list[dict[str, str]], sink: TextIO) -> str | None:
    """Stream one answer; returns its text, None where the server refused or failed."""
    text = ""
    answer = events(endpoint.address, endpoint.model, messages=messages, certificate=endpoint.certificate)
    try:
        for event in answer:
            text += event["text_output"]
            sink.write(event["text_output"])
            sink.flush()
    except KeyboardInterrupt:
        sink.write(" [interrupted]")
    except ServingError as error:
        sink.write(f"error: {error}\n")
        if len(messages) > 1 and "the prompt has" in str(error):
            sink.write("(the conversation has become too long for the model; /new begins a new one)\n")
        return None
    finally:
        answer.close()  # type: ignore[attr-defined]  # a generator: ends the connection
    sink.write("\n")
    return text
