"""Reading the record: history, trace, compare, check, gc; and the words of plan."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.record.compare import compare, words_of
from pipeline.record.gc import remove, unneeded
from pipeline.record.history import find_run, history, latest_chain
from pipeline.record.trace import served_models, trace
from pipeline.record.trace import words_of as trace_words
from pipeline.runner.identity import digest_of
from pipeline.runner.lease import acquire
from pipeline.runner.store import Artifact, Store
from pipeline.serving import server, service
from pipeline.serving.processes import Mark

MADE_BY = {
    "code": {"commit": "c0ffee", "source_digest": "s" * 64},
    "toolchain": {"name": "core", "lock_digest": "l" * 64, "python": "3.11.7"},
    "machine": {"host": "h", "cores": 2, "processor": "p", "system": "s"},
}


def put(
    store: Store, stage: str, content: str, parents: dict[str, Artifact] | None = None, **settings: Any
) -> Artifact:
    """Publish an artifact with one file, as the runner would."""
    parents = parents or {}
    parts = {
        "stage": {"name": stage, "version": 1},
        "settings": {stage: settings},
        "parents": {name: each.output_digest for name, each in parents.items()},
        "inputs": {"sources.0/docs.jsonl": "d" * 64} if stage == "curate" else {},
    }
    identity = digest_of(parts)
    held = acquire(store.stage_folder(stage), identity[:12], stage, lease_s=5, tell=print)
    (held.folder / "output").mkdir()
    (held.folder / "output" / "weights").write_text(content)
    record = {
        "recipe": store.recipe,
        "stage": stage,
        "identity": identity,
        "parts": parts,
        "parents": {
            name: {
                "stage": each.manifest["stage"],
                "identity": each.identity,
                "path": each.path.name,
                "output_digest": each.output_digest,
            }
            for name, each in parents.items()
        },
        "inputs": {"sources.0/docs.jsonl": {"digest": "d" * 64, "bytes": 5, "path": "docs.jsonl"}}
        if stage == "curate"
        else {},
        "metrics": {"loss": float(len(content)), "inputs": {"sources.0/docs.jsonl": {"records": 3}}},
        "curves": {},
        "headline": f"{stage} of {content}",
        "messages": [],
        "warnings": [],
        "started": "2026-11-20T10:00:00Z",
        "seconds": 1.5,
        "peak_memory_gb": 0.1,
        "attempts": [{}],
        "made_by": MADE_BY,
    }
    try:
        return store.publish(held, stage, identity, record)
    finally:
        held.close()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of a recipe: the older one's train and export are needed by nothing."""
    store = Store(tmp_path, "small")
    data = put(store, "curate", "documents")
    for lr, content in ((1, "old weights"), (2, "new")):
        model = put(store, "train", content, {"data": data}, lr=lr)
        put(store, "export", content, {"data": data, "train": model})
    return tmp_path


def test_a_run_is_found_by_recipe_path_file_and_identity(runs: Path) -> None:
    store = Store(runs, "small")
    newest = store.latest("export")
    stages = ["curate", "train", "export"]
    for words in ("small", str(newest.path), str(newest.path / "weights"), newest.identity[:9]):
        assert [each.manifest["stage"] for each in find_run(words, runs).artifacts] == stages, words
    for words in ("smal", "0123456789", str(runs)):
        with pytest.raises(UserError):
            find_run(words, runs)


def test_a_parent_that_is_gone_is_named(runs: Path) -> None:
    store = Store(runs, "small")
    shutil.rmtree(store.latest("train").path)
    found = history(store.latest("export"))
    assert [each["stage"] for each in found.gone] == ["train"]
    assert "train" in trace_words(trace(str(store.latest("export").path), runs))


