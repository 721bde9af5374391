"""What a model can be exported for: targets, their precisions, and the GPUs that run each.

Which format the serving engine reads: TensorRT-LLM 1.2.1 (``llmapi/llm_utils.py``, ``_torch/modules/linear.py``),
vLLM 0.24.0 (``quantization/modelopt``).  Which GPU has the arithmetic: TensorRT-LLM's table of numerical
precision (``docs/source/features/quantization.md``).
"""

from __future__ import annotations

from dataclasses import dataclass

CPU_OPENVINO, TRTLLM, TRTLLM_ENGINE, VLLM = "cpu-openvino", "trtllm", "trtllm-engine", "vllm"
REQUEST, MERGED = "request", "merged"


@dataclass(frozen=True)
class Precision:
    """How weights (and what they meet) are kept.

    ``modelopt`` is the name of Model Optimizer's configuration, "" where nothing is quantised; ``algorithm``
    what ``hf_quant_config.json`` then says.  ``gpus`` are the generations that compute in it, ``group`` is how many
    inputs of a layer share a scale: its width must be a multiple.
    """

    name: str
    meaning: str
    modelopt: str = ""
    algorithm: str = ""
    gpus: tuple[str, ...] = ()
    group: int = 1


AMPERE, ADA, HOPPER, BLACKWELL = "Ampere", "Ada", "Hopper", "Blackwell"
EVERY = (AMPERE, ADA, HOPPER, BLACKWELL)

PRECISIONS = {
    each.name: each
    for each in (
        Precision("fp32", "weights as they were trained"),
        Precision("bf16", "weights rounded to bfloat16", gpus=EVERY),
        Precision("int8", "8-bit weights, asymmetric, a scale for each output (OpenVINO)"),
        Precision("int4", "4-bit weights, asymmetric, a scale for 32 inputs (OpenVINO)"),
        Precision(
            "fp8",
            "weights and inputs in e4m3, a scale each",
            "FP8_DEFAULT_CFG",
            "FP8",
            (ADA, HOPPER, BLACKWELL),
        ),
        Precision(
            "int8-sq",
            "8-bit weights and inputs, SmoothQuant",
            "INT8_SMOOTHQUANT_CFG",
            "W8A8_SQ_PER_CHANNEL",
            EVERY,
        ),
        Precision(
            "int4-awq",
            "4-bit weights in groups of 128, AWQ",
            "INT4_AWQ_CFG",
            "W4A16_AWQ",
            (AMPERE, ADA, HOPPER),
            128,
        ),
        Precision(
            "w4a8-awq",
            "4-bit weights in groups of 128, inputs in e4m3, AWQ",
            "W4A8_AWQ_BETA_CFG",
            "W4A8_AWQ",
            (ADA, HOPPER),
            128,
        ),
        Precision(
            "nvfp4",
            "weights and inputs in e2m1, a scale for 16 of them",
            "NVFP4_DEFAULT_CFG",
            "NVFP4",
            (BLACKWELL,),
            16,
        ),
    )
}


@dataclass(frozen=True)
class Target:
    """A serving engine: what it reads, and what it can do for a request.

    ``adapters``: "request" where a request names one, "merged" where each is a model of its own name, "" where there
    are none.
    """

    name: str
    meaning: str
    precisions: tuple[str, ...]
    default: str
    adapters: str = ""
    gpu: bool = True


TARGETS = {
    each.name: each
    for each in (
        Target(
            CPU_OPENVINO,
            "OpenVINO GenAI on this machine's processor",
            ("fp32", "bf16", "int8", "int4"),
            "fp32",
            adapters=MERGED,
            gpu=False,
        ),
        Target(
            TRTLLM,
            "TensorRT-LLM's LLM API",
            ("bf16", "fp8", "int4-awq", "w4a8-awq", "nvfp4"),
            "bf16",
            adapters=REQUEST,
        ),
        Target(
            TRTLLM_ENGINE,
            "TensorRT engines of TensorRT-LLM <= 1.2 (removed upstream in July 2026)",
            ("bf16", "fp8", "int8-sq"),
            "bf16",
        ),
        Target(
            VLLM,
            "Triton's vLLM backend",
            ("bf16", "fp8", "nvfp4"),
            "bf16",
            adapters=REQUEST,
        ),
    )
}


@dataclass(frozen=True)
class Image:
    """A published container that has a target's engine, in the newest release that the target was written for."""

    repository: str
    tag: str
    engine: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}, {self.engine}"


# https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/introduction/compatibility.html
TRITON = "nvcr.io/nvidia/tritonserver"
IMAGES = {
    TRTLLM: Image(TRITON, "26.07-trtllm-python-py3", "TensorRT-LLM 1.2.1"),
    TRTLLM_ENGINE: Image(TRITON, "26.07-trtllm-python-py3", "TensorRT-LLM 1.2.1"),
    VLLM: Image(TRITON, "26.07-vllm-python-py3", "vLLM 0.24.0"),
}

# Data centre and workstation GPUs by the name that nvidia-smi gives, without "NVIDIA" and the memory's size.
GPUS = {
    "A100": AMPERE, "A30": AMPERE, "A40": AMPERE, "A10": AMPERE, "A10G": AMPERE, "RTX A6000": AMPERE,
    "L4": ADA, "L40": ADA, "L40S": ADA, "RTX 4090": ADA, "RTX 6000 Ada": ADA,
    "H100": HOPPER, "H200": HOPPER, "H20": HOPPER, "GH200": HOPPER,
    "B100": BLACKWELL, "B200": BLACKWELL, "B300": BLACKWELL, "GB200": BLACKWELL, "GB300": BLACKWELL,
    "RTX 5090": BLACKWELL, "RTX PRO 6000": BLACKWELL,
}  # fmt: skip


def precision_fault(target: str, weights: str, gpu: str | None) -> str | None:
    """Why a target cannot serve these weights on this kind of GPU, and what it can; None where it can."""
    chosen = TARGETS[target]
    if weights not in chosen.precisions:
        others = [name for name, other in TARGETS.items() if weights in other.precisions]
        elsewhere = f"; {weights} is for {' and '.join(others)}" if others else ""
        return f"{target} does not read {weights}: it reads {', '.join(chosen.precisions)}{elsewhere}"
    if gpu is None or not chosen.gpu:
        return None
    if gpu not in GPUS:
        return f"no such GPU is known: {gpu!r}; known are {', '.join(GPUS)}"
    wanted = PRECISIONS[weights].gpus
    if GPUS[gpu] in wanted:
        return None
    can = [name for name in chosen.precisions if GPUS[gpu] in PRECISIONS[name].gpus]
    return (
        f"{weights} needs {' or '.join(wanted)}, and {gpu} is {GPUS[gpu]}; what it can run: {', '.join(can)}"
    )


def width_fault(weights: str, widths: dict[str, int]) -> str | None:
    """Why layers of these widths (inputs, by name) cannot be kept in these weights; None where they can."""
    group = PRECISIONS[weights].group
    for name, width in widths.items():
        if width % group:
            return f"{weights} keeps a scale for each {group} inputs of a layer, and {name} is {width}"
    return None
