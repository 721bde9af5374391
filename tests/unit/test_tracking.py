"""A tracker that fails, hangs or is not there costs a warning; what it missed is told when it is back."""

from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import Interrupted, UserError
from pipeline.runner import tracked
from pipeline.schema import Tracking
from pipeline.tracking.__main__ import RETRY_S, Listener, numbers


class Flaky:
    """Refuses the calls whose numbers are given."""

    name = "flaky"

    def __init__(self, *refused: int) -> None:
        self.refused, self.calls = refused, 0
        self.told: list[tuple[int, dict[str, float]]] = []
        self.ended: str | None = None

    def log(self, step: int, values: dict[str, float]) -> None:
        self.calls += 1
        if self.calls in self.refused:
            raise ConnectionError("no answer")
        self.told.append((step, values))

    def finish(self, figures: dict[str, float], ended: str) -> None:
        self.ended = ended


def test_what_was_missed_is_told_in_order_when_it_is_back() -> None:
    tracker = Flaky(2, 3)
    listener = Listener(tracker)
    for step in range(4):
        listener.waiting.append((step, {"loss": float(step)}))
        listener.tell(100.0)
    assert [step for step, _ in tracker.told] == [0]
    listener.tell(100.0 + RETRY_S)  # refused once more
    listener.tell(100.0 + 2 * RETRY_S)
    assert [step for step, _ in tracker.told] == [0, 1, 2, 3]
    assert listener.finish({}, "finished")
    assert tracker.ended == "finished"


def test_one_that_never_comes_back_is_told_of() -> None:
    listener = Listener(Flaky(*range(1, 100)))
    listener.waiting.append((1, {"loss": 1.0}))
    listener.tell(0.0)
    assert not listener.finish({}, "finished")


def test_numbers_of_nested_figures() -> None:
    assert numbers({"a": {"b": 2}, "c": True, "d": "text", "e": 0.5, "f": None}) == {"a.b": 2.0, "e": 0.5}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    use(monkeypatch, Path(sys.executable))
    monkeypatch.setenv("PYTHONPATH", "")
    work = tmp_path / "work"
    work.mkdir()
    return {"work": str(work), "recipe": "r", "stage": "train", "identity": "ab" * 32, "settings": {"lr": 1}}


def use(monkeypatch: pytest.MonkeyPatch, python: Path) -> None:
    monkeypatch.setattr(tracked, "Toolchain", lambda _: SimpleNamespace(python=python, require=lambda: None))


def script(folder: Path, text: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_event_files_are_there_when_the_step_is_done(tmp_path: Path, job: dict[str, Any]) -> None:
    said: list[str] = []
    work = Path(job["work"])
    (work / "events.jsonl").write_text('{"kind": "metric", "step": 1, "values": {"loss": 9}}\n')
    with tracked.tracked(job, Tracking(tensorboard=True), tmp_path / "tracking", said.append):
        with open(work / "events.jsonl", "a") as events:
            events.write('{"kind": "metric", "step": 7, "values": {"loss": 3.5}}\n')
        (work / "result.json").write_text(json.dumps({"metrics": {"loss": 3.0}}))
    assert said == []
    (file,) = (tmp_path / "tracking" / "tensorboard" / f"train-{'ab' * 6}").iterdir()
    assert b"final/loss" in file.read_bytes()


def test_one_that_hangs_at_the_end_is_left(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, script(tmp_path, "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"))
    monkeypatch.setitem(tracked.END_S, "interrupted", 0.5)
    said: list[str] = []
    began = time.monotonic()
    with (
        pytest.raises(Interrupted),
        tracked.tracked(job, Tracking(tensorboard=True), tmp_path / "tracking", said.append),
    ):
        raise Interrupted("stopped", 15)
    assert time.monotonic() - began < 10
    assert "took more than" in said[0]


def test_one_that_dies_on_the_way_is_told_of(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = (
        "import sys\nprint('ready', flush=True)\nprint('the server said no', file=sys.stderr)\nsys.exit(1)\n"
    )
    use(monkeypatch, script(tmp_path, dying))
    said: list[str] = []
    with tracked.tracked(job, Tracking(tensorboard=True), tmp_path / "tracking", said.append):
        pass
    assert said == ["a tracker was not told everything: the server said no"]


def test_one_that_cannot_be_had_stops_the_first_attempt_only(
    tmp_path: Path, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, folder, said = Tracking(tensorboard=True), tmp_path / "tracking", list[str]()
    use(monkeypatch, script(tmp_path, "print('OSError: nobody answers', flush=True)\n"))
    with pytest.raises(UserError, match="nobody answers"), tracked.tracked(job, asked, folder, said.append):
        raise AssertionError("the step was started")
    use(monkeypatch, script(tmp_path, "print('ready', flush=True)\ninput()\n"))
    with tracked.tracked(job, asked, folder, said.append):
        pass
    use(monkeypatch, script(tmp_path, "print('OSError: nobody answers', flush=True)\n"))
    with tracked.tracked(job, asked, folder, said.append):
        pass
    assert said == ["goes on without trackers: OSError: nobody answers"]
