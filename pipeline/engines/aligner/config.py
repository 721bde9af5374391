"""A recipe's align section as NeMo-Aligner's DPO configuration.

The names are those of ``gpt_dpo.yaml`` of NeMo-Aligner 0.7.0, over which the container lays these
values; the formulas behind them are in its ``megatron_gpt_dpo_model.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.engines.aligner.data import FILES
from pipeline.engines.nemo.fused import fused_targets
from pipeline.schema import Align

LORA_MODULES = ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2")


def configuration(
    settings: Align, context: int, *, checkpoint: Path, data: Path, results: Path
) -> dict[str, Any]:
    """The configuration tree.  Paths are as the container sees them.

    ``checkpoint``: a NeMo 2 checkpoint folder; ``data``: what :mod:`.data` wrote; ``results``: where the run logs and saves.
    Raises :class:`InputError` for adapters that NeMo-Aligner cannot make.
    """
    assert not settings.label_smoothing, "NeMo-Aligner has none, and the controller refuses it"
    nemo = settings.nemo
    files = {split: [str(data / name)] for split, name in FILES.items()}
    return {
        "trainer": {
            "num_nodes": nemo.nodes,
            "devices": nemo.gpus,
            "precision": {"bf16": "bf16", "auto": "bf16", "fp32": 32}[settings.precision],
            "dpo": {
                "max_epochs": 1_000_000,  # the steps end the run
                "max_steps": settings.max_steps,
                "val_check_interval": min(settings.validate_every, settings.max_steps),
                "save_interval": settings.checkpoint_every,
                "limit_train_batches": 1.0,
                "limit_val_batches": settings.validation_batches,
                "gradient_clip_val": settings.grad_clip,
            },
        },
        "exp_manager": {
            "explicit_log_dir": str(results),
            "create_wandb_logger": False,
            "resume_if_exists": True,
            "resume_ignore_no_checkpoint": True,
        },
        "pretrained_checkpoint": {"restore_from_path": str(checkpoint)},
        "model": {
            "mcore_gpt": True,
            "megatron_amp_O2": settings.precision != "fp32",
            "micro_batch_size": settings.micro_batch_size,
            "global_batch_size": settings.global_batch_size,
            "encoder_seq_length": context,
            "seed": settings.seed,
            "tensor_model_parallel_size": nemo.tensor,
            "pipeline_model_parallel_size": nemo.pipeline,
            "context_parallel_size": nemo.context,
            "sequence_parallel": nemo.sequence_parallel,
            "dpo": {
                "log_prob_forward_micro_batch_size": settings.micro_batch_size,
                "ref_policy_kl_penalty": settings.beta,
                "preference_average_log_probs": False,
                "sft_average_log_probs": True,  # per token of an answer, as the automodel engine has it
                "preference_loss": "dpo",
                "preference_loss_weight": 1,
                "sft_loss_weight": settings.sft_weight,
            },
            "peft": _peft(settings),
            "optim": {
                "name": "distributed_fused_adam",
                "lr": settings.lr,
                "weight_decay": settings.weight_decay,
                "betas": [0.9, settings.beta2],
                "sched": {
                    "name": "CosineAnnealing",
                    "warmup_steps": settings.warmup_steps,
                    "constant_steps": 0,
                    "min_lr": settings.lr * settings.min_lr_share,
                },
            },
            "data": {
                "data_impl": "jsonl",
                "seq_length": context,
                "data_prefix": {**files, "test": files["validation"]},  # a test set is demanded, and not read
            },
        },
    }


def _peft(settings: Align) -> dict[str, Any]:
    if settings.peft != "lora":
        return {"peft_scheme": "none"}
    lora = settings.lora
    tuning = {
        "target_modules": fused_targets("align", lora.targets, LORA_MODULES),
        "adapter_dim": lora.rank,
        "adapter_dropout": lora.dropout,
        # Read by NeMo 1.x (peft_config.py): the default scale is 1, and dropout behind the adapter.
        "alpha": lora.alpha,
        "dropout_position": "pre",
    }
    return {"peft_scheme": "lora", "lora_tuning": tuning}
