"""Fine-tuning and pre-training on nemo-toolkit: the step from curated data to a published model.

Everything up to the start of training is done on any machine: the recipe is built and checked against
the package, data and weights are written in NeMo's forms (under ``state/``, sealed, so that the next
attempt finds them), and ``output/submission/`` holds the recipe and the command.  Where the GPUs that
the recipe asks for are missing the step ends there and says so.  Training, and what comes after it,
was not executed here; an interrupted training begins anew.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.schema import Model, Pretrain, Train
from pipeline.stages.models import latest_model, load_tokenizer, model_folder, tokenizer_folder
from pipeline.stages.step import InputError, Step, write_json


def run(step: Step) -> None:
    """Train by NeMo as the stage's settings say; raises :class:`InputError` where there are too few GPUs."""
    # NeMo-Run and NeMo read these when they are imported.
    os.environ["NEMORUN_HOME"] = str(step.work / "nemo-run")
    os.environ["NEMO_HOME"] = str(step.work / "nemo-home")
    from pipeline.engines.nemo import data, recipe, submit

    settings: Train | Pretrain = step.section(Train) if step.stage == "train" else step.section(Pretrain)
    shape = step.section(Model)
    step.phase("recipe")
    tokenizer = load_tokenizer(step)
    parent = latest_model(step) if step.stage == "train" else None
    source = model_folder(step, parent) if parent else _shape(step, shape, tokenizer)
    model = together(step, source)
    places = recipe.Places(
        model=model,
        start=step.state / "start" if parent else None,
        data=step.state / "data",
        tokenizer=tokenizer_folder(step),
        logs=step.work / "logs",
    )
    tree = recipe.build(step.stage, settings, shape.context, places)
    step.phase("data")
    if step.stage == "train":
        sealed(
            step,
            "data",
            lambda part: told(step, data.write_chats(step.inputs["data"], tokenizer, shape.context, part)),
        )
    else:
        sealed(step, "data", lambda part: data.write_documents(step.inputs["data"], tokenizer, part))
    step.phase("check")
    built = recipe.check(tree)
    folder = step.output / "submission"
    submit.write(tree, step.stage, settings.nemo.nodes, settings.nemo.gpus, folder)
    step.message(
        f"nemo-toolkit's recipe is built, and {', '.join(built)} from it; it is in {folder / submit.READABLE}"
    )
    if parent:
        checkpoint(step, model)
    _require_gpus(step, settings, folder)
    step.phase("train")
    if not submit.train(tree, step.stage, settings.nemo.gpus):
        raise RuntimeError(f"NeMo-Run says that training failed; its logs are under {step.work / 'nemo-run'}")
    step.phase("publish")
    _publish(step, settings, places.logs, parent, model)
    step.finish(
        metrics={"engine": "nemo", "parent": parent}, headline=f"{settings.max_steps:,} steps by nemo-toolkit"
    )


def told(step: Step, counts: dict[str, dict[str, int]]) -> None:
    """Say what of the data was left out, if anything was."""
    from pipeline.engines.nemo.data import left_out

    if said := left_out(counts):
        step.message(said)


def sealed(step: Step, name: str, write: Callable[[Path], object]) -> Path:
    """Make ``state/NAME`` by ``write``, once: an interrupted step finds it again."""
    target = step.state / name
    if not target.exists():
        part = step.state / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        write(part)
        part.rename(target)
        step.seal(target)
    return target


def together(step: Step, source: Path) -> Path:
    """A folder with the model's files and curation's tokenizer: NeMo's importer wants them in one place."""

    target = step.state / "model"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for folder in (source, tokenizer_folder(step)):
        for file in folder.iterdir():
            if file.is_file() and not (target / file.name).exists():
                (target / file.name).symlink_to(file.resolve())
    return target


def checkpoint(step: Step, model: Path) -> Path:
    """The model's weights as a NeMo checkpoint, ``state/start``."""
    from pipeline.engines.nemo import convert

    step.phase("convert")
    return sealed(step, "start", lambda part: convert.to_nemo(model, part))


def _shape(step: Step, shape: Model, tokenizer: Any) -> Path:
    """A Hugging Face configuration of the recipe's shape, without weights."""
    from transformers import LlamaConfig

    folder = step.state / "shape"
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tie_embeddings,
        initializer_range=shape.initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        torch_dtype="float32",
    )
    config.save_pretrained(folder)
    return folder


def _require_gpus(step: Step, settings: Train | Pretrain, folder: Path) -> None:
    import torch

    here, nemo = torch.cuda.device_count(), settings.nemo
    kernels = importlib.util.find_spec("transformer_engine") is not None
    if nemo.nodes == 1 and here >= nemo.gpus and kernels:
        return
    wanted = f"{nemo.nodes} x {nemo.gpus} GPUs" if nemo.nodes > 1 else f"{nemo.gpus} GPUs"
    lacking = "" if kernels else " and no Transformer Engine, which NVIDIA's NeMo container has"
    raise InputError(
        f"{step.stage}.engine: nemo-toolkit trains on GPUs: the recipe is for {wanted}, and this machine has {here}"
        f"{lacking}. Nothing was trained. What could be done here is done: the recipe is built and accepted by the "
        f"package, data and weights are in NeMo's forms, in {step.work}.\n"
        "To train, give the same command where these are, with these files on a shared disk: it goes on from "
        "here. Or start NeMo-Run there by hand"
        f"{', once on every machine,' if nemo.nodes > 1 else ''} with\n  {folder / 'submit.sh'}"
    )


def _publish(step: Step, settings: Train | Pretrain, logs: Path, parent: str | None, model: Path) -> None:
    """The last checkpoint as a Hugging Face folder, or a PEFT adapter."""
    from pipeline.engines.nemo import convert

    whole = [path.parents[1] for path in logs.rglob(convert.WEIGHTS)]
    if not whole:
        raise RuntimeError(f"NeMo left no whole checkpoint under {logs}")
    last = max(whole, key=lambda path: (path / convert.WEIGHTS).stat().st_mtime)
    if isinstance(settings, Train) and settings.peft == "lora":
        convert.to_peft(last, step.output / "adapter")
        write_json(step.output / "model.json", {"kind": "adapter", "path": "adapter", "parent": parent})
        return
    folder = step.output / "model"
    convert.to_hf(last, folder)
    # The model's own configuration: NeMo's says the training's sequence length where the model's belongs.
    exported = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    dtype = exported.get("dtype", exported.get("torch_dtype"))
    write_json(folder / "config.json", {**config, "dtype": dtype, "torch_dtype": dtype})
    if (model / "generation_config.json").exists():
        shutil.copyfile(model / "generation_config.json", folder / "generation_config.json")
    write_json(step.output / "model.json", {"kind": "full", "path": "model"})
