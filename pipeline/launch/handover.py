"""Have the ``launch`` toolchain do something with a submission, in a process of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pipeline.errors import LifecycleError, UserError
from pipeline.launch.orders import LOG
from pipeline.surroundings import settled
from pipeline.toolchains import ROOT, Toolchain

TOOLCHAIN = "launch"


def hand_over(action: str, folder: Path) -> None:
    """``dry``, ``send``, ``look`` or ``cancel`` (see ``pipeline.launch.__main__``).

    It is let finish when this process is interrupted: jobs that nobody wrote down would be
    worse than a second's delay.  Raises :class:`UserError` with its words where it refused.
    """
    Toolchain(TOOLCHAIN).require()
    environment = {**settled(os.environ, folder.absolute()), "PYTHONPATH": str(ROOT)}
    # NeMo-Run imports two thousand modules: 5 s of work without their bytecode, 2 s with it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with open(folder / LOG, "ab") as log:
        process = subprocess.Popen(
            [str(Toolchain(TOOLCHAIN).python), "-m", "pipeline.launch", action, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
    if status:
        said = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if status == 2 and said and said[-1].startswith("error: "):
            raise UserError(said[-1].removeprefix("error: "))
        raise LifecycleError("\n".join(["NeMo-Run failed:", *(f"  | {line}" for line in said[-8:])]))
