"""What is measured, as Prometheus reads it.

Triton's own counters of a streamed model hold no time to the first token and call a cancelled request a success:
times, tokens and outcomes are counted here, where a client's view is.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from pipeline.gateway.errors import GatewayError

FIRST_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)  # fmt: skip
BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
WHOLE = (0.01, 0.05, 0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 240, 600)


class Metrics:
    """All of the gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"lifecycle_{name}", what, labels, registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"lifecycle_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"lifecycle_{name}", what, ("model",), buckets=buckets, registry=registry)

        self.waiting = gauge("requests_waiting", "Requests accepted that have no token yet", "model")
        self.running = gauge("requests_running", "Requests whose tokens are coming", "model")
        self.requests = counter("requests", "Requests that are over", "model", "api", "outcome")
        self.refusals = counter("refusals", "Requests refused", "reason")
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token", FIRST_TOKEN
        )
        self.between = histogram("inter_token_latency_seconds", "From a token to the next", BETWEEN)
        self.whole = histogram("request_duration_seconds", "From a request's arrival to its end", WHOLE)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts", "model")
        self.generated_tokens = counter("generated_tokens", "Tokens generated", "model")
        self.healthy = gauge(
            "version_healthy", "Whether the last probe, a real generation, passed", "identity"
        )
        self.info = gauge("version_info", "The version that is asked", "identity", "model")
        self.probe_failures = counter("probe_failures", "Probes that failed", "identity")
        self.switches = counter("version_switches", "Times that another version was put in the place of one")
        self._of_model: dict[str, OfModel] = {}

    def refused(self, error: GatewayError) -> None:
        """A client is told that its request is not answered: once a request, where it is told."""
        if error.reason:
            self.refusals.labels(error.reason).inc()

    def of_model(self, model: str) -> OfModel:
        """The metrics of one model, looked up once: a label's lookup costs as much as an observation."""
        if model not in self._of_model:
            self._of_model[model] = OfModel(self, model)
        return self._of_model[model]


class OfModel:
    """One model's children of the metrics that are touched for every request or token."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.waiting = metrics.waiting.labels(model)
        self.running = metrics.running.labels(model)
        self.first_token = metrics.first_token.labels(model)
        self.between = metrics.between.labels(model)
        self.whole = metrics.whole.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generated_tokens = metrics.generated_tokens.labels(model)
