"""Models between stages: Hugging Face folders, and adapters over an earlier stage's model.

Every stage that makes a model publishes ``model.json`` beside it:

* ``{"kind": "full", "path": "model"}``: a Hugging Face folder (``config.json``,
  ``model.safetensors`` or shards and their index, in the section's ``save_precision``), or
* ``{"kind": "adapter", "path": "adapter", "parent": "train"}``: a PEFT LoRA folder
  (``adapter_config.json``, ``adapter_model.safetensors``) over the model of an earlier
  stage (``pretrain``, ``train`` or ``base``, the user's own folder).

:func:`model_folder` gives the plain Hugging Face folder of either.  It merges adapters
itself because the serving toolchain has no PEFT and the result must not depend on the
toolchain that merges: ``W + (alpha / rank) * B @ A``, computed in fp32 (Hu et al. 2021, section 4.1), and
with DoRA each of its rows scaled to its learned magnitude (Liu et al. 2024, equation 5).  :mod:`pipeline.adapters` has
the scales, and what else PEFT may ask for, which is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline import adapters, base_files
from pipeline.attributes import asking_template
from pipeline.stages import trial
from pipeline.stages.step import InputError, Step

# How transformers is asked for a model: what lies in its folder, as safetensors, without code of the model's own.
FROM_FILES = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
MODEL_STAGES = ("pretrain", "train", "align")


def available_models(step: Step) -> list[str]:
    """The models that this step can reach, oldest first, e.g. ``["pretrain", "train"]``."""
    names = [name for name in MODEL_STAGES if name in step.inputs]
    return ["base", *names] if step.base_model else names


def latest_model(step: Step) -> str:
    """The model that this step goes on from: the last of :func:`available_models`."""
    return available_models(step)[-1]


def tokenizer_folder(step: Step) -> Path:
    """The tokenizer's Hugging Face folder (curation publishes it in every recipe)."""
    return step.inputs["data"] / "tokenizer"


def load_tokenizer(step: Step) -> Any:
    """The tokenizer, as the class that transformers 4.57 and 5 both know; it decodes without clean-up."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder(step))
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def load_asking_tokenizer(step: Step) -> Any:
    """The tokenizer with the values of ``evaluate.attributes`` asked for by its chat template."""
    tokenizer = load_tokenizer(step)
    values = step.settings["evaluate"]["attributes"]
    if values and tokenizer.chat_template:
        tokenizer.chat_template = asking_template(tokenizer.chat_template, values)
    return tokenizer


def model_folder(step: Step, name: str) -> Path:
    """A plain Hugging Face folder of the named model, adapters merged.

    A merged copy is made once under the step's ``state/`` and reused on resume.  Of the user's own base model only what is
    read is there, so that no library finds a pickle in it (:func:`pipeline.base_files.view`).
    Raises :class:`InputError` when it has no weights.
    """
    if name == "base":
        assert step.base_model is not None
        try:
            view = base_files.view(step.base_model, step.work / "base")
        except base_files.Broken as error:
            raise InputError(f"model.base: {step.base_model}: {error}") from None
        trial.check(step.base_model)
        return view
    artifact = step.inputs[name]
    record = json.loads((artifact / "model.json").read_text(encoding="utf-8"))
    if record["kind"] == "full":
        return artifact / str(record["path"])
    merged = step.state / f"merged-{name}"
    if not merged.exists():
        part = step.state / f"merged-{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        merge_adapter(model_folder(step, record["parent"]), artifact / record["path"], part)
        part.rename(merged)
        step.seal(merged)
    return merged


def served_generation(own: Any) -> Any:
    """Of a model's own defaults of generation what every server applies to greedy answers, as settings of transformers'.

    The rest stays out of what is computed here, as it stays out of what is served; and transformers neither warns of it
    nor refuses it.
    """
    from transformers import GenerationConfig

    penalty = getattr(own, "repetition_penalty", None)
    return GenerationConfig(repetition_penalty=1.0 if penalty is None else penalty)


def read_weights(folder: Path) -> dict[str, Any]:
    """All tensors of a folder's safetensors shards, by name."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for shard in base_files.weight_files(folder):
        tensors.update(load_file(shard))
    return tensors


def merge_adapter(base: Path, adapter: Path, target: Path) -> None:
    """Write to ``target`` the model of ``base`` with the LoRA ``adapter`` added to its weights.

    Shard by shard, so memory is needed for the largest of them only; computed in fp32 and stored in the base's own
    precision.  Raises :class:`InputError` for an adapter that asks for more than this (:mod:`pipeline.adapters`), or that
    does not belong to the base.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    wrong = adapters.fault(config)
    if wrong:
        raise InputError(f"{adapter}: {wrong}")
    deltas = {
        name.removeprefix("base_model.model."): tensor.float()
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    ending = ".lora_A.weight"
    layers = {key.removesuffix(ending) for key in deltas if key.endswith(ending)}
    target.mkdir(parents=True)
    index = base / "model.safetensors.index.json"
    kept = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else None
    for file in sorted(base.iterdir()):
        if file.suffix == ".safetensors":
            weights = {name: each for name, each in load_file(file).items() if kept is None or name in kept}
            for layer in {name.removesuffix(".weight") for name in weights} & layers:
                name = f"{layer}.weight"
                try:
                    merged = _merged(weights[name], deltas, layer, config)
                except (KeyError, RuntimeError) as error:
                    raise InputError(
                        f"{adapter}: what it has for {layer} does not fit {base}'s {tuple(weights[name].shape)}: {error}"
                    ) from error
                weights[name] = merged.to(weights[name].dtype).contiguous()
                layers.remove(layer)
            save_file(weights, target / file.name, metadata={"format": "pt"})
        elif file.is_file():
            shutil.copy2(file, target / file.name)
    if layers:
        raise InputError(f"{adapter} changes {', '.join(sorted(layers))}, which {base} does not have")
    if deltas:
        raise InputError(
            f"{adapter}: {', '.join(sorted(deltas)[:3])} would be left out: only LoRA's A, B and DoRA's magnitude of "
            f"linear layers can be merged"
        )


def _merged(weight: Any, deltas: dict[str, Any], layer: str, config: dict[str, Any]) -> Any:
    """One weight with its adapter, in fp32; what was used is taken out of ``deltas``."""
    down, up = deltas.pop(f"{layer}.lora_A.weight"), deltas.pop(f"{layer}.lora_B.weight")
    change = adapters.scale(config, layer, down.shape[0]) * (up @ down)
    if change.shape != weight.shape:
        raise RuntimeError(f"B @ A is {tuple(change.shape)}")
    merged = weight.float() + change
    if config.get("use_dora"):
        magnitude = deltas.pop(f"{layer}.lora_magnitude_vector")
        merged *= (magnitude.flatten() / merged.norm(dim=1))[:, None]
    return merged
