"""Is the recipe's server there, healthy, and serving what it should?"""

from __future__ import annotations

from pathlib import Path

from pipeline import schema
from pipeline.serving.server import is_running, probe, read

PROBE_TIMEOUT_S = 10.0


def deployment_fault(record_path: Path, settings: schema.Deploy, export_identity: str) -> str | None:
    """Why the deployed server must be started anew, in words; None where all is well.

    Health is a real generation: Triton's own readiness stays true after the process
    behind a model has died.
    """
    record = read(record_path)
    if record is None:
        return "no server is running"
    if not is_running(record):
        return f"the server (process {record.pid}) is gone"
    if record.export_identity != export_identity:
        return "the server serves an earlier export"
    wanted = (settings.host, settings.http_port, settings.grpc_port, settings.metrics_port)
    if (record.host, record.http_port, record.grpc_port, record.metrics_port) != wanted:
        return f"the server listens on {record.host}:{record.http_port}, the settings ask for {wanted[0]}:{wanted[1]}"
    answer = probe(record, PROBE_TIMEOUT_S)
    return None if answer.ok else f"the server does not answer: {answer.reason}"
