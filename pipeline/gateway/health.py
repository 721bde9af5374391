"""Is the model alive?  Only a generation can tell: Triton stays "ready" after a model's process has died.

The current version is asked for one token whenever nobody else has had one from it for a while.  A version that
fails is asked by no client until it answers again, and what is under way on it ends with an error that says so.
A token that only does not come in time is no failure while clients wait for theirs within their limits: an engine
may be reading a long prompt, or serve one request after another.
"""

from __future__ import annotations

import asyncio
import logging

from pipeline.gateway.errors import GatewayError
from pipeline.gateway.metrics import Metrics
from pipeline.gateway.settings import Settings
from pipeline.gateway.upstream import Upstream
from pipeline.gateway.versions import Version, Versions

LOG = logging.getLogger("lifecycle.gateway")


class Health:
    """Probes, and what follows from them."""

    def __init__(self, settings: Settings, versions: Versions, upstream: Upstream, metrics: Metrics) -> None:
        self.settings, self.versions, self.upstream, self.metrics = settings, versions, upstream, metrics

    async def watch(self) -> None:
        """Probe the current version for ever."""
        while True:
            version = self.versions.current
            if version is not None and not self.versions.closing:
                await self.look(version)
            await asyncio.sleep(self.settings.probe_every_s)

    async def look(self, version: Version) -> None:
        """Probe each model that has given nobody a token for a while, and act on what is found."""
        now = asyncio.get_running_loop().time()
        for model in version.behind():
            if not version.fault and now - version.lives.get(model, 0.0) < self.settings.probe_every_s:
                continue
            try:
                await self.probe(version, model)
            except GatewayError as error:
                waits = error.outcome == "timeout" and self._busy(version, model)
                # Others may have had their tokens meanwhile: then it was only slow.
                if not waits and version.lives.get(model, 0.0) <= now:
                    self._down(version, error.message)
                return
        if version.fault:
            version.fault = ""
            LOG.info("version %s answers", version.identity[:12])
            self._measure(version)

    def _busy(self, version: Version, model: str) -> bool:
        """Whether a probe may only be waiting its turn: clients ask, and the model is not silent beyond their limits."""
        limits = self.settings.limits
        silent = asyncio.get_running_loop().time() - version.lives.get(model, 0.0)
        return version.under_way > 0 and silent < max(limits.first_token_s, limits.between_tokens_s)

    async def admit(self, version: Version) -> None:
        """Ask each model of a new version for a token.  Raises :class:`GatewayError` where one does not give it."""
        for model in version.behind():
            await self.probe(version, model)

    async def probe(self, version: Version, model: str) -> None:
        """Raises :class:`GatewayError` where a generation fails."""
        try:
            await self.upstream.probe(version, model, self.settings.probe_timeout_s)
        except GatewayError:
            self.metrics.probe_failures.labels(version.identity).inc()
            raise

    def switch(self, version: Version) -> None:
        """Let clients ask this version from now on."""
        before = self.versions.switch(version)
        for name in before.settings.models if before else ():
            self.metrics.info.remove(before.identity, name)  # type: ignore[union-attr]
        if before is not None and before.identity != version.identity:
            self.metrics.healthy.remove(before.identity)
        self.metrics.switches.inc()
        self._measure(version)
        LOG.info("version %s is asked from now on", version.identity[:12])

    def _measure(self, version: Version) -> None:
        if version is self.versions.current:
            self.metrics.healthy.labels(version.identity).set(0 if version.fault else 1)
            for name in version.settings.models:
                self.metrics.info.labels(version.identity, name).set(1)

    def _down(self, version: Version, why: str) -> None:
        if not version.fault:
            LOG.error("version %s does not answer: %s", version.identity[:12], why)
        version.fault = why
        version.give_up(f"the model stopped answering: {why}")
        self._measure(version)
