"""The settings of evaluation, the gate, export and deployment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.gateway.settings import LARGEST_BODY
from pipeline.schema.declare import setting
from pipeline.serving.targets import CPU_OPENVINO, PRECISIONS, TARGETS, TRTLLM


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
    max_given_accuracy_fall: float = setting(
        0.0,
        "largest fall of the accuracy on pairs of the user's own beyond the paired 95% interval",
        ge=0,
        le=1,
    )
    min_style_accuracy_rise: float = setting(
        0.0, "smallest rise of style preference accuracy over the parent", ge=-1, le=1
    )
    min_pairs: int | None = setting(
        None,
        "fewest held-out answers, and held-out pairs of each kind, that a verdict may rest on; "
        "not said: 20, or evaluate.max_pairs where that is less, and never fewer than 5",
        ge=1,
    )
    override_reason: str | None = setting(
        None, "go on although the gate is closed; the reason is recorded in the export's manifest"
    )


@dataclass
class Serving:
    """How a GPU target serves: the settings of its engine that the export writes down."""

    tensor: int = setting(1, "GPUs that a layer is cut over", ge=1)
    pipeline: int = setting(1, "groups of layers, each on GPUs of its own", ge=1)
    kv_cache_fraction: float = setting(
        0.9,
        "share of the free GPU memory for keys and values (vllm: of all memory, for everything)",
        gt=0,
        le=1,
    )
    kv_cache_reuse: bool = setting(
        True, "keep the keys and values of a prompt's beginning for the next request"
    )
    chunked_prefill: bool = setting(True, "read a long prompt in pieces, between other requests' tokens")
    max_batch_size: int = setting(256, "requests at once", ge=1)
    max_num_tokens: int = setting(8192, "tokens of a step, over all requests", ge=1)
    max_length: int | None = setting(
        None, "tokens of a prompt and its answer (null: the model's context)", ge=1
    )
    speculative: dict[str, Any] = setting(
        {}, "trtllm: the LLM API's speculative_config, e.g. {decoding_type: NGram, max_draft_len: 4, ...}"
    )
    max_lora_rank: int = setting(64, "largest rank of an adapter", ge=1)
    arguments: dict[str, Any] = setting(
        {}, "further arguments by the engine's own names (TensorRT-LLM's LLM(), vLLM's engine)"
    )


@dataclass
class Export:
    """One bundle, and the repository of the serving target."""

    target: str = setting(
        "auto",
        "what serves the model; auto: trtllm where launch.gpus says that the recipe is made for GPUs, else "
        "cpu-openvino",
        choices=("auto", *TARGETS),
    )
    weights: str = setting(
        "auto",
        "weight precision of the served model; auto: fp32 on cpu-openvino, bf16 else",
        choices=("auto", *PRECISIONS),
    )
    kv_cache: str = setting(
        "auto", "precision of keys and values (fp8: GPU targets)", choices=("auto", "fp8")
    )
    gpu: str | None = setting(None, "kind of GPU that will serve, e.g. H100: what it cannot run is refused")
    serving: Serving = field(default_factory=Serving)
    model_name: str = setting("assistant", "the model's name on the server")
    adapters: dict[str, Any] = setting(
        {},
        "LoRA adapters: name to PEFT folder; chosen by a request (trtllm, vllm), or merged and a model of that name "
        "(cpu-openvino)",
        identity=False,
    )
    parity_prompts: int = setting(
        200, "held-out prompts of the parity check; where curation has fewer, all of them", ge=1
    )
    parity_tokens: int = setting(24, "greedy tokens compared per prompt", ge=1)
    tolerance: dict[str, Any] = setting(
        {},
        "what the export may cost, where it is not what the precision has (pipeline/stages/export/parity.py): "
        "different (share of greedy answers), top1_agreement, kl (nats a token), perplexity (relative rise)",
    )
    perplexity_documents: int = setting(200, "held-out documents of the perplexity before and after", ge=1)
    perplexity_tokens: int = setting(2048, "tokens of each of them, at most", ge=2)
    calibration_samples: int = setting(
        512, "training texts that quantisation looks at (int4 on cpu-openvino: 128 of them at most)", ge=1
    )
    calibration_tokens: int = setting(512, "tokens of each of them, at most", ge=2)
    max_new_tokens: int = setting(64, "answer length when a request names none", ge=1)
    kv_cache_gb: int = setting(1, "cpu-openvino: memory of each served model's key-value cache", ge=1)

    def settle(self, gpus: int) -> None:
        """Put in the place of ``auto`` what it means for a recipe made for so many GPUs."""
        if self.target == "auto":
            self.target = TRTLLM if gpus else CPU_OPENVINO
        if self.weights == "auto":
            self.weights = TARGETS[self.target].default


@dataclass
class Limits:
    """What a client of the deployed model may ask for, and how long anything may take.

    ``max_tokens`` bounds a request that names no length, too: a recipe whose ``export.max_new_tokens`` is more is refused.
    """

    max_body_bytes: int = setting(1_048_576, "bytes of one request", ge=1024, le=LARGEST_BODY, identity=False)
    max_requests: int = setting(256, "requests under way at once", ge=1, identity=False)
    max_tokens: int | None = setting(
        None, "tokens of one answer (null: as many as the model's context holds)", ge=1, identity=False
    )
    requests_per_minute: int | None = setting(
        None, "requests a minute of one API key, or of one address without keys", ge=1, identity=False
    )
    first_token_s: float = setting(60.0, "longest wait for an answer's first token", gt=0, identity=False)
    between_tokens_s: float = setting(30.0, "longest wait for its next one", gt=0, identity=False)
    request_s: float = setting(600.0, "longest time of a whole answer", gt=0, identity=False)
    body_s: float = setting(30.0, "longest wait for the next part of a request", gt=0, identity=False)
    drain_s: float = setting(
        60.0, "time that answers under way have when their version is replaced", gt=0, identity=False
    )


@dataclass
class Deploy:
    """The gateway that clients speak to: where it listens, whom it lets in, and how long Triton may take to answer."""

    host: str = setting("127.0.0.1", "address to listen on; loopback unless set", identity=False)
    http_port: int = setting(
        8000, "port of OpenAI's API and of Triton's HTTP protocols", ge=1, le=65535, identity=False
    )
    grpc_port: int = setting(8001, "port of KServe's gRPC protocol", ge=1, le=65535, identity=False)
    metrics_port: int = setting(8002, "Prometheus port", ge=1, le=65535, identity=False)
    start_timeout_s: int = setting(120, "longest wait for the first answer", ge=1, identity=False)
    keys_file: str | None = setting(
        None, "file with one API key a line, 'name: key'; clients must bring one", identity=False
    )
    insecure: bool = setting(False, "listen beyond loopback without API keys", identity=False)
    hosts: list[str] = setting(
        [],
        "names that clients may call the gateway by, besides localhost and addresses (['*']: any); needed on loopback, "
        "and wherever there are no keys",
        identity=False,
    )
    cors_origins: list[str] = setting(
        [],
        "origins of web pages that may ask, e.g. https://chat.example.org; none may otherwise",
        identity=False,
    )
    tls_certificate: str | None = setting(None, "file with the certificate chain (PEM)", identity=False)
    tls_key: str | None = setting(None, "file with the certificate's key (PEM)", identity=False)
    probe_every_s: float = setting(
        2.0, "an idle model is asked for a token so often, to see that it lives", gt=0, identity=False
    )
    probe_timeout_s: float = setting(
        10.0, "time that such a token may take before the model counts as dead", gt=0, identity=False
    )
    probe_prompts: int = setting(
        16,
        "prompts of the export's parity check that a version must answer before clients ask it",
        ge=1,
        identity=False,
    )
    limits: Limits = field(default_factory=Limits)
