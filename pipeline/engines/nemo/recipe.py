"""A recipe's settings as nemo-toolkit's recipe: ``llm.<name>.finetune_recipe`` or ``pretrain_recipe``.

NeMo's function gives the tree (model, trainer, strategy, optimiser, logging, resume); the settings of
this project are then laid over it, field by field through :mod:`.fields`, so that no field is passed
over.  What a setting has no word for (callbacks, communication overlap) stays NeMo's.
"""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.engines.nemo.convert import shape
from pipeline.engines.nemo.cpu import without_cuda
from pipeline.engines.nemo.data import TEMPLATE
from pipeline.engines.nemo.fields import assign, assign_all
from pipeline.engines.nemo.fused import fused_targets
from pipeline.schema import Lora, Pretrain, Train
from pipeline.stages.step import InputError

DEFAULT = "llama3_8b"  # whose trainer, optimiser and logging serve where train.nemo.recipe names none
LORA_LAYERS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
# Fields of NeMo's model configuration that a named recipe must share with the model at hand.
SHAPE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "rotary_base",
    "share_embeddings_and_output_weights",
)
# What NeMo's importer reads off a Hugging Face configuration besides.
READ = (
    *SHAPE,
    "init_method_std",
    "layernorm_epsilon",
    "make_vocab_size_divisible_by",
    "vocab_size",
    "kv_channels",
)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a run finds and leaves things, as the training machines see them.

    ``model``: Hugging Face folder of the model's shape; ``start``: NeMo checkpoint of its weights, None
    to begin at random; ``data``: what :mod:`.data` wrote; ``logs``: for logs and checkpoints.
    """

    model: Path
    start: Path | None
    data: Path
    tokenizer: Path
    logs: Path


def build(section: str, settings: Train | Pretrain, context: int, places: Places) -> Any:
    """The NeMo-Run ``Partial`` of one training run.  ``section``: ``train`` or ``pretrain``.

    Raises :class:`InputError` for a recipe that nemo-toolkit does not have, one of another model, and
    a field that the package does not know.  That the sizes go into each other is checked before (:mod:`pipeline.checks`).
    """
    recipe = _start(section, settings)
    _model(recipe, section, settings, places.model)
    assign_all(recipe, _fields(settings, context, places))
    if settings.precision == "fp32":
        assign_all(recipe, _single_precision())
    _data(recipe, section, settings, context, places)
    if isinstance(settings, Train):
        recipe.tokenizer = "data"
        if settings.peft == "lora":
            _lora(recipe, settings.lora)
    return recipe


def check(recipe: Any) -> list[str]:
    """Build every object that the recipe describes, with a CPU in the GPUs' place; returns their classes.

    What a constructor refuses is an :class:`InputError` that names the part.
    """
    import copy

    import fiddle

    recipe = copy.deepcopy(recipe)
    trainer = recipe.trainer
    trainer.accelerator, trainer.devices, trainer.num_nodes = "cpu", 1, 1
    built = []
    for name in ("model", "data", "optim", "log", "resume", "trainer", "peft"):
        part = getattr(recipe, name, None)
        if part is None:
            continue
        try:
            with without_cuda():
                built.append(type(fiddle.build(part)).__name__)
        except (TypeError, ValueError, AssertionError, AttributeError) as error:
            reason = str(error).partition("\n\nFiddle context")[0]
            raise InputError(f"nemo-toolkit refuses the recipe's {name}: {reason}") from error
    return built


def _start(section: str, settings: Train | Pretrain) -> Any:
    from nemo.collections import llm

    name = settings.nemo.recipe or DEFAULT
    function = "finetune_recipe" if section == "train" else "pretrain_recipe"
    maker = getattr(getattr(llm, name, None), function, None)
    if maker is None:
        known = [each for each in dir(llm) if hasattr(getattr(llm, each), function)]
        near = get_close_matches(name, known, 3)
        raise InputError(
            f"{section}.nemo.recipe: nemo-toolkit has no llm.{name}.{function}; "
            f"{'did you mean ' + ', '.join(near) if near else 'there are ' + ', '.join(known)}?"
        )
    # "none" as adapters are set below; the function's own sizes are laid over in any case.
    options = (
        {"peft_scheme": "lora" if settings.peft == "lora" else "none"} if isinstance(settings, Train) else {}
    )
    return maker(name=section, num_nodes=settings.nemo.nodes, num_gpus_per_node=settings.nemo.gpus, **options)


def _model(recipe: Any, section: str, settings: Train | Pretrain, folder: Path) -> None:
    """The model's shape: the named recipe's own, held to the folder's, or read off the folder."""
    import fiddle
    import nemo_run
    from nemo.collections import llm

    wanted = shape(folder)
    if settings.nemo.recipe:
        with without_cuda():
            given = fiddle.build(recipe.model.config)
        other = [
            f"{name} is {getattr(given, name)}, the model's {getattr(wanted, name)}"
            for name in SHAPE
            if getattr(given, name, None) != getattr(wanted, name)
        ]
        if other:
            raise InputError(
                f"{section}.nemo.recipe: {settings.nemo.recipe} is for another model than {folder}: "
                f"{'; '.join(other)}. Leave the recipe out to take the model's shape"
            )
        return
    config = nemo_run.Config(type(wanted))
    names = [*READ, "scale_factor"] if hasattr(wanted, "scale_factor") else READ
    for name in names:
        assign(config, name, getattr(wanted, name))
    if isinstance(settings, Train) and settings.peft == "lora":
        assign(config, "cross_entropy_loss_fusion", False)  # as NeMo's own LoRA recipes have it
    recipe.model = nemo_run.Config(llm.LlamaModel, config=config)


