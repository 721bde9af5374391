"""Ctrl-C, SIGTERM, a second Ctrl-C, and a controller that is gone."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import Any

import pytest

from tests.faults.harness import TALLY, TRACEBACK, Light, wait_for_seal, wait_gone

SLOW = {"LIGHT_PACE_S": "0.05"}


def at_work(light: Light, **environment: str) -> subprocess.Popen[str]:
    """A controller whose training step has sealed a checkpoint."""
    controller = light.start(**environment)
    wait_for_seal(light, controller, "step_008")
    return controller


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupt_stops_the_step_and_says_how_to_go_on(
    number: signal.Signals, status: int, light: Light, whole: dict[str, Any]
) -> None:
    with TALLY.fault(f"{number.name} to the controller"):
        controller = at_work(light, **SLOW)
        controller.send_signal(number)
        output, _ = controller.communicate(timeout=20)
        assert controller.returncode == status, output
        assert "train was interrupted; the same command goes on from where it was" in output
        assert TRACEBACK not in output
        assert not light.processes()
        assert "went on from step" in light.must_end_as(whole)


def test_a_second_interrupt_stops_at_once(light: Light, whole: dict[str, Any]) -> None:
    with TALLY.fault("second SIGINT to the controller"):
        controller = at_work(light, **SLOW, LIGHT_STUBBORN="1")
        controller.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert controller.poll() is None  # the step does not heed SIGTERM
        began = time.monotonic()
        controller.send_signal(signal.SIGINT)
        output, _ = controller.communicate(timeout=20)
        assert time.monotonic() - began < 2
        assert controller.returncode == 130, output
        assert "once more to stop at once" in output
        assert not light.processes()
        light.must_end_as(whole)


def test_a_step_does_not_outlive_its_controller_even_when_it_wants_to(
    light: Light, whole: dict[str, Any]
) -> None:
    with TALLY.fault("SIGKILL to the controller of a step deaf to SIGTERM"):
        controller = at_work(light, LIGHT_PACE_S="0.5", LIGHT_STUBBORN="1")
        controller.kill()
        controller.communicate()
        assert light.processes()
        wait_gone(light, 12)  # site.grace_s is 5 here
        light.must_end_as(whole)
