"""Is the model alive?  Only a generation can tell: Triton stays "ready" after a model's process has died.

Each model of the current version is asked for one token whenever nobody else has had one from it for a while.  A model
that fails is asked by no client until it answers again, and what is under way on it ends with an error that says so.
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
from pipeline.gateway.versions import Model, Version, Versions

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
        for model in version.models.values():
            now = asyncio.get_running_loop().time()
            if not model.fault and now - model.lived < self.settings.probe_every_s:
                continue
            try:
                await self.probe(version, model)
            except GatewayError as error:
                waits = error.outcome == "timeout" and self._busy(model)
                # Others may have had their tokens meanwhile: then it was only slow.
                if not waits and model.lived <= now:
                    self._down(version, model, error.message)
            else:
                self._up(version, model)

    def _busy(self, model: Model) -> bool:
        """Whether a probe may only be waiting its turn: clients ask, and the model is not silent beyond their limits."""
        limits = self.settings.limits
        silent = asyncio.get_running_loop().time() - model.lived
        return model.under_way > 0 and silent < max(limits.first_token_s, limits.between_tokens_s)

    async def admit(self, version: Version) -> None:
        """Ask each model of a new version for a token.  Raises :class:`GatewayError` where one does not give it."""
        for model in version.models.values():
            await self.probe(version, model)

    async def probe(self, version: Version, model: Model) -> None:
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

    def _down(self, version: Version, model: Model, why: str) -> None:
        if not model.fault:
            LOG.error("%s of version %s does not answer: %s", model.name, version.identity[:12], why)
        model.fault = why
        model.give_up(f"the model stopped answering: {why}")
        self._measure(version)

    def _up(self, version: Version, model: Model) -> None:
        if model.fault:
            model.fault = ""
            LOG.info("%s of version %s answers", model.name, version.identity[:12])
            self._measure(version)
