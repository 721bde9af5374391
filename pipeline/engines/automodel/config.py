"""A recipe's settings as the configuration of AutoModel's recipe class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.schema import Align, Lora, Optimisation, Train

HERE = "pipeline.engines.automodel.examples"


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
    loader = {"collate_fn": f"{HERE}.collate", "shuffle": False, "num_workers": 0}
    config: dict[str, Any] = {
        "seed": settings.seed,
        "dist_env": {"backend": _backend(), "timeout_minutes": 10},
        "distributed": {"strategy": "ddp"},
        "step_scheduler": {
            "global_batch_size": settings.global_batch_size,
            "local_batch_size": settings.micro_batch_size,
            "max_steps": settings.max_steps,
            "num_epochs": 1,
            "ckpt_every_steps": settings.checkpoint_every,
            "save_checkpoint_every_epoch": False,
            "validate_on_checkpoint": False,
            "val_every_steps": settings.validate_every,
        },
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": str(model),
            "torch_dtype": "float32",
            "use_liger_kernel": False,
            "force_hf": True,
            "attn_implementation": "sdpa",
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
            "lr": settings.lr,
            "betas": [0.9, settings.beta2],
            "eps": 1e-8,
            "weight_decay": settings.weight_decay,
            "fused": True,
        },
        "lr_scheduler": {
            "lr_decay_style": "cosine",
            "lr_warmup_steps": settings.warmup_steps,
            "lr_decay_steps": settings.max_steps,
            "init_lr": 0.0,
            "max_lr": settings.lr,
            "min_lr": settings.lr * settings.min_lr_share,
        },
        "loss_fn": {"_target_": "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy"},
        "clip_grad_norm": {"max_norm": settings.grad_clip},
        "checkpoint": {
            "enabled": True,
            "checkpoint_dir": str(checkpoints),
            "model_save_format": "safetensors",
            "save_consolidated": False,
            "max_recent_checkpoints": 2,
        },
    }
    if isinstance(settings, Train | Align) and settings.peft == "lora":
        config["peft"] = _peft(settings.lora)
    return config


def _peft(lora: Lora) -> dict[str, Any]:
    return {
        "_target_": "nemo_automodel.components._peft.lora.PeftConfig",
        "target_modules": lora.targets,
        "dim": lora.rank,
        "alpha": lora.alpha,
        "dropout": lora.dropout,
        "use_triton": False,
        "use_memory_efficient_lora": False,
    }


def _backend() -> str:
    import torch

    return "nccl" if torch.cuda.is_available() else "gloo"
