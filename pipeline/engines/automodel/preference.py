"""Preference training: a recipe class on the same engine, for every loss of ``preference_losses``.

The reference policy is the model as training found it.  Its log-probabilities are computed
once, before the first step, kept and published, so that training runs one model; or live,
in every step.  With adapters the reference is the policy with them off; without, a frozen
copy serves what needs whole distributions (the KL at the looks at held-out pairs) and the
live reference, out of AutoModel's sight, which tracks one model only.

All means are over pairs, and over all data-parallel processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nemo_automodel.components.loggers.metric_logger import MetricsSample
from nemo_automodel.recipes.llm.train_ft import build_model
from safetensors.torch import load_file, save_file

from pipeline.engines.automodel.examples import IGNORED
from pipeline.engines.automodel.preference_losses import (
    LOSSES,
    PreferenceBatch,
    PreferenceLosses,
    mismatched_kl,
    preference_loss,
    sequence_log_probabilities,
)
from pipeline.engines.automodel.recipe import NextTokenRecipe
from pipeline.schema import Align, Optimisation
from pipeline.stages.step import Step

REFERENCE = "reference.safetensors"
FIGURES = ("loss", "accuracy", "reward_accuracy", "margin", "chosen_reward", "rejected_reward")
OWN = ("label_smoothing", "average", "eta", "gamma", "desirable_weight", "undesirable_weight")


def loss_parameters(settings: Align) -> dict[str, float | bool]:
    """The settings that the chosen loss takes; those of the other losses are left alone."""
    wanted = LOSSES[settings.loss].defaults
    given = {name: getattr(settings, name) for name in OWN}
    return {name: value for name, value in given.items() if name in wanted and value is not None}


class PreferenceRecipe(NextTokenRecipe):
    """Training on (chosen, rejected) pairs; a third sequence of a group is a mismatched answer (KTO)."""

    loss_name = "preference loss"

    def report_to(self, step: Step, settings: Optimisation, work: Any) -> None:
        """Where progress goes, the settings of the loss, and the kind of each validation pair."""
        super().report_to(step, settings, work)
        assert isinstance(settings, Align)
        self._align = settings
        self._kinds = work.labels
        self._group = work.group
        self._needs_reference = LOSSES[settings.loss].reference
        self._reference: dict[str, Any] = {}
        self._frozen: dict[str, Any] = {}  # a dictionary: AutoModel would save a bare model
        self._sums = torch.zeros(len(FIGURES) + 1, dtype=torch.float64)

    # -- the reference -----------------------------------------------------------------

    def load_checkpoint(self, restore_from: str | None = None) -> None:
        """Score with the reference first, while the weights still are the reference's."""
        adapted = any(True for _ in _adapters(self.model_parts[0]))
        live = self._needs_reference and self._align.reference == "live"
        if not adapted and (live or self._align.exact_kl):
            copy = build_model(
                self.cfg.model,
                None,
                seed=self.cfg.get("seed", 42),
                cfg_quantization=self.cfg.get("quantization", None),
                distributed_setup=self.distributed_setup,
            )
            self._frozen["reference"] = copy.eval().requires_grad_(False)
        if self._needs_reference and not live:
            self._reference = self._kept_reference()
        if self.dist_env.is_main:
            self._reporter.phase("train")
        super().load_checkpoint(restore_from)

    def _kept_reference(self) -> dict[str, Any]:
        """Summed log-probabilities under the reference, ``float32 [examples, group]`` by split.

        NaN where a run of this length never looks.
        """
        path = self._reporter.state / REFERENCE
        if path.exists():
            return dict(load_file(path))
        if self.dist_env.is_main:
            self._reporter.phase("score with the reference")
        for part in self.model_parts:
            part.eval()
        loaders = {"train": self.dataloader, "validation": next(iter(self.val_dataloaders.values()))}
        with torch.no_grad(), adapters_off(self.model_parts[0]):
            scores = {split: self._score_all(loader) for split, loader in loaders.items()}
        if self.dist_env.is_main:
            part_file = path.with_suffix(".part")
            save_file(scores, part_file)
            part_file.rename(path)
            self._reporter.seal(path)
        return scores

    def _score_all(self, loader: Any) -> Any:
        dataset, collate, size = loader.dataset, loader.collate_fn, self.dataloader.batch_size
        scores = torch.full((len(dataset.examples), self._group), torch.nan)
        places = dataset.first_visits()
        ranks, rank = self._get_dp_group_size(), self._get_dp_rank()
        for start in range(0, len(places), size * ranks):
            own = places[start + rank * size : start + (rank + 1) * size]
            batch = collate([dataset[place] for place in own or places[:1]])  # a sharded model runs in step
            found = self._scores(batch)[0].float().cpu()
            if own:
                scores[batch["index"]] = found
            if self.dist_env.is_main:
                self._reporter.progress(min(start + size * ranks, len(places)), len(places), "pairs")
        known = torch.nan_to_num(scores) if ranks > 1 else scores
        return self._dp_allreduce(known) if ranks > 1 else scores

    def _reference_scores(self, batch: dict[str, Any], split: str) -> Any:
        """``[pairs, group]``, kept or computed now."""
        if self._reference:
            return self._reference[split][batch["index"]].to(self.compute_device)
        with torch.no_grad(), self._as_reference() as model:
            return self._scores(batch, model)[0]

    @contextmanager
    def _as_reference(self) -> Iterator[Any]:
        """The reference model, for as long as the context lasts."""
        if "reference" in self._frozen:
            yield self._frozen["reference"]
        else:
            with adapters_off(self.model_parts[0]):
                yield self.model_parts[0]

    # -- the loss ----------------------------------------------------------------------

    def _scores(self, batch: dict[str, Any], model: Any = None) -> tuple[Any, Any]:
        """Summed answer log-probabilities and answer lengths, each ``[pairs, group]``."""
        logits, labels = self.labelled_logits(batch, model)
        rows = batch["sequence"][batch["labels"] != IGNORED].to(labels.device)
        count = len(batch["index"]) * self._group
        scores = sequence_log_probabilities(logits, labels, rows, count)
        lengths = torch.bincount(rows, minlength=count).float()
        return scores.view(-1, self._group), lengths.view(-1, self._group)

    def _pair_losses(self, batch: dict[str, Any], split: str) -> dict[str, Any]:
        """The figures of each pair, ``[pairs]``; ``loss`` carries the gradient."""
        scores, lengths = self._scores(batch)
        sides: dict[str, Any] = {}
        if self._needs_reference:
            reference = self._reference_scores(batch, split)
            sides = {"reference_chosen": reference[:, 0], "reference_rejected": reference[:, 1]}
            if self._group == 3:
                kl = mismatched_kl(scores[:, 2], reference[:, 2])
                sides["kl"] = self._dp_allreduce(kl.clone()).to(scores.device) / self._get_dp_group_size()
        if "rewards" in batch:
            given = batch["rewards"].to(scores.device)
            sides |= {"true_reward_chosen": given[:, 0], "true_reward_rejected": given[:, 1]}
        made: PreferenceLosses = preference_loss(
            self._align.loss,
            PreferenceBatch(
                scores[:, 0],
                scores[:, 1],
                chosen_tokens=lengths[:, 0],
                rejected_tokens=lengths[:, 1],
                **sides,
            ),
            beta=self._align.beta,
            **loss_parameters(self._align),
        )
        losses = made.losses
        if self._align.sft_weight:
            losses = losses - self._align.sft_weight * scores[:, 0] / lengths[:, 0]
        return {
            "loss": losses,
            "accuracy": (scores[:, 0] > scores[:, 1]).float().detach(),
            "reward_accuracy": (made.chosen_rewards > made.rejected_rewards).float(),
            "margin": made.chosen_rewards - made.rejected_rewards,
            "chosen_reward": made.chosen_rewards,
            "rejected_reward": made.rejected_rewards,
            "chosen_tokens": lengths[:, 0],
            "rejected_tokens": lengths[:, 1],
        }

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
        with self.synchronised(idx == num_batches - 1):
            figures = self._pair_losses(batch, "train")
            loss = figures["loss"].mean() / num_batches
            # AutoModel adds up what the processes report, and averages their gradients.
            loss_buffer.append(loss.detach().clone() / self._get_dp_group_size())
            loss.backward()
        sums = torch.stack([figures[name].detach().sum().double() for name in FIGURES]).cpu()
        self._sums += torch.cat([sums, torch.tensor([len(batch["index"])], dtype=torch.float64)])

    def _run_train_optim_step(self, batches: Any, max_grad_norm: float | None = None) -> Any:
        self._sums.zero_()
        made = super()._run_train_optim_step(batches, max_grad_norm)
        *sums, pairs = self._dp_allreduce(self._sums.clone()).tolist()
        made.metrics |= {name: value / pairs for name, value in zip(FIGURES[1:], sums[1:], strict=True)}
        return made

    def extra_metrics(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Accuracy, margin and rewards of the training pairs."""
        return {name: metrics[name] for name in FIGURES[1:]}

    # -- the looks at held-out pairs ---------------------------------------------------

    @torch.no_grad()
    def _run_validation_epoch(self, val_dataloader: Any) -> Any:
        """Accuracy, margin, KL to the reference and lengths over the validation pairs, by kind and together."""
        for part in self.model_parts:
            part.eval()
        kinds = ["", *sorted(set(self._kinds))]
        names = [
            *FIGURES,
            "chosen_tokens",
            "rejected_tokens",
            *(["kl"] if self._knows_distributions() else []),
        ]
        sums = torch.zeros(len(kinds), len(names) + 1, dtype=torch.float64)
        for batch, counting in self.validation_batches():
            figures = self._pair_losses(batch, "validation")
            if "kl" in names:
                figures["kl"] = self._divergence(batch)
            if not counting:
                continue
            values = torch.stack([figures[name].double().cpu() for name in names], dim=1)
            for place, index in enumerate(batch["index"].tolist()):
                row = torch.cat([values[place], torch.ones(1, dtype=torch.float64)])
                for kind in ("", self._kinds[index]) if self._kinds else ("",):
                    sums[kinds.index(kind)] += row
        sums = self._dp_allreduce(sums)
        metrics: dict[str, Any] = {}
        for kind, row in zip(kinds, sums.tolist(), strict=True):
            prefix = f"{kind}_" if kind else ""
            metrics |= {f"{prefix}{n}": v / max(row[-1], 1) for n, v in zip(names, row, strict=False)}
        # AutoModel's loop sums the last figure over its validation sets.
        metrics |= {"val_loss": metrics.pop("loss"), "pairs": int(sums[0, -1]), "num_label_tokens": 0}
        return MetricsSample(step=self.step_scheduler.step, epoch=self.step_scheduler.epoch, metrics=metrics)

    def _knows_distributions(self) -> bool:
        return "reference" in self._frozen or any(True for _ in _adapters(self.model_parts[0]))

    def _divergence(self, batch: dict[str, Any]) -> Any:
        """KL(policy || reference) in nats a token, exact over the vocabulary, ``[pairs]``.

        Averaged over the answer tokens of both sides of a pair.
        """
        policy, _ = self.labelled_logits(batch)
        with self._as_reference() as model:
            reference, _ = self.labelled_logits(batch, model)
        log_policy, log_reference = policy.float().log_softmax(-1), reference.float().log_softmax(-1)
        each = (log_policy.exp() * (log_policy - log_reference)).sum(-1)
        sequences = batch["sequence"][batch["labels"] != IGNORED].to(each.device)
        own = sequences % self._group < 2  # not the mismatched answers
        pairs = (sequences // self._group)[own]
        count = len(batch["index"])
        sums = torch.zeros(count, device=each.device).index_add(0, pairs, each[own])
        return sums / torch.bincount(pairs, minlength=count)

    def log_val_metrics(self, val_name: str, log_data: Any, metric_logger: Any = None) -> None:
        """Pass a look at the held-out pairs to the step's events."""
        if self.dist_env.is_main:
            figures = {f"validation_{k}": v for k, v in log_data.metrics.items()}
            self._reporter.metric(log_data.step + 1, **figures)

    def final_figures(self) -> dict[str, Any]:
        """The last look at the held-out pairs beside the figures of training."""
        figures = super().final_figures()
        held_out = {k: v for k, v in self._final.metrics.items() if k != "num_label_tokens"}
        if self.dist_env.is_main and self._reference:
            _publish_reference(self._reporter.state / REFERENCE, self._reporter.output / REFERENCE)
        return {**figures, "held_out": held_out}


def _publish_reference(kept: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    target.hardlink_to(kept)


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The model without its adapters, for as long as the context lasts."""
    adapted = list(_adapters(model))
    before = [(module.scale, getattr(module, "use_dora", None)) for module in adapted]
    for module in adapted:
        module.scale = 0.0
        if getattr(module, "use_dora", False):
            module.use_dora = False  # its learned magnitude replaces the weight's norm
    try:
        yield
    finally:
        for module, (scale, dora) in zip(adapted, before, strict=True):
            module.scale = scale
            if dora is not None:
                module.use_dora = dora


def _adapters(model: Any) -> Iterator[Any]:
    """The model's LoRA layers."""
    return (module for module in model.modules() if hasattr(module, "lora_B") and hasattr(module, "scale"))
