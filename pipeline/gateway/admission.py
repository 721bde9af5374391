"""Who may ask now: so many requests at once over all clients, and so many a minute of each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from pipeline.gateway.asks import Caller
from pipeline.gateway.errors import GatewayError, invalid
from pipeline.gateway.settings import Limits

RETRY_S = 1.0  # when there may be room again


class Admission:
    """Counts the requests inside."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inside = 0
        self._rate = (
            RateLimitItemPerMinute(limits.requests_per_minute) if limits.requests_per_minute else None
        )
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    @contextlib.asynccontextmanager
    async def enter(self, caller: Caller, weight: int = 1) -> AsyncIterator[None]:
        """Be inside as so many requests.

        Raises :class:`GatewayError`: 400 for more than there can ever be, 503 for too many of all callers, 429 for too
        many of this one.  Only those that are let in count for a caller's rate.
        """
        most = min(self.limits.max_requests, self.limits.requests_per_minute or weight)
        if weight > most:
            raise invalid(f"this is {weight} requests in one, and {most} are taken at most", "n")
        if self.inside + weight > self.limits.max_requests:
            raise GatewayError(
                503,
                f"{self.inside} requests are under way, and {self.limits.max_requests} are taken at most; try again",
                code="overloaded",
                reason="overloaded",
                retry_after=RETRY_S,
            )
        self.inside += weight
        try:
            await self._keep_rate(caller, weight)
            yield
        finally:
            self.inside -= weight

    async def _keep_rate(self, caller: Caller, weight: int) -> None:
        if self._rate is None or not weight or await self._limiter.hit(self._rate, caller.name, cost=weight):
            return
        window = await self._limiter.get_window_stats(self._rate, caller.name)
        raise GatewayError(
            429,
            f"{self._rate.amount} requests a minute are allowed, and you have had them",
            code="rate_limit_exceeded",
            reason="rate_limited",
            retry_after=max(1.0, window.reset_time - time.time()),
        )
