"""Trackers are told what a step's record says, through a kill, and nothing besides."""

from __future__ import annotations

import json
import os
import platform
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Lifecycle, free_ports
from mlflow import MlflowClient
from tensorboardX.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

Points = dict[int, float]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an MLflow server on loopback."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    port = free_ports().split("=")[-1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--default-artifact-root", str(tmp_path / "mlflow")]
    address = f"http://127.0.0.1:{port}"
    with open(tmp_path / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=2).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
            else:
                raise AssertionError((tmp_path / "server.log").read_text())
            yield address
        finally:
            os.killpg(process.pid, 15)
            process.wait(20)


def in_events(lifecycle: Lifecycle, stage: str) -> dict[str, Points]:
    """The metrics of a finished step by name, as its record has them."""
    name = lifecycle.latest(stage).name
    found: dict[str, Points] = {}
    lines = (lifecycle.runs / "llama-mini" / stage / ".logs" / name / "events.jsonl").read_text().splitlines()
    for event in map(json.loads, lines):
        for key, value in event["values"].items() if event["kind"] == "metric" else ():
            found.setdefault(key, {})[event["step"]] = value
    return found


def in_tensorboard(folder: Path) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def log_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """The records of a LevelDB log behind a header of 7 bytes, which is how offline runs are kept."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # no room for a header: the block is filled up
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a record of one piece, or the last piece of one
            yield whole
            whole = b""


def in_wandb(folder: Path) -> tuple[dict[str, Points], set[str]]:
    """The figures of the offline runs, and the runs' ids."""
    found: dict[str, Points] = {}
    ids = set()
    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        for data in log_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                assert record.run.host == "withheld"
            if record.WhichOneof("record_type") == "history":
                items = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                for key, value in items.items():
                    if not key.startswith("_"):
                        found.setdefault(key, {})[int(items["_step"])] = value
    return found, ids


def close(told: dict[str, Points], known: dict[str, Points], tolerance: float) -> None:
    for key, points in known.items():
        assert told[key].keys() == points.keys(), key
        assert told[key] == pytest.approx(points, rel=tolerance), key


def test_all_trackers_know_what_the_record_knows(
    chain: Lifecycle, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 32 + "feedface")
    other = chain.copy(tmp_path, ("curate",))
    settings = f"tracking.tensorboard=true tracking.wandb=lifecycle tracking.mlflow={server}"
    other.kill_step("pretrain", settings=settings)
    said = other("pretrain", settings=settings)
    assert "a tracker" not in said
    made = json.loads((other.latest("pretrain") / "manifest.json").read_text())
    # Who is told is no part of what a step is, nor of what comes out.
    before = json.loads((chain.latest("pretrain") / "manifest.json").read_text())
    assert (made["identity"], made["output_digest"]) == (before["identity"], before["output_digest"])

    known = in_events(other, "pretrain")
    assert max(known["loss"]) == 60
    assert "validation_loss" in known
    folder = other.runs / "llama-mini" / "tracking"
    told = in_tensorboard(folder / "tensorboard" / f"pretrain-{made['identity'][:12]}")
    close(told, known, 1e-6)
    assert told["final/parameters"] == {60: made["metrics"]["parameters"]}

    told, ids = in_wandb(folder / "wandb")
    close(told, known, 1e-12)
    assert ids == {made["identity"][:32]}  # one run, gone on with
    for file in (folder / "wandb").rglob("*"):  # the figures are sent, and not the machine
        assert file.name != "requirements.txt"
        if file.suffix == ".wandb":
            assert platform.release().encode() not in file.read_bytes()

    client = MlflowClient(tracking_uri=server)
    place = client.get_experiment_by_name("llama-mini").experiment_id
    (run,) = client.search_runs([place])
    assert run.info.status == "FINISHED"
    assert run.data.params["pretrain.lr"] == "0.005"
    assert run.data.metrics["final/parameters"] == made["metrics"]["parameters"]
    told = {
        key: {point.step: point.value for point in client.get_metric_history(run.info.run_id, key)}
        for key in known
    }
    close(told, known, 1e-12)
    for file in other.runs.rglob("*"):
        assert not file.is_file() or b"feedface" not in file.read_bytes(), file
    assert "everything is needed" in other.record("gc")
    other("verify")


def test_a_server_that_is_not_there_is_told_before_the_step_starts(chain: Lifecycle, tmp_path: Path) -> None:
    other = chain.copy(tmp_path, ("curate",))
    nobody = f"http://127.0.0.1:{free_ports().split('=')[-1]}"
    began = time.monotonic()
    said = other("pretrain", settings=f"tracking.mlflow={nobody}", code=2)
    assert "tracking: MlflowException" in said
    assert "Nothing was started" in said
    assert time.monotonic() - began < 60
    assert not (other.runs / "llama-mini" / "pretrain" / "latest").exists()
