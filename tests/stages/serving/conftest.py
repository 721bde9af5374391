"""A miniature recipe's export and its deployed server, made once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.serving import service
from tests.miniature import make_inputs, port_settings, run_stage


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def exported(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published output of the export stage."""
    work = tmp_path_factory.mktemp("export") / "work"
    status, told = run_stage("export", work, inputs, {})
    assert status == 0, told + (work / "log.txt").read_text()
    return work / "output"


@pytest.fixture(scope="session")
def deployed(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A running server of the export, stopped at the end."""
    folder = tmp_path_factory.mktemp("deploy")
    path = folder / "server.json"
    status, told = run_stage(
        "deploy", folder / "work", {"export": exported}, port_settings(), {"server_record": str(path)}
    )
    assert status == 0, told
    record = service.read(path)
    assert record is not None
    yield record
    service.stop(record)
