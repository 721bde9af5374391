"""Reading answers and beginning them take turns, where Triton's stub cannot do both at once."""

from __future__ import annotations

import importlib.util
import random
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

CONTRACT = Path(__file__).resolve().parents[2] / "deploy" / "triton" / "contract"


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The contract's module, as Triton's stub loads it: beside its neighbours."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton"))
    monkeypatch.syspath_prepend(str(CONTRACT))
    spec = importlib.util.spec_from_file_location("beside", CONTRACT / "beside.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("answers", "parameters"):
        sys.modules.pop(name, None)


def test_the_two_sides_are_never_inside_together_and_both_get_their_turns(beside: Any) -> None:
    turns, lock = beside.Turns(), threading.Lock()
    inside, most, done = [0, 0], [0, 0], [0, 0]
    faults: list[list[int]] = []

    def work(side: int) -> None:
        for _ in range(60):
            with turns.of(side):
                with lock:
                    inside[side] += 1
                    most[side] = max(most[side], inside[side])
                    if all(inside):
                        faults.append(list(inside))
                time.sleep(random.random() * 0.001)
                with lock:
                    inside[side] -= 1
                    done[side] += 1

    threads = [threading.Thread(target=work, args=(side,)) for side in (0, 1) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert not any(each.is_alive() for each in threads)
    assert done == [360, 360]
    assert faults == []
    assert min(most) > 1  # many of one side at once


def test_a_side_that_never_rests_does_not_keep_the_other_out(beside: Any) -> None:
    turns, stop = beside.Turns(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            with turns.of(beside.Turns.READ):
                time.sleep(0.002)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for each in readers:
        each.start()
    began = time.monotonic()
    for _ in range(10):
        with turns.of(beside.Turns.BEGIN):
            pass
    took = time.monotonic() - began
    stop.set()
    for each in readers:
        each.join(10)
    assert took < 5


def test_finished_iterators_are_kept_until_the_stub_has_answered(beside: Any) -> None:
    finished = beside.Finished()
    let_go: list[str] = []

    class Responses:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            let_go.append(self.name)

    finished.keep(Responses("a"))
    finished.let_go(lambda: True)  # known to be cancelled: the stub was not asked
    assert let_go == []

    def asked() -> bool:
        finished.keep(Responses("b"))  # meanwhile
        assert let_go == []
        return False

    finished.let_go(asked)
    assert let_go == ["a"]
    finished.let_go(lambda: False)
    assert let_go == ["a", "b"]
