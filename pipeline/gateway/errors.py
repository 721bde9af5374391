"""What can go wrong with a request, as a client is told of it: in OpenAI's shape, or in Triton's.

https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"
LONGEST = 500  # characters of a message: gRPC sends it in 8 KiB, a character in up to 12 bytes


class GatewayError(Exception):
    """A request that is not answered, or not to its end.

    ``status`` is HTTP's; ``kind``, ``code`` and ``param`` are OpenAI's ``type``, ``code`` and ``param``;
    ``outcome`` is what the metrics call it; ``retry_after`` in seconds, where trying again can help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        outcome: str = "refused",
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 3]}..."
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = INVALID if status < 500 else SERVER
        self.code = code
        self.param = param
        self.outcome = outcome
        self.reason = reason
        self.retry_after = retry_after

    def openai(self) -> dict[str, Any]:
        """The body that OpenAI's clients read."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def triton(self) -> dict[str, Any]:
        """The body that Triton's clients read."""
        return {"error": self.message}

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, round(self.retry_after)))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status >= 500 and self.retry_after is None:
            found["x-should-retry"] = "false"  # OpenAI's clients would ask twice more
        return found


def invalid(message: str, param: str | None = None, code: str | None = None) -> GatewayError:
    """The request itself is wrong."""
    return GatewayError(400, message, param=param, code=code, reason="invalid")


def too_large(most: int) -> GatewayError:
    """The request has more bytes than are taken."""
    return GatewayError(
        413,
        f"the request's body is larger than the {most} bytes that are taken",
        code="request_too_large",
        reason="too_large",
    )


def unavailable(message: str, retry_after: float | None = 1.0) -> GatewayError:
    """There is nobody to answer now."""
    return GatewayError(503, message, code="unavailable", reason="unavailable", retry_after=retry_after)


def failed(message: str, *, status: int = 500) -> GatewayError:
    """The model's side broke off or broke down."""
    return GatewayError(status, message, code="internal_error", outcome="failed")


def timed_out(message: str) -> GatewayError:
    """An answer, or the next token of it, did not come in time."""
    return GatewayError(504, message, code="timeout", outcome="timeout")
