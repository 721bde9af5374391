"""Sources in an object store: a server that speaks S3 on loopback, read through fsspec."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import Lifecycle, free_ports

SECRET = "not-to-be-written-down-4711"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server whose address and keys are in the environment, as users have them."""
    port = free_ports().split("=")[-1]
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for _ in range(150):
                try:
                    urllib.request.urlopen(address, timeout=2).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
            yield boto3.client("s3")
        finally:
            server.terminate()
            server.wait(10)


def lines(start: int, count: int) -> bytes:
    rows = [
        {"text": f"Document {n} tells of the number {n * n} and of little else.", "title": f"about {n}"}
        for n in range(start, start + count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_bucket_is_a_folder(store: Any, tmp_path: Path) -> None:
    store.create_bucket(Bucket="corpus")
    packed = gzip.compress(lines(100, 400))
    for name, body in {
        "web/a.jsonl": lines(0, 40),
        "web/deeper/b.jsonl.gz": gzip.compress(lines(40, 30)),
        "web/deeper/cut-short.jsonl.gz": packed[: len(packed) // 2],
        "web/notes.csv": b"not,read\n",
        "elsewhere/c.jsonl": lines(1000, 5),
    }.items():
        store.upload_fileobj(io.BytesIO(body), "corpus", name)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "stages: [curate]\ncurate:\n  pairs: false\n  max_bad_share: 0.5\n"
        "  stages: [UnicodeReformatter, exact-duplicates]\n"
        "  sources: [{kind: jsonl, path: 's3://corpus/web', name: web}]\n"
    )
    lifecycle = Lifecycle(tmp_path / "runs", "model.vocab_size=300")
    said = lifecycle("curate", recipe=str(recipe))
    folder = lifecycle.latest("curate", "mine")
    counts = json.loads((folder / "report.json").read_text())["documents"]
    quarantined = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    # The documents of the whole files, and those of the cut one before it ends.
    assert counts["kept"] == counts["raw"] > 70
    assert len(quarantined) == 1
    assert "cut-short.jsonl.gz" in json.dumps(quarantined[0])
    assert "ends in the middle" in quarantined[0]["reason"]
    assert "done" in lifecycle("plan", recipe=str(recipe))

    store.upload_fileobj(io.BytesIO(lines(0, 41)), "corpus", "web/a.jsonl")
    assert "input a.jsonl changed" in lifecycle("plan", recipe=str(recipe))
    written = [said.encode()]
    written += [
        Path(root, name).read_bytes() for root, _, names in os.walk(tmp_path / "runs") for name in names
    ]
    assert not any(SECRET.encode() in each for each in written)


def test_what_is_wrong_with_an_address_is_told_in_a_line(store: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    lifecycle = Lifecycle(tmp_path / "runs", "model.vocab_size=300")
    store.create_bucket(Bucket="empty")
    for address, reason in {
        "s3://no-such-bucket/web": "no-such-bucket",
        "s3://empty/web": "holds no file",
        "s4://corpus/web": "s4",
    }.items():
        recipe.write_text(f"stages: [curate]\ncurate: {{pairs: false, sources: [{{path: '{address}'}}]}}\n")
        said = lifecycle("curate", recipe=str(recipe), code=2)
        assert "cannot be listed" in said
        assert reason in said
        assert "Traceback" not in said
