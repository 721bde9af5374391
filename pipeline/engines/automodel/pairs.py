"""What training on preference pairs has in common, whatever is trained: a policy or a reward model.

A subclass says what is known of each pair of a batch (:meth:`PairRecipe.pair_figures`); its ``loss`` is
averaged over pairs, accumulation and data-parallel processes, and every figure is reported as such a
mean: of the training pairs at each optimiser step, of the held-out ones by kind and together.
"""

from __future__ import annotations

from typing import Any

import torch
from nemo_automodel.components.loggers.metric_logger import MetricsSample

from pipeline.engines.automodel.recipe import NextTokenRecipe
from pipeline.schema import Optimisation
from pipeline.stages.step import Step


class PairRecipe(NextTokenRecipe):
    """Training on (chosen, rejected) pairs; ``reported`` are the figures of an optimiser step."""

    reported: tuple[str, ...] = ("accuracy", "margin", "chosen_reward", "rejected_reward")

    def report_to(self, step: Step, settings: Optimisation, work: Any) -> None:
        """Where progress goes, and the kind of each validation pair."""
        super().report_to(step, settings, work)
        self._kinds = work.labels
        self._sums = torch.zeros(len(self.reported) + 1, dtype=torch.float64)

    def pair_figures(self, batch: dict[str, Any], split: str, counting: bool = True) -> dict[str, Any]:
        """The figures of each pair of a batch, ``[pairs]``; ``loss`` carries the gradient.

        ``counting`` is off for a batch that only fills up, so that all processes have as many.
        """
        raise NotImplementedError

    def look_figures(self, batch: dict[str, Any], counting: bool) -> dict[str, Any]:
        """The figures of held-out pairs, the same names in every process."""
        return self.pair_figures(batch, "validation", counting)

    def finish_look(self, metrics: dict[str, dict[str, float]]) -> dict[str, float]:
        """Change the means of each kind (``""``: all pairs) in place; returns figures that are no means."""
        return {}

    def loss_share(self, batch: dict[str, Any], num_label_tokens: int | None, num_batches: int) -> Any:
        """The mean over the pairs of a micro batch, which weighs as much as any other one."""
        figures = self.pair_figures(batch, "train")
        sums = torch.stack([figures[name].detach().sum().double() for name in self.reported]).cpu()
        self._sums += torch.cat([sums, torch.tensor([len(batch["index"])], dtype=torch.float64)])
        return figures["loss"].mean() / (num_batches * self._get_dp_group_size())

    def _run_train_optim_step(self, batches: Any, max_grad_norm: float | None = None) -> Any:
        self._sums.zero_()
        made = super()._run_train_optim_step(batches, max_grad_norm)
        *sums, pairs = self._dp_allreduce(self._sums.clone()).tolist()
        made.metrics |= {name: value / pairs for name, value in zip(self.reported, sums, strict=True)}
        return made

    def extra_metrics(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Accuracy, margin and rewards of the training pairs."""
        return {name: metrics[name] for name in self.reported}

    def guessed_over(self) -> None:
        """The loss compares two answers; what it is by chance is where training began."""
        return

    def look(self) -> Any:
        """The means of the held-out pairs' figures, by kind and together."""
        kinds = ["", *sorted(set(self._kinds))]
        names: list[str] = []
        sums = torch.zeros(0)
        for batch, counting in self.validation_batches():
            figures = self.look_figures(batch, counting > 0)
            if not names:
                names = list(figures)
                sums = torch.zeros(len(kinds), len(names) + 1, dtype=torch.float64)
            if not counting:
                continue
            values = torch.stack([figures[name].double().cpu() for name in names], dim=1)
            for place, index in enumerate(batch["index"].tolist()):
                row = torch.cat([values[place], torch.ones(1, dtype=torch.float64)])
                for kind in ("", self._kinds[index]) if self._kinds else ("",):
                    sums[kinds.index(kind)] += row
        rows = dict(zip(kinds, self._dp_allreduce(sums).tolist(), strict=True))
        means = {
            kind: {name: value / max(row[-1], 1) for name, value in zip(names, row, strict=False)}
            for kind, row in rows.items()
        }
        others = self.finish_look(means)
        metrics: dict[str, Any] = {
            f"{kind}_{name}" if kind else name: value
            for kind, found in means.items()
            for name, value in found.items()
        }
        # AutoModel's loop sums the last figure over its validation sets.
        metrics |= {
            **others,
            "val_loss": metrics.pop("loss"),
            "pairs": int(rows[""][-1]),
            "num_label_tokens": 0,
        }
        return MetricsSample(step=self.step_scheduler.step, epoch=self.step_scheduler.epoch, metrics=metrics)

    def log_val_metrics(self, val_name: str, log_data: Any, metric_logger: Any = None) -> None:
        """Pass a look at the held-out pairs to the step's events."""
        if self.dist_env.is_main:
            figures = {f"validation_{k}": v for k, v in log_data.metrics.items()}
            self._reporter.metric(log_data.step + 1, **figures)

    def final_figures(self) -> dict[str, Any]:
        """The last look at the held-out pairs beside the figures of training."""
        figures = super().final_figures()
        held_out = {k: v for k, v in self._final.metrics.items() if k != "num_label_tokens"}
        return {**figures, "held_out": held_out}
