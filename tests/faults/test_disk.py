"""A disk that is really full, and one that is really read-only: small file systems of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.toolchains import ROOT
from tests.faults.conftest import FULL
from tests.faults.harness import TALLY, TRACEBACK, Light

KIB = range(16, 400, 16) if FULL else range(16, 400, 96)


def test_a_disk_of_any_size_is_told_of_and_gone_on_from(light: Light, whole: dict[str, Any]) -> None:
    """The chain on a tmpfs of every size, then with room: see ``small_disk.py``."""
    # A mount namespace of our own: nothing stays mounted, whatever happens.
    command = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    command += [sys.executable, "-m", "tests.faults.small_disk", str(light.runs), str(light.documents)]
    done = subprocess.run(
        [*command, *map(str, KIB)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout)
    assert any(trial["status"] == 2 for trial in trials)
    for trial in trials:
        with TALLY.fault(trial["what"]):
            assert TRACEBACK not in trial["output"], trial["output"]
            if trial["status"]:
                assert trial["status"] == 2, trial["output"]
                assert trial["words"] in trial["output"], trial["output"]
            assert trial["again"] == 0, trial["again_output"]
            assert trial["published"] == whole


def test_a_folder_without_rights_is_told_of(light: Light, whole: dict[str, Any], tmp_path: Path) -> None:
    with TALLY.fault("runs folder that cannot be a folder"):
        blocked = tmp_path / "file"
        blocked.write_text("")
        status, output = Light(blocked / "runs", light.documents)()
        assert status == 2
        assert TRACEBACK not in output
        assert "error: " in output
