"""Preference training: a recipe class on the same engine.

The reference policy is the model as training found it: its log-probabilities are computed
once, before the first step, and kept, so training runs one model.  With LoRA the reference
is the policy with its adapter off; without, a frozen copy serves the looks at the held-out
pairs (the KL), out of AutoModel's sight, which tracks one model only.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nemo_automodel.components.loggers.metric_logger import MetricsSample
from safetensors.torch import load_file, save_file

from pipeline.engines.automodel.examples import IGNORED
from pipeline.engines.automodel.preference_losses import PreferenceBatch, dpo, sequence_log_probabilities
from pipeline.engines.automodel.recipe import NextTokenRecipe
from pipeline.schema import Align
from pipeline.stages.step import Step


class DpoRecipe(NextTokenRecipe):
    """Direct preference optimisation on (chosen, rejected) pairs."""

    loss_name = "DPO loss"

    def prefer(self, step: Step, settings: Align, kinds: list[str], cache: Path) -> None:
        """The settings of the loss, the kind of each validation pair, and where the reference is kept."""
        self._dpo = settings
        self._kinds = kinds
        self._cache = cache
        self._reference: dict[str, Any] = {}
        self._frozen: dict[str, Any] = {}  # a dictionary: AutoModel would save a bare model

    def load_checkpoint(self, restore_from: str | None = None) -> None:
        """Score with the reference first, while the weights still are the reference's."""
        if self._cache.exists():
            self._reference = load_file(self._cache)
        else:
            self._reporter.phase("score with the reference")
            for mp in self.model_parts:
                mp.eval()
            with torch.no_grad(), adapters_off(self.model_parts[0]):
                self._reference = {
                    "train": self._score_all(self.dataloader.dataset, self.dataloader.batch_size),
                    "validation": self._score_all(
                        next(iter(self.val_dataloaders.values())).dataset, self.dataloader.batch_size
                    ),
                }
            part = self._cache.with_suffix(".part")
            save_file(self._reference, part)
            part.rename(self._cache)
            self._reporter.seal(self._cache)
        if not any(True for _ in _adapters(self.model_parts[0])):
            self._frozen["reference"] = copy.deepcopy(self.model_parts[0]).eval().requires_grad_(False)
        self._reporter.phase("train")
        super().load_checkpoint(restore_from)

    def _score_all(self, dataset: Any, batch_size: int) -> Any:
        """Log-probabilities ``float32 [pairs, 2]`` of all pairs that the order visits."""
        from pipeline.engines.automodel.examples import collate

        scores = torch.zeros(len(dataset.examples), 2)
        seen: set[int] = set()
        places = []
        for place, index in enumerate(dataset.order.tolist()):
            if index not in seen:
                seen.add(index)
                places.append(place)
        for start in range(0, len(places), batch_size):
            batch = collate([dataset[place] for place in places[start : start + batch_size]])
            scores[batch["index"]] = self._pair_scores(batch)[0].float().cpu()
            self._reporter.progress(start + batch_size, len(places), "pairs")
        return scores

    def _pair_scores(self, batch: dict[str, Any]) -> tuple[Any, Any]:
        """Summed answer log-probabilities and answer lengths, each ``[pairs, 2]``."""
        logits, labels = self.labelled_logits(batch)
        rows = (batch["labels"] != IGNORED).nonzero()[:, 0].to(labels.device)
        count = len(batch["labels"])
        scores = sequence_log_probabilities(logits, labels, rows, count)
        lengths = torch.zeros(count, device=rows.device).index_add(
            0, rows, torch.ones_like(rows, dtype=torch.float32)
        )
        return scores.view(-1, 2), lengths.view(-1, 2)

    def _pair_losses(self, batch: dict[str, Any], split: str) -> tuple[Any, dict[str, Any]]:
        scores, lengths = self._pair_scores(batch)
        reference = self._reference[split][batch["index"]].to(scores.device)
        pairs = PreferenceBatch(scores[:, 0], scores[:, 1], reference[:, 0], reference[:, 1])
        made = dpo(pairs, beta=self._dpo.beta, label_smoothing=self._dpo.label_smoothing)
        losses, chosen, rejected = made.losses, made.chosen_rewards, made.rejected_rewards
        if self._dpo.sft_weight:
            losses = losses - self._dpo.sft_weight * scores[:, 0] / lengths[:, 0]
        figures = {
            "accuracy": (scores[:, 0] > scores[:, 1]).float().detach(),
            "reward_accuracy": (chosen > rejected).float(),
            "margin": (chosen - rejected).detach(),
        }
        return losses, figures

    def _forward_backward_step(
        self,
        idx: int,
        batch: dict[str, Any],
        *,
        loss_buffer: list[Any],
        num_label_tokens: int | None,
        num_batches: int,
        is_train: bool = True,
    ) -> None:
        losses, _ = self._pair_losses(batch, "train")
        loss = losses.mean() / num_batches
        loss_buffer.append(loss.detach().clone())
        loss.backward()  # a mean over pairs: averaging over data-parallel ranks keeps it one

    @torch.no_grad()
    def _run_validation_epoch(self, val_dataloader: Any) -> Any:
        """Accuracy, margin and KL to the reference over the validation pairs, by kind and together."""
        for mp in self.model_parts:
            mp.eval()
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for batch in val_dataloader:
            losses, figures = self._pair_losses(batch, "validation")
            figures["kl"] = self._divergence(batch)
            for place, index in enumerate(batch["index"].tolist()):
                kind = self._kinds[index]
                for name, values in {"loss": losses, **figures}.items():
                    for key in (name, f"{kind}_{name}"):
                        sums[key] += float(values[place])
                        counts[key] += 1
        means = {name: sums[name] / counts[name] for name in sums}
        # The last figure is what AutoModel's loop sums over its validation sets.
        metrics = {"val_loss": means.pop("loss"), **means, "pairs": counts["accuracy"], "num_label_tokens": 0}
        return MetricsSample(step=self.step_scheduler.step, epoch=self.step_scheduler.epoch, metrics=metrics)

    def _divergence(self, batch: dict[str, Any]) -> Any:
        """KL(policy || reference) in nats a token, exact over the vocabulary, ``[pairs]``.

        Averaged over the answer tokens of both sides of a pair.
        """
        policy, _ = self.labelled_logits(batch)
        if "reference" in self._frozen:
            reference, _ = self.labelled_logits(batch, self._frozen["reference"])
        else:
            with adapters_off(self.model_parts[0]):
                reference, _ = self.labelled_logits(batch)
        log_policy, log_reference = policy.float().log_softmax(-1), reference.float().log_softmax(-1)
        each = (log_policy.exp() * (log_policy - log_reference)).sum(-1)
        pairs = (batch["labels"] != IGNORED).nonzero()[:, 0].to(each.device) // 2
        count = len(batch["index"])
        sums = torch.zeros(count, device=each.device).index_add(0, pairs, each)
        return sums / torch.bincount(pairs, minlength=count)

    def log_val_metrics(self, val_name: str, log_data: Any, metric_logger: Any = None) -> None:
        """Pass a look at the held-out pairs to the step's events."""
        self._reporter.metric(
            log_data.step + 1, **{f"validation_{k}": v for k, v in log_data.metrics.items()}
        )

    def final_figures(self) -> dict[str, Any]:
        """The last look at the held-out pairs beside the figures of training."""
        figures = super().final_figures()
        held_out = self._run_validation_epoch(next(iter(self.val_dataloaders.values()))).metrics
        return {**figures, "held_out": {k: v for k, v in held_out.items() if k != "num_label_tokens"}}


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The model without its LoRA adapters, for as long as the context lasts."""
    adapted = list(_adapters(model))
    scales = [module.scale for module in adapted]
    for module in adapted:
        module.scale = 0.0
    try:
        yield
    finally:
        for module, scale in zip(adapted, scales, strict=True):
            module.scale = scale


def _adapters(model: Any) -> Iterator[Any]:
    """The model's LoRA layers."""
    return (module for module in model.modules() if hasattr(module, "lora_B") and hasattr(module, "scale"))