def test_trace_goes_back_to_the_data_with_digests_and_counts(runs: Path, tmp_path: Path) -> None:
    found = trace("small", runs)
    assert [step["stage"] for step in found["steps"]] == ["export", "train", "curate"]
    assert found["steps"][-1]["inputs"]["sources.0/docs.jsonl"] == {
        "digest": "d" * 64,
        "bytes": 5,
        "path": "docs.jsonl",
        "records": 3,
    }
    words = trace_words(found)
    assert "3 records" in words
    assert f"lock {'l' * 64}" in words
    assert "train.lr=2" in words
    copy = tmp_path / "elsewhere"
    shutil.copy(Store(runs, "small").latest("train").path / "weights", copy)
    assert trace(str(copy), runs)["copy_of"].startswith("weights of train ")
    copy.chmod(0o644)
    copy.write_text("something else")
    with pytest.raises(UserError, match="was not published by any step"):
        trace(str(copy), runs)


@pytest.fixture
def triton(runs: Path) -> Iterator[str]:
    """What Triton's endpoints say, as recorded from a real server."""
    identity = Store(runs, "small").latest("export").identity
    answers = {
        "/v2": {"name": f"lifecycle-{identity}", "version": "2.60"},
        "/v2/repository/index": [{"name": "assistant", "version": "1", "state": "READY"}],
        "/v2/models/assistant/config": {"parameters": {"lifecycle_identity": {"string_value": identity}}},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def test_trace_starts_from_an_address(runs: Path, triton: str, tmp_path: Path) -> None:
    for address in (triton, f"http://{triton}/"):
        found = trace(address, runs)
        assert found["served"][0]["model"] == "assistant"
        assert found["steps"][0]["stage"] == "export"
        assert found["served"][0]["server"].endswith(found["steps"][0]["identity"])
    with pytest.raises(UserError, match="--runs FOLDER"):
        trace(triton, tmp_path / "other")
    with pytest.raises(UserError, match="no Triton server answers"):
        served_models("127.0.0.1:9")


def test_diff_tells_settings_inputs_and_metrics(runs: Path) -> None:
    store = Store(runs, "small")
    old = next(p for p in store.artifacts("export") if p != store.latest("export").path)
    found = compare(find_run(str(old), runs), latest_chain(store))
    assert found["curate"]["same_artifact"]
    assert found["train"]["settings"] == {"train.lr": (1, 2)}
    assert found["train"]["metrics"] == {"loss": (11.0, 3.0)}
    words = words_of(found)
    assert "train.lr: 1 -> 2" in words
    assert "loss: 11 -> 3 (-72.7%)" in words
    assert "the output of train changed" in words


def test_gc_keeps_the_latest_chain_and_removes_the_rest(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [item.path.parent.name for item in unneeded(runs)] == ["train", "export"]
    assert main(["gc", "--runs", str(runs)]) == 0
    assert "--yes removes them" in capsys.readouterr().out
    assert len(unneeded(runs)) == 2
    assert main(["gc", "--runs", str(runs), "--yes"]) == 0
    assert not unneeded(runs)
    assert [each.manifest["stage"] for each in find_run("small", runs).artifacts] == [
        "curate",
        "train",
        "export",
    ]
    assert not list(runs.rglob(".trash-*"))


def record_of(store: Store, artifact: Artifact, boot: str, before: Artifact | None = None) -> None:
    own = dataclasses.replace(Mark.of(os.getpid()), boot=boot)
    version = server.ServerRecord(
        pid=own.pid, start_time=own.start_time, boot=boot, host="127.0.0.1", http_port=1, grpc_port=2,
        metrics_port=3, model_name="m", export_identity=artifact.identity,
        repository=str(artifact.path / "repository"), log="", shm_prefix="x",
    )  # fmt: skip
    gateway = service.Gateway(
        process=own, host="127.0.0.1", http_port=1, grpc_port=2, metrics_port=3, tls_certificate=None,
        needs_key=False, control="", settings="", log="",
    )  # fmt: skip
    previous = [service.Earlier(before.identity, str(before.path))] if before else []
    service.write(
        store.server_record(), service.Service(gateway, version, str(artifact.path), {}, previous, keeper=own)
    )


def test_gc_never_touches_what_a_live_server_uses(runs: Path) -> None:
    store = Store(runs, "small")
    old = next(p for p in store.artifacts("export") if p != store.latest("export").path)
    # On another machine that shares the disk: nothing here proves that it is gone.
    record_of(store, find_run(str(old), runs).artifacts[-1], boot="another")
    assert not unneeded(runs)
    # What was served before is where `rollback` goes.
    latest = store.latest("export")
    assert latest is not None
    record_of(store, latest, "another", before=find_run(str(old), runs).artifacts[-1])
    assert not unneeded(runs)


def test_gc_never_touches_what_a_step_at_work_reads(runs: Path) -> None:
    store = Store(runs, "small")
    listed = unneeded(runs)
    held = acquire(store.stage_folder("align"), "f" * 12, "align", lease_s=30, tell=print)
    old = next(p for p in store.artifacts("train") if p != store.latest("train").path)
    (held.folder / "job.json").write_text(json.dumps({"inputs": {"train": str(old)}}))
    assert [item.path.parent.name for item in unneeded(runs)] == ["export"]
    remove(listed, runs)  # needed since it was listed
    assert old.exists()
    held.close()


@pytest.mark.parametrize(
    "harm", ["missing", "broken", "loop", "no manifest", "torn manifest", "locked manifest"]
)
@pytest.mark.parametrize("stage", ["curate", "train", "export"])
def test_gc_never_takes_what_is_whole_of_a_stage_whose_latest_cannot_be_read(
    runs: Path, stage: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(runs, "small")
    link = store.stage_folder(stage) / "latest"
    newest = link.resolve()
    if harm in ("missing", "broken", "loop"):
        link.unlink()
        if harm != "missing":
            link.symlink_to("latest" if harm == "loop" else "f" * 12)
    elif harm == "no manifest":
        (newest / "manifest.json").unlink()
    elif harm == "torn manifest":
        (newest / "manifest.json").write_text('{"stage": ')
    else:
        whole = Path.read_text

        def locked(path: Path, *arguments: object, **more: object) -> str:
            if path == newest / "manifest.json":
                raise PermissionError(13, "Permission denied", str(path))
            return whole(path, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "read_text", locked)
    before = set(store.artifacts(stage))
    remove(unneeded(runs), runs)
    assert set(store.artifacts(stage)) == before


def test_gc_takes_interrupted_work_and_quarantine_only_by_name(runs: Path) -> None:
    store = Store(runs, "small")
    remove(unneeded(runs), runs)
    held = acquire(store.stage_folder("train"), "f" * 12, "train", lease_s=30, tell=print)
    held.close()
    strange = store.root / "train" / "strange"
    strange.mkdir()
    store.quarantine(strange, "a test")
    assert not unneeded(runs)
    assert [item.what for item in unneeded(runs, interrupted=True)] == ["interrupted work"]
    assert [item.what for item in unneeded(runs, quarantined=True)] == ["quarantine"]


def test_verify_names_the_file_and_ends_with_1(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Under the name of a recipe that exists.
    (runs / "small").rename(runs / "llama-tiny")
    assert main(["verify", "llama-tiny", "--runs", str(runs)]) == 0
    weights = Store(runs, "llama-tiny").latest("train").path / "weights"
    weights.chmod(0o644)
    weights.write_text("nex")
    assert main(["verify", "llama-tiny", "--runs", str(runs)]) == 1
    assert "weights is not what was published (its bytes changed)" in capsys.readouterr().out
    assert main(["verify", "llama-tiny", "--runs", str(runs), "--quarantine"]) == 1
    assert main(["verify", "llama-tiny", "--runs", str(runs)]) == 0
    assert "found damaged" in next((runs / "llama-tiny" / "quarantine").glob("*/reason.json")).read_text()
