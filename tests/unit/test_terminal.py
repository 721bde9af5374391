"""Nothing that a model, data or another person wrote commands the terminal that shows it."""

from __future__ import annotations

import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.table import Table

from pipeline import cli, summary, terminal, verbs
from pipeline.runner.display import Display, LiveDisplay
from pipeline.serving.chat import chat_loop
from pipeline.serving.client import Endpoint

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
EVIL = f"{CLIPBOARD}\x1b[2J\x9b31m\x90q\r\u202etxt.exe\u2066 [red]not ours[/red] :smile: \\"
SHOWN = "\\u001b]52;c;cm0gLXJmIH4=\\u0007"


def harmless(text: str) -> None:
    """No control but tab and newline, and no control of writing direction."""
    assert not terminal.UNSEEN.search(text), ascii(text)


@pytest.mark.parametrize("number", [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x202E, 0x2069, 0xD800])
def test_what_a_terminal_obeys_is_spelled_out(number: int) -> None:
    expected = chr(number) if chr(number) in "\n\t" else f"a\\u{number:04x}b"
    assert expected in terminal.visible(f"a{chr(number)}b")


@pytest.mark.parametrize("text", ["Grüße, 世界 👍🏽\n\tיום שלום", "tab\there", "", "\u00a0\u00ad"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert terminal.visible(text) == text


def test_json_stays_the_same_json() -> None:
    value = {"text": EVIL, "more": ["\x7f\u2028"]}
    shown = terminal.visible(json.dumps(value, ensure_ascii=False))
    harmless(shown)
    assert json.loads(shown) == value


def shown_by(colours: bool, what: Any) -> str:
    sink = io.StringIO()
    terminal.console(file=sink, force_terminal=colours, width=300).print(what)
    return sink.getvalue()


def test_a_console_shows_markup_emoji_and_commands_as_text() -> None:
    table = Table("heading")
    table.add_row(EVIL)
    for what in (EVIL, table):
        text = shown_by(False, what)
        harmless(text)
        assert SHOWN in text
        assert "[red]not ours[/red] :smile:" in text
    coloured = shown_by(True, table)
    assert "\x1b[1m" in coloured  # the heading's own style
    assert CLIPBOARD not in coloured
    assert "\x1b[2J" not in coloured


def test_progress_messages_and_headlines_are_shown_and_not_obeyed() -> None:
    sink = io.StringIO()
    display = Display(terminal.console(file=sink, width=300, soft_wrap=True))
    display.start("curate", EVIL)
    display.event({"kind": "phase", "name": EVIL})
    display.event({"kind": "progress", "done": 1, "total": 2, "unit": EVIL, "note": EVIL})
    for kind in ("warning", "message"):
        display.event({"kind": kind, "text": EVIL})
    display._last_line = -100.0
    display.tick()
    display.note("curate", EVIL)
    display.skip("curate", EVIL)
    display.end(EVIL, 1.0)
    harmless(sink.getvalue())
    assert sink.getvalue().count("[red]not ours[/red] :smile:") >= 7


def test_the_live_line_is_shown_and_not_obeyed() -> None:
    sink = io.StringIO()
    display = LiveDisplay(terminal.console(file=sink, width=300))
    display.event({"kind": "phase", "name": EVIL})
    display.console.print(display._render())
    harmless(sink.getvalue())


def test_the_summary_shows_headlines_as_they_are(tmp_path: Path) -> None:
    class Step:
        name = "train"

    class Artifact:
        path = tmp_path / "x\x1b[2J"
        manifest: ClassVar = {"seconds": 1.0, "headline": EVIL}

    class Planned:
        step, state, why, artifact = Step(), "done", EVIL, Artifact()

    text = shown_by(False, summary.summary_table([Planned()]))  # type: ignore[list-item]
    harmless(text)
    assert "[red]not ours[/red]" in text


def test_a_verbs_output_and_errors_are_guarded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(options: Any) -> int:
        print(EVIL)
        print(EVIL, file=sys.stderr)
        sys.stdout.writelines([EVIL])
        return 0

    monkeypatch.setattr(verbs, "stop", stop)
    assert cli.main(["stop"]) == 0
    assert cli.main(["explain", f"no{CLIPBOARD}recipe"]) == 2
    with pytest.raises(SystemExit):
        cli.main([f"no{CLIPBOARD}verb"])
    told = capsys.readouterr()
    harmless(told.out)
    harmless(told.err)
    assert SHOWN in told.out
    assert told.err.count("52;c;") >= 3


class Evil(BaseHTTPRequestHandler):
    """A model that answers with commands."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        error = "fail" in asked["messages"]
        event: dict[str, Any] = {"error": EVIL} if error else {"text_output": EVIL, "finish_reason": "stop"}
        self.send_response(400 if error else 200)
        self.end_headers()
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *arguments: Any) -> None:
        pass


def test_chat_shows_answers_and_errors_and_never_obeys_them() -> None:
    with HTTPServer(("127.0.0.1", 0), Evil) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sink = io.StringIO()
        endpoint = Endpoint(f"127.0.0.1:{server.server_port}", "assistant")
        questions = io.StringIO("hello\nfail\n/\x1b[2J\n/quit\n")
        assert chat_loop(endpoint, questions, sink) == 0
        server.shutdown()
    harmless(sink.getvalue())
    assert sink.getvalue().count(SHOWN) == 2


def test_no_other_module_makes_a_console_of_its_own() -> None:
    root = Path(terminal.__file__).parent
    made = [
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if file != Path(terminal.__file__) and " Console(" in file.read_text(encoding="utf-8")
    ]
    assert made == []
