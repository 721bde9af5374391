"""The soak in its short form: half a minute of mixed load, no failed answer, flat memory (``make soak`` takes half an hour)."""

from __future__ import annotations

import asyncio

from benchmarks.soak import soak
from pipeline.serving import processes, server, service
from tests.gateway.deploy_miniature import KEYS

MINUTES = 0.5
CACHE_MB = 1100.0  # export.kv_cache_gb, touched bit by bit


def test_half_a_minute_of_mixed_load(deployed: service.Service) -> None:
    members = processes.of_session(deployed.version.pid)
    stub = next(process.pid for process in members if server.STUB in process.command[0])
    pids = {"gateway": deployed.gateway.process.pid, "tritonserver": deployed.version.pid, "model": stub}
    texts = [f"What does `socket.x{number}` do?" for number in range(200)]
    report = asyncio.run(
        soak(
            deployed.gateway.url,
            deployed.version.model_name,
            pids,
            texts,
            MINUTES,
            key=KEYS["alice"],
            every_s=1.0,
            filling={"model": CACHE_MB},
        )
    )
    assert len(report.answers) > 150
    assert report.faults() == []
