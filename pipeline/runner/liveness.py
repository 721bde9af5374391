"""Is the recipe's server there, healthy, and serving what it should?"""

from __future__ import annotations

from pathlib import Path

from pipeline import schema
from pipeline.serving import service


def deployment_fault(record_path: Path, settings: schema.Deploy, export_identity: str) -> str | None:
    """Why the deployed server must be started anew, in words; None where all is well."""
    record = service.read(record_path)
    if record is None:
        return "no server is running"
    if not service.gateway_runs(record.gateway):
        return f"the gateway (process {record.gateway.process.pid}) is gone"
    if record.identity != export_identity:
        return "the server serves another export"
    other = service.changed(record.gateway, settings)
    if other:
        return f"the gateway runs with other settings: {', '.join(other)}"
    if not service.keeper_runs(record):
        return "its keeper is gone"
    found = service.fault(record)
    return f"the server does not answer: {found}" if found else None
