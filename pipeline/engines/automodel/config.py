"""A recipe's settings as the configuration of AutoModel's recipe class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.engines.automodel import packing
from pipeline.schema import Lora, Optimisation, Parallel, Reward
from pipeline.stages.models import FROM_FILES

HERE = "pipeline.engines.automodel.examples"
WSD_SHARE = 0.1  # of the steps, at the end (Hu et al. 2024, "MiniCPM", section 4)
FLOATS = {"fp32": "float32", "bf16": "float32", "bf16-weights": "bfloat16"}  # how weights are held


def recipe_config(
    settings: Optimisation,
    *,
    model: Path,
    tokenizer: Path,
    train: Path,
    validation: Path,
    checkpoints: Path,
    group: int,
) -> dict[str, Any]:
    """The configuration tree of one training run.

    ``train`` and ``validation`` are files of :class:`~.examples.Examples`; ``model`` is the
    Hugging Face folder to start from; AutoModel keeps its checkpoints under ``checkpoints``.
    """
    dataset = {"_target_": f"{HERE}.OrderedExamples", "group": group}
    collate = "collate_packed" if settings.packing else "collate"
    loader = {"collate_fn": f"{HERE}.{collate}", "shuffle": False, "num_workers": 0}
    looks = settings.best_every or settings.validate_every
    rate = learning_rate(settings)
    config: dict[str, Any] = {
        "seed": settings.seed,
        "dist_env": {"backend": _backend(), "timeout_minutes": 60},  # process 0 digests checkpoints meanwhile
        "distributed": _distributed(settings.parallel, settings.precision),
        "step_scheduler": {
            "global_batch_size": settings.global_batch_size,
            "local_batch_size": settings.micro_batch_size,
            "max_steps": settings.max_steps,
            "num_epochs": 1,
            "ckpt_every_steps": settings.best_every or settings.checkpoint_every,
            "save_checkpoint_every_epoch": False,
            "validate_on_checkpoint": bool(settings.best_every),
            "val_every_steps": looks,
        },
        "model": {
            "_target_": f"nemo_automodel.{_head(settings)}.from_pretrained",
            "pretrained_model_name_or_path": str(model),
            "torch_dtype": FLOATS[settings.precision],
            # AutoModel would keep the wider of this and what is stored, and models are stored in fp32.
            **({"_restore_loaded_dtype": False} if settings.precision == "bf16-weights" else {}),
            "use_liger_kernel": False,
            "force_hf": True,
            **FROM_FILES,
            "attn_implementation": packing.NAME if settings.packing or _backend() == "gloo" else "sdpa",
        },
        "dataset": {
            **dataset,
            "path": str(train),
            # Only tells AutoModel which tokenizer to keep beside its checkpoints.
            "tokenizer": {
                "_target_": "transformers.PreTrainedTokenizerFast.from_pretrained",
                "pretrained_model_name_or_path": str(tokenizer),
            },
        },
        "dataloader": dict(loader),
        "validation_dataset": {**dataset, "path": str(validation)},
        "validation_dataloader": {**loader, "batch_size": settings.micro_batch_size},
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "lr": rate,
            "betas": [0.9, settings.beta2],
            "eps": 1e-8,
            "weight_decay": settings.weight_decay,
            "fused": True,
        },
        "lr_scheduler": _schedule(settings),
        "loss_fn": {"_target_": "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy"},
        "clip_grad_norm": {"max_norm": settings.grad_clip},
        "checkpoint": {
            "enabled": True,
            "checkpoint_dir": str(checkpoints),
            "model_save_format": "safetensors",
            "save_consolidated": False,
            "max_recent_checkpoints": settings.keep_checkpoints,
            "is_async": settings.async_checkpoint and _cuda(),  # the engine stages through pinned memory
        },
    }
    peft = getattr(settings, "peft", "none")
    if peft != "none":
        config["peft"] = _peft(settings.lora, dora=peft == "dora")  # type: ignore[attr-defined]
        if isinstance(settings, Reward):
            # AutoModel's checkpoints of adapters hold nothing else, so the head learns by one, too.
            config["peft"]["target_modules"] = [*settings.lora.targets, "score"]
    if peft == "qlora":  # NF4 weights under the adapters (Dettmers et al. 2023)
        config["quantization"] = {"load_in_4bit": True, "load_in_8bit": False}
    return config


def _head(settings: Optimisation) -> str:
    return (
        "NeMoAutoModelForSequenceClassification"
        if isinstance(settings, Reward)
        else "NeMoAutoModelForCausalLM"
    )


def learning_rate(settings: Optimisation) -> float:
    """The peak learning rate: that of the adapters where they are trained and have one of their own."""
    adapted = getattr(settings, "peft", "none") != "none"
    own: float | None = settings.lora.lr if adapted else None  # type: ignore[attr-defined]
    return settings.lr if own is None else own


def _distributed(parallel: Parallel, precision: str) -> dict[str, Any]:
    found: dict[str, Any] = {"strategy": parallel.strategy}
    if parallel.recompute != "none":
        found["activation_checkpointing"] = parallel.recompute
    if parallel.strategy == "ddp":
        return found
    found |= {"tp_size": parallel.tensor, "cp_size": parallel.context, "sequence_parallel": parallel.sequence}
    # AutoModel would scatter gradients once a step, and until then keep whole ones in fp32 in every process: 282 GB of
    # a 70B model, where sharding is asked for because a GPU has 80.
    found["defer_fsdp_grad_sync"] = False
    if precision == "fp32":
        found["mp_policy"] = {
            "_target_": "torch.distributed.fsdp.MixedPrecisionPolicy",
            "param_dtype": "float32",
            "reduce_dtype": "float32",
            "cast_forward_inputs": False,
        }
    return found


def literal(plain: Any) -> Any:
    """A configuration whose texts AutoModel takes as they are.

    Its loader puts environment variables in the place of ``$NAME`` and ``${NAME}`` wherever a text has them: a folder of such a
    name would be another, and a text of a recipe could read a secret.  What it has resolved already it leaves alone.
    """
    from nemo_automodel.components.config.loader import _OrigValueStr

    if isinstance(plain, dict):
        return {key: literal(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [literal(value) for value in plain]
    return _OrigValueStr(plain, plain) if isinstance(plain, str) and "$" in plain else plain


def _schedule(settings: Optimisation) -> dict[str, Any]:
    style = {"wsd": "WSD"}.get(settings.schedule, settings.schedule)
    found = {
        "lr_decay_style": style,
        "lr_warmup_steps": settings.warmup_steps,
        "lr_decay_steps": settings.max_steps,
        "init_lr": 0.0,
        "max_lr": learning_rate(settings),
        "min_lr": learning_rate(settings) * settings.min_lr_share,
    }
    if style == "WSD":
        steps = max(1, round(settings.max_steps * WSD_SHARE))
        found |= {"lr_wsd_decay_style": "linear", "wsd_decay_steps": steps}
    return found


def _peft(lora: Lora, *, dora: bool) -> dict[str, Any]:
    return {
        "_target_": "nemo_automodel.components._peft.lora.PeftConfig",
        "target_modules": lora.targets,
        "dim": lora.rank,
        "alpha": lora.alpha,
        "dropout": lora.dropout,
        "use_dora": dora,
        "use_triton": False,
        "use_memory_efficient_lora": False,
    }


def _backend() -> str:
    return "nccl" if _cuda() else "gloo"


def _cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())
