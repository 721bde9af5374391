"""What the README and docs/planning.md show is what the verbs print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.toolchains import ROOT

# But for those that need a corpus, or write files.
BLOCK = re.compile(r"```\n\$ lifecycle (?!scale sweep|[^\n]*--calibrate)([^\n]*)\n(.*?)```", re.DOTALL)
SHOWN = [
    (command, output)
    for name in ("README.md", "docs/planning.md")
    for command, output in BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_a_transcript_is_what_is_printed(
    command: str,
    output: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")  # no base model is here
    monkeypatch.setenv("LIFECYCLE_RUNS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out.rstrip() == output.rstrip()


def test_every_verb_of_planning_is_shown() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in (
        "plan",
        "scale train",
        "scale sweep",
        "scale collect",
        "scale forecast",
        "scale serve",
        "scale fleet",
        "scale sampling",
    ):
        assert verb in text
    assert len(SHOWN) >= 5
