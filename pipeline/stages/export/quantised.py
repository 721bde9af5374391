"""A quantised checkpoint read back: the model that its bytes mean, in fp32, on any machine.

The kernels for these formats run on GPUs.  To hold what was written to the model that it was made of, this
reads the files of a unified Hugging Face checkpoint (``hf_quant_config.json`` beside safetensors,
as NVIDIA Model Optimizer writes it) into a Hugging Face model whose linear layers compute what the
format asks of a kernel: weights from codes and scales, inputs rounded as they are on the way in, keys and
values as the cache keeps them.  Products are in fp32; a kernel's order of summation is its own.

Codes, of a weight ``(out, in)``:

========================  ======================================  ==================================================
algorithm                 weight                                  input
========================  ======================================  ==================================================
``FP8``                   e4m3 x one scale                        e4m3 x one scale, both fixed at calibration
``W8A8_SQ_PER_CHANNEL``   int8 x a scale for each output          int8 x one scale, after SmoothQuant's factors
``W4A16_AWQ``             int4, two outputs a byte, x a scale     as it is, after AWQ's factors
                          for each group of inputs
``W4A8_AWQ``              the same, then e4m3 x one scale         e4m3 x one scale, after AWQ's factors
``NVFP4``                 e2m1, two inputs a byte, x an e4m3      e2m1 x a scale for each 16 values, found as it comes,
                          scale for each 16 inputs x one scale    within one scale fixed at calibration
========================  ======================================  ==================================================

e4m3: Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433; SmoothQuant: Xiao et al. 2022,
https://arxiv.org/abs/2211.10438; AWQ: Lin et al. 2023, https://arxiv.org/abs/2306.00978; NVFP4:
https://docs.nvidia.com/deeplearning/cudnn (block scaling), e2m1 of the OCP microscaling formats.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

E4M3_MAX = 448.0
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
KEPT_KEYS = "lifecycle_quantised_cache"  # our name among transformers' attention functions

Read = Callable[[str], "Tensor | None"]


def load(folder: Path) -> Any:
    """The checkpoint as a Hugging Face model in evaluation mode, fp32.

    Raises ``ValueError`` for an algorithm that this does not know, and for tensors that are
    missing or that nothing asks for.
    """
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    said = json.loads((folder / "hf_quant_config.json").read_text(encoding="utf-8"))["quantization"]
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers would look for the kernels
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    taken: set[str] = set()

    def read(name: str) -> Tensor | None:
        if name not in tensors:
            return None
        taken.add(name)
        return tensors[name]

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and read(f"{name}.weight_scale") is not None:
            parent = model.get_submodule(name.rpartition(".")[0])
            layer = QuantisedLinear(said["quant_algo"], said.get("group_size"), name, read)
            setattr(parent, name.rpartition(".")[2], layer)
    _keep_cache(model, said.get("kv_cache_quant_algo"), read)
    plain = {name: value.float() for name, value in tensors.items() if name not in taken}
    missing, unexpected = model.load_state_dict(plain, strict=False)
    # Weights that are tied have one name in the file.
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    lacking = [name for name in missing if name not in tied]
    if lacking or unexpected:
        raise ValueError(f"{folder}: tensors missing: {lacking[:3]}, asked for by nothing: {unexpected[:3]}")
    model.tie_weights()
    return model


class QuantisedLinear(nn.Module):
    """A linear layer that computes what a quantised one is to compute."""

    def __init__(self, algorithm: str, group: int | None, name: str, read: Read) -> None:
        super().__init__()
        if algorithm not in ALGORITHMS:
            raise ValueError(f"cannot read {algorithm}; known: {', '.join(ALGORITHMS)}")
        decode, self.round_input = ALGORITHMS[algorithm]
        codes = _need(read, f"{name}.weight")
        self.weight = decode(
            codes, _need(read, f"{name}.weight_scale"), read(f"{name}.weight_scale_2"), group
        )
        self.input_scale = read(f"{name}.input_scale")
        factors, bias = read(f"{name}.pre_quant_scale"), read(f"{name}.bias")
        self.factors = None if factors is None else factors.float()
        self.bias = None if bias is None else bias.float()

    def forward(self, inputs: Tensor) -> Tensor:
        """``inputs`` (..., in) to (..., out)."""
        if self.factors is not None:
            inputs = inputs * self.factors
        if self.round_input is not None and self.input_scale is not None:
            inputs = self.round_input(inputs, self.input_scale)
        return nn.functional.linear(inputs, self.weight, self.bias)


def _need(read: Read, name: str) -> Tensor:
    found = read(name)
    if found is None:
        raise ValueError(f"the checkpoint has no {name}")
    return found


# -- weights -------------------------------------------------------------------------------


def _e4m3_weight(codes: Tensor, scale: Tensor, _: Tensor | None, __: int | None) -> Tensor:
    return codes.float() * scale.float()


def _int8_weight(codes: Tensor, scale: Tensor, _: Tensor | None, __: int | None) -> Tensor:
    return codes.float() * scale.float()[:, None]


def _int4_weight(codes: Tensor, scale: Tensor, _: Tensor | None, group: int | None) -> Tensor:
    """``codes`` (out / 2, in): low half the even output, two's complement; ``scale`` (out, groups)."""
    halves = torch.stack([codes & 0xF, codes >> 4], dim=1).to(torch.int8)
    values = torch.where(halves > 7, halves - 16, halves).reshape(-1, codes.shape[1]).float()
    size = group or codes.shape[1] // scale.shape[1]
    return values * scale.float().repeat_interleave(size, dim=1)[:, : values.shape[1]]


