"""The bundle: a self-contained Hugging Face folder of the model to be served."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.stages import models
from pipeline.stages.export.reference import Reference
from pipeline.stages.step import InputError, Step, write_json


def write(step: Step) -> tuple[Any, Any, dict[str, Any]]:
    """Write ``output/bundle``; returns the model (fp32, in evaluation mode), its tokenizer and generation defaults.

    Weights are fp32, as they were trained and evaluated, whatever a base model came in.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = step.output / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    source = models.model_folder(step, models.latest_model(step))
    tokenizer = models.load_asking_tokenizer(step)
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template, so the model cannot be asked anything; "
            "add a chat_template to tokenizer_config.json in the folder of model.base"
        )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **models.FROM_FILES).eval()
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model of {source} only {model.config.vocab_size}"
        )
    defaults = generation_defaults(model.generation_config.to_diff_dict(), model.config.to_dict(), tokenizer)
    if unheard := not_applied(defaults):
        step.warning(
            f"the model's generation_config.json asks for {', '.join(unheard)}, which no server of this project applies: "
            "answers come without, here and in the comparison with the trained model"
        )
    # transformers saves no settings that it takes for a mistake (a temperature without do_sample), and published models have them.
    model.generation_config = models.served_generation(model.generation_config)
    # One file: what comes after (OpenVINO, other targets) need not know about shards.
    model.save_pretrained(folder, max_shard_size="10000GB")
    tokenizer.save_pretrained(folder)
    write_json(folder / "generation_config.json", defaults)
    return model, tokenizer, defaults


def load(folder: Path, dtype: Any) -> Any:
    """The model of a bundle, read from its files, in evaluation mode; on GPUs where there are any (not executed here)."""
    import torch
    from transformers import AutoModelForCausalLM

    place = {"device_map": "auto"} if torch.cuda.is_available() else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **models.FROM_FILES, **place).eval()


def reference(folder: Path, generation: dict[str, Any]) -> Reference:
    """The model of a bundle in fp32, to be asked."""
    import torch

    return Reference(load(folder, torch.float32), generation["eos_token_id"], generation["pad_token_id"])


# What a server does with generation_config.json (deploy/triton/contract/sampling.py), or what says nothing of the choice of tokens.
APPLIED = ("do_sample", "repetition_penalty", "eos_token_id", "pad_token_id")
APPLIED_TO_SAMPLES = ("temperature", "top_p", "top_k")
SILENT = (
    "bos_token_id",
    "decoder_start_token_id",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "cache_implementation",
)
ONLY_SAMPLES = (*APPLIED_TO_SAMPLES, "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def not_applied(defaults: dict[str, Any]) -> list[str]:
    """Settings of a generation_config.json that would change answers and that the servers leave out, as ``name = value``."""
    from transformers import GenerationConfig

    idle = () if defaults["do_sample"] else ONLY_SAMPLES
    heard = {*APPLIED, *APPLIED_TO_SAMPLES, *SILENT, *idle}
    usual = GenerationConfig().to_dict()
    return [
        f"{name} = {value!r:.60}"
        for name, value in sorted(defaults.items())
        if name not in heard and value not in (None, False, [], {}) and value != usual.get(name)
    ]


def generation_defaults(given: dict[str, Any], config: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The content of generation_config.json: the model's own, made complete.

    The end tokens are those that the model's generation settings and configuration name
    and the one that its tokenizer ends an answer with.  Sampling is as the model's own
    settings have it, greedy where they say nothing.
    """
    ends: list[int] = []
    for named in (given.get("eos_token_id"), config.get("eos_token_id"), tokenizer.eos_token_id):
        for token in named if isinstance(named, list) else [named]:
            if token is not None and token >= 0 and token not in ends:  # -1 stands for none in older files
                ends.append(token)
    if not ends:
        raise InputError("neither the model nor its tokenizer names a token that ends an answer (eos_token)")
    pad = given.get("pad_token_id")
    pad = tokenizer.pad_token_id if pad is None or pad < 0 else pad
    kept = {k: v for k, v in given.items() if not k.startswith("_") and k != "transformers_version"}
    if kept.get("do_sample"):
        # Where a model samples, transformers takes 50 tokens unless told otherwise; nobody else does.
        kept = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, **kept}
    return {
        "do_sample": False,
        **kept,
        "eos_token_id": ends,
        "pad_token_id": ends[0] if pad is None else pad,
    }
