"""The account of one request: what the metrics and the log are told of it."""

from __future__ import annotations

import logging
import time

from pipeline import strict_json
from pipeline.gateway.asks import Ask, Caller, Event
from pipeline.gateway.errors import GatewayError
from pipeline.gateway.metrics import Metrics

LOG = logging.getLogger("lifecycle.gateway")


class Passage:
    """Counts one request from its arrival (now) to :meth:`end`; ``known`` says whether its model exists."""

    def __init__(self, metrics: Metrics, ask: Ask, caller: Caller, known: bool) -> None:
        self._metrics, self._ask, self._caller = metrics, ask, caller
        self._model = ask.model if known else "unknown"
        self._began = self._last = time.perf_counter()
        self._first: float | None = None
        self._prompt = self._tokens = 0
        self._taken = False
        self._outcome, self._status = "cancelled", 200  # where nobody takes the answer to its end

    def taken(self) -> None:
        """It has been admitted, and waits for its first token."""
        self._of_model = self._metrics.of_model(self._model)
        self._taken = True
        self._of_model.waiting.inc()

    def count(self, event: Event) -> None:
        """An event goes to the client."""
        more = event.completion_tokens - self._tokens
        if more > 0:
            now = time.perf_counter()
            if self._first is None:
                self._first = now - self._began
                self._of_model.first_token.observe(self._first)
                self._of_model.waiting.dec()
                self._of_model.running.inc()
            else:
                self._of_model.between.observe((now - self._last) / more)
            self._of_model.generated_tokens.inc(more)
            self._last, self._tokens = now, event.completion_tokens
        if event.prompt_tokens and not self._prompt:
            self._prompt = event.prompt_tokens
            self._of_model.prompt_tokens.inc(self._prompt)
        if event.finish_reason:
            self._outcome = "cancelled" if event.finish_reason == "cancelled" else "ok"

    def fail(self, error: GatewayError) -> None:
        """It ends with an error."""
        self._outcome, self._status = error.outcome, error.status

    def end(self, log: bool) -> None:
        """It is over."""
        took = time.perf_counter() - self._began
        if self._taken:
            (self._of_model.waiting if self._first is None else self._of_model.running).dec()
            self._of_model.whole.observe(took)
        self._metrics.requests.labels(self._model, self._ask.api, self._outcome).inc()
        if log:  # never what was asked or answered
            line = {
                "api": self._ask.api,
                "model": self._model,
                "caller": self._caller.name,
                "outcome": self._outcome,
                "status": self._status,
                "first_token_ms": None if self._first is None else round(self._first * 1000, 1),
                "ms": round(took * 1000, 1),
                "prompt_tokens": self._prompt,
                "tokens": self._tokens,
            }
            LOG.info(strict_json.dumps(line))