def _int4_in_e4m3_weight(codes: Tensor, scale: Tensor, second: Tensor | None, group: int | None) -> Tensor:
    assert second is not None
    return to_e4m3(_int4_weight(codes, scale, None, group), second.float())


def _e2m1_weight(codes: Tensor, scale: Tensor, second: Tensor | None, group: int | None) -> Tensor:
    """``codes`` (out, in / 2): low half the even input; ``scale`` (out, in / 16) in e4m3."""
    halves = torch.stack([codes & 0xF, codes >> 4], dim=-1).reshape(codes.shape[0], -1).long()
    values = E2M1[halves & 7] * torch.where(halves > 7, -1.0, 1.0)
    assert second is not None
    assert group is not None
    return values * (scale.float() * second.float()).repeat_interleave(group, dim=1)


# -- inputs --------------------------------------------------------------------------------


def to_e4m3(values: Tensor, scale: Tensor) -> Tensor:
    """The values as e4m3 numbers times ``scale`` can hold them."""
    return (values / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * scale


def _int8_input(values: Tensor, scale: Tensor) -> Tensor:
    return (values / scale).round().clamp(-128, 127) * scale


def _e2m1_input(values: Tensor, scale: Tensor, block: int = 16) -> Tensor:
    """Blocks of 16 with a scale each, itself an e4m3 number times ``scale``."""
    blocks = values.unflatten(-1, (-1, block))
    wanted = blocks.abs().amax(-1, keepdim=True) / float(E2M1[-1])
    each = to_e4m3(wanted, scale)
    size = torch.where(each > 0, blocks.abs() / each, torch.zeros_like(blocks))
    middles = (E2M1[1:] + E2M1[:-1]) / 2
    # Ties go to the even code, as IEEE 754 rounds.
    up, down = torch.bucketize(size, middles, right=True), torch.bucketize(size, middles)
    nearest = torch.where((up != down) & (down % 2 == 0), down, up)
    return (E2M1[nearest] * blocks.sign() * each).flatten(-2)


ALGORITHMS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor] | None]] = {
    "FP8": (_e4m3_weight, to_e4m3),
    "W8A8_SQ_PER_CHANNEL": (_int8_weight, _int8_input),
    "W4A16_AWQ": (_int4_weight, None),
    "W4A8_AWQ": (_int4_in_e4m3_weight, to_e4m3),
    "NVFP4": (_e2m1_weight, _e2m1_input),
}


# -- the cache of keys and values --------------------------------------------------------------


def _keep_cache(model: Any, algorithm: str | None, read: Read) -> None:
    """Have attention see keys and values as an e4m3 cache gives them back."""
    if algorithm is None:
        return
    if algorithm != "FP8":
        raise ValueError(f"cannot read a cache of {algorithm}; known: FP8")
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
        return plain(
            module, query, to_e4m3(key, module.k_scale), to_e4m3(value, module.v_scale), *rest, **options
        )

    ALL_ATTENTION_FUNCTIONS.register(KEPT_KEYS, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(KEPT_KEYS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for name, module in model.named_modules():
        if hasattr(module, "k_proj") and hasattr(module, "v_proj"):
            for kind in ("k", "v"):
                scale = read(f"{name}.{kind}_proj.{kind}_scale")
                setattr(module, f"{kind}_scale", torch.tensor(1.0) if scale is None else scale)
    model.config._attn_implementation = KEPT_KEYS
