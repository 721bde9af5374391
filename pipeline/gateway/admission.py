"""Who may ask now: so many requests at once over all clients, and so many a minute of each."""

from __future__ import annotations

import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from pipeline.gateway.asks import Caller
from pipeline.gateway.errors import GatewayError
from pipeline.gateway.settings import Limits

RETRY_S = 1.0  # when there may be room again


class Admission:
    """Counts; :meth:`enter` before a request, :meth:`leave` after it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inside = 0
        self._rate = (
            RateLimitItemPerMinute(limits.requests_per_minute) if limits.requests_per_minute else None
        )
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def enter(self, caller: Caller) -> None:
        """Count a request.  Raises :class:`GatewayError`: 429 for a caller's own rate, 503 for all of them."""
        if self._rate is not None and not await self._limiter.hit(self._rate, caller.name):
            window = await self._limiter.get_window_stats(self._rate, caller.name)
            raise GatewayError(
                429,
                f"{self._rate.amount} requests a minute are allowed, and you have had them",
                code="rate_limit_exceeded",
                reason="rate_limited",
                retry_after=max(1.0, window.reset_time - time.time()),
            )
        if self.inside >= self.limits.max_requests:
            raise GatewayError(
                503,
                f"{self.inside} requests are under way, which is as many as are taken; try again",
                code="overloaded",
                reason="overloaded",
                retry_after=RETRY_S,
            )
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1
