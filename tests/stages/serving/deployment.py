"""One export deployed again and again, on the same ports and record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.serving import service
from tests.miniature import port_settings, run_stage


class Deployment:
    """Runs the deploy stage; ``exported`` is what the next run deploys."""

    def __init__(self, exported: Path, folder: Path) -> None:
        self.exported, self.folder, self.runs = exported, folder, 0
        self.path = folder / "deploy" / "server.json"
        self.settings = port_settings()

    def run(self, **settings: Any) -> tuple[int, str]:
        """Deploy; the exit status, and what it told."""
        self.runs += 1
        return run_stage(
            "deploy",
            self.folder / f"work{self.runs}",
            {"export": self.exported},
            {**self.settings, **settings},
            {"server_record": str(self.path)},
        )

    def record(self) -> service.Service:
        record = service.read(self.path)
        assert record is not None
        return record

    def stop(self) -> None:
        """Everything that runs, with or without a record."""
        record = service.read(self.path)
        self.path.unlink(missing_ok=True)
        if record:
            service.stop(record)
        service.stop_strays(self.path, None)
