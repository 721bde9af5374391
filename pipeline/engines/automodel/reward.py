"""Reward-model training: a scalar head on the same engine, the Bradley-Terry loss on pairs.

The model is the language model with a linear layer of one output on its last hidden state
(``LlamaForSequenceClassification`` with one label), read at the token that ends an answer.
:func:`scalar_head` makes one of a language model; its head is zero at first, so training
starts where every answer is worth the same and the loss of a pair is log 2.

All means are over pairs, and over all data-parallel processes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.engines.automodel.examples import IGNORED, Examples
from pipeline.engines.automodel.pairs import PairRecipe
from pipeline.engines.automodel.preference_losses import bradley_terry
from pipeline.schema import Optimisation, Reward
from pipeline.stages.step import InputError, Step, write_json

BINS = 10  # of the confidence, from a half to one


def scalar_head(start: Path, target: Path, pad: int | None) -> None:
    """Make ``target`` the model of ``start`` with a scalar head in place of its output layer.

    A Hugging Face folder that points at the weights of ``start``.  ``pad`` is the token that
    Hugging Face takes for padding when it looks for an answer's end; where the tokenizer has none
    besides the end token, the published model takes one sequence at a time.
    Raises :class:`InputError` for an architecture that transformers has no such head for.
    """
    import transformers
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    name = str((config.get("architectures") or ["(none)"])[0])
    wanted = name.replace("ForCausalLM", "ForSequenceClassification")
    if wanted == name or not hasattr(transformers, wanted):
        raise InputError(
            f"reward: transformers has no sequence classification for the architecture {name} of {start}; "
            "start from a model of another family, or leave reward out of the recipe's stages"
        )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    files = sorted(start.glob("*.safetensors"))
    places: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        link = f"model-{number:05d}-of-{len(files) + 1:05d}.safetensors"
        (target / link).symlink_to(file.resolve())
        with safe_open(file, "pt") as held:
            places |= {key: link for key in held.keys() if key != "lm_head.weight"}  # noqa: SIM118
    head = f"model-{len(files) + 1:05d}-of-{len(files) + 1:05d}.safetensors"
    save_file(
        {"score.weight": torch.zeros(1, config["hidden_size"])}, target / head, metadata={"format": "pt"}
    )
    index = {"metadata": {}, "weight_map": {**places, "score.weight": head}}
    write_json(target / "model.safetensors.index.json", index)
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    write_json(target / "config.json", {**config, "architectures": [wanted], "pad_token_id": pad, **labels})


def scored_at_end(pairs: Examples) -> Examples:
    """Preference examples for a scalar head: whole answers, the label (0) on the end token alone."""
    if not len(pairs):
        return pairs
    inputs, labels = [], []
    for start, end in zip(pairs.offsets[:-1].tolist(), pairs.offsets[1:].tolist(), strict=True):
        inputs.append(torch.cat([pairs.inputs[start:end], pairs.labels[end - 1 : end]]))
        labels.append(torch.full((end - start + 1,), IGNORED, dtype=torch.int32))
        labels[-1][-1] = 0
    extra = torch.arange(len(pairs.offsets))
    return Examples(torch.cat(inputs), torch.cat(labels), pairs.offsets + extra, pairs.group, pairs.rewards)


class RewardRecipe(PairRecipe):
    """Training of a scalar head on (chosen, rejected) pairs; the examples are of :func:`scored_at_end`."""

    loss_name = "reward loss"

    def report_to(self, step: Step, settings: Optimisation, work: Any) -> None:
        """Where progress goes, and the settings of the loss."""
        super().report_to(step, settings, work)
        assert isinstance(settings, Reward)
        self._margin = settings.margin
        self._each: list[Any] = []  # the head's last output
        self._bins = torch.zeros(BINS, 3, dtype=torch.float64)  # confidence, right, pairs

    def load_checkpoint(self, restore_from: str | None = None) -> None:
        """Take hold of the head before the weights are read."""
        model = getattr(self.model_parts[0], "module", self.model_parts[0])
        # Where transformers looks for the end of an answer, which is not used here.
        model.config.pad_token_id = 0
        forward = model.score.forward

        def kept(hidden: Any) -> Any:
            # fp32: two answers that differ by less than bf16 resolves are to have different scores.
            with torch.autocast(hidden.device.type, enabled=False):
                self._each = [forward(hidden.to(model.score.weight.dtype))]
            return self._each[0]

        model.score.forward = kept
        super().load_checkpoint(restore_from)

    def _scores(self, batch: dict[str, Any]) -> Any:
        """The rewards of both sides, ``float32 [pairs, 2]``, each read at its end token.

        The whole model is called, as its wrapper for several processes requires.
        """
        wanted = batch["labels"].to(self.compute_device) != IGNORED
        with self.autocast():
            self.model_parts[0](**self.forward_arguments(batch))
        return self._each.pop()[..., 0][wanted].float().view(-1, 2)

    def pair_figures(self, batch: dict[str, Any], split: str, counting: bool = True) -> dict[str, Any]:
        """The loss of each pair, whether it is ranked right, and its rewards, ``[pairs]``."""
        chosen, rejected = self._scores(batch).unbind(1)
        margin = 0.0
        if self._margin:
            given = batch["rewards"].to(chosen.device)
            margin = self._margin * (given[:, 0] - given[:, 1])
        losses = bradley_terry(chosen, rejected, margin)
        chosen, rejected = chosen.detach(), rejected.detach()
        # A tie is half right: a model that gives every answer the same is no better than a coin.
        right = (torch.sign(chosen - rejected) + 1) / 2
        figures = {"loss": losses, "accuracy": right, "margin": chosen - rejected}
        return {**figures, "chosen_reward": chosen, "rejected_reward": rejected}

    def look_figures(self, batch: dict[str, Any], counting: bool) -> dict[str, Any]:
        """The figures of held-out pairs, with the rewards' square; counts the calibration on the way."""
        figures = self.pair_figures(batch, "validation", counting)
        if counting:
            confidence = figures["margin"].double().cpu().abs().sigmoid()
            right = figures["accuracy"].double().cpu()
            own = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
            self._bins.index_add_(0, own, torch.stack([confidence, right, torch.ones_like(right)], dim=1))
        figures["square"] = (figures["chosen_reward"] ** 2 + figures["rejected_reward"] ** 2) / 2
        return figures

    def finish_look(self, metrics: dict[str, dict[str, float]]) -> dict[str, float]:
        """The rewards' mean and spread by kind; the expected calibration error of ``sigmoid(|margin|)``.

        Guo et al. 2017, equation 3.
        """
        for found in metrics.values():
            mean = (found["chosen_reward"] + found["rejected_reward"]) / 2
            found |= {"reward_mean": mean, "reward_spread": max(0.0, found.pop("square") - mean**2) ** 0.5}
        bins = self._dp_allreduce(self._bins.clone())
        self._bins.zero_()
        return {
            "calibration_error": float((bins[:, 0] - bins[:, 1]).abs().sum() / bins[:, 2].sum().clamp(min=1))
        }
