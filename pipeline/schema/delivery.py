"""The settings of evaluation, the gate, export and deployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.schema.declare import setting


@dataclass
class Evaluate:
    """Base, fine-tuned and aligned model side by side on the held-out split."""

    max_documents: int = setting(1500, "held-out documents for perplexity", ge=1)
    max_pairs: int = setting(1000, "held-out instruction pairs, and preference pairs of each kind", ge=1)
    generations: int = setting(300, "greedy answers checked against the house style", ge=1)
    shown: int = setting(5, "answers printed in full", ge=0)
    max_new_tokens: int = setting(48, "longest generated answer, in tokens", ge=1)
    bootstrap: int = setting(2000, "resamples of a confidence interval", ge=100)
    attributes: dict[str, Any] = setting(
        {},
        "value (0 to 4) that is asked for of each of train.attributes: in evaluation, in the stages that go on "
        "from the fine-tuned model, and by the exported chat template",
    )
    batch_size: int = setting(64, "sequences per forward pass", ge=1, identity=False)


@dataclass
class Gate:
    """When the aligned model counts as worse than its parent; stops the chain before export."""

    max_answer_loss_rise: float = setting(
        0.07, "largest relative rise of the answer loss (end token excluded) over the parent", ge=0
    )
    max_content_accuracy_fall: float = setting(
        0.0, "largest fall of content accuracy beyond the paired 95% interval", ge=0, le=1
    )
    min_style_accuracy_rise: float = setting(
        0.0, "smallest rise of style preference accuracy over the parent", ge=-1, le=1
    )
    override_reason: str | None = setting(
        None, "go on although the gate is closed; the reason is recorded in the export's manifest"
    )


@dataclass
class Export:
    """One bundle, and the repository of the serving target."""

    target: str = setting("cpu-openvino", "what serves the model", choices=("cpu-openvino",))
    weights: str = setting("fp32", "weight precision of the served model", choices=("fp32", "int8"))
    model_name: str = setting("assistant", "the model's name on the server")
    parity_prompts: int = setting(64, "held-out prompts of the parity check", ge=50)
    parity_tokens: int = setting(24, "greedy tokens compared per prompt", ge=1)
    max_new_tokens: int = setting(64, "answer length when a request names none", ge=1)
    kv_cache_gb: int = setting(1, "memory of the server's key-value cache", ge=1)


@dataclass
class Deploy:
    """The Triton server: where it listens and how long it may take to answer."""

    host: str = setting("127.0.0.1", "address to listen on; loopback unless set", identity=False)
    http_port: int = setting(8000, "HTTP port", ge=1, le=65535, identity=False)
    grpc_port: int = setting(8001, "gRPC port", ge=1, le=65535, identity=False)
    metrics_port: int = setting(8002, "Prometheus port", ge=1, le=65535, identity=False)
    start_timeout_s: int = setting(120, "longest wait for the first answer", ge=1, identity=False)