def _fields(settings: Train | Pretrain, context: int, places: Places) -> list[tuple[str, Any]]:
    """Each setting's field, in the order of ``pipeline/schema/training.py``."""
    import nemo_run
    import torch
    from nemo import lightning

    nemo = settings.nemo
    restore = nemo_run.Config(lightning.RestoreConfig, path=str(places.start)) if places.start else None
    return [
        ("model.config.seq_length", context),
        ("trainer.max_steps", settings.max_steps),
        ("trainer.val_check_interval", min(settings.validate_every, settings.max_steps)),
        ("trainer.limit_val_batches", settings.validation_batches),
        ("trainer.num_nodes", nemo.nodes),
        ("trainer.devices", nemo.gpus),
        ("trainer.strategy.tensor_model_parallel_size", nemo.tensor),
        ("trainer.strategy.pipeline_model_parallel_size", nemo.pipeline),
        (
            "trainer.strategy.pipeline_dtype",
            torch.float32 if settings.precision == "fp32" else torch.bfloat16,
        ),
        # A preset's number of chunks fits the preset's pipeline only.
        ("trainer.strategy.virtual_pipeline_model_parallel_size", None),
        ("trainer.strategy.context_parallel_size", nemo.context),
        ("trainer.strategy.sequence_parallel", nemo.sequence_parallel),
        ("optim.config.lr", settings.lr),
        ("optim.config.weight_decay", settings.weight_decay),
        ("optim.config.adam_beta2", settings.beta2),
        ("optim.config.adam_eps", 1e-8),  # as the automodel engine has it
        ("optim.config.clip_grad", settings.grad_clip),
        ("optim.lr_scheduler.max_steps", settings.max_steps),
        ("optim.lr_scheduler.warmup_steps", settings.warmup_steps),
        ("optim.lr_scheduler.constant_steps", 0),
        ("optim.lr_scheduler.min_lr", settings.lr * settings.min_lr_share),
        ("log.log_dir", str(places.logs)),
        ("log.ckpt.every_n_train_steps", settings.checkpoint_every),
        ("log.ckpt.train_time_interval", None),  # a preset's, which excludes the field above
        ("log.ckpt.save_last", True),
        ("log.tensorboard.save_dir", str(places.logs / "tensorboard")),
        ("resume.restore_config", restore),
        ("resume.resume_if_exists", True),
        ("resume.resume_ignore_no_checkpoint", True),
    ]


def _single_precision() -> list[tuple[str, Any]]:
    import torch

    plugin = "trainer.plugins."
    return [
        (plugin + "precision", "32"),
        (plugin + "params_dtype", torch.float32),
        (plugin + "pipeline_dtype", torch.float32),
        (plugin + "autocast_enabled", False),
        ("optim.config.bf16", False),
    ]


def _data(recipe: Any, section: str, settings: Train | Pretrain, context: int, places: Places) -> None:
    import nemo_run
    from nemo.collections import llm
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

    tokenizer = nemo_run.Config(AutoTokenizer, pretrained_model_name=str(places.tokenizer))
    if section == "train":
        recipe.data = nemo_run.Config(llm.FineTuningDataModule, dataset_root=str(places.data))
        assign(recipe, "data.dataset_kwargs", {"prompt_template": TEMPLATE})
    else:
        paths = {split: [str(places.data / split)] for split in ("train", "validation")}
        # Megatron wants a test set too and reads none of it before trainer.test.
        recipe.data = nemo_run.Config(llm.PreTrainingDataModule, paths={**paths, "test": paths["validation"]})
        assign(recipe, "data.index_mapping_dir", str(places.logs / "index"))
    assign_all(
        recipe,
        [
            ("data.seq_length", context),
            ("data.tokenizer", tokenizer),
            ("data.global_batch_size", settings.global_batch_size),
            ("data.micro_batch_size", settings.micro_batch_size),
            ("data.seed", settings.seed),
        ],
    )


def _lora(recipe: Any, lora: Lora) -> None:
    import nemo_run
    from nemo.collections.llm.peft.lora import LoRA

    recipe.peft = nemo_run.Config(LoRA)
    assign_all(
        recipe,
        [
            ("peft.target_modules", fused_targets("train", lora.targets, LORA_LAYERS)),
            ("peft.dim", lora.rank),
            ("peft.alpha", lora.alpha),
            ("peft.dropout", lora.dropout),
        ],
    )
