"""Preference training: a recipe class on the same engine, for every loss of ``preference_losses``.

The reference policy is the model as training found it.  Its log-probabilities are computed
once, before the first step, kept and published, so that training runs one model; or live,
in every step.  With adapters the reference is the policy with them off; without, a frozen
copy serves what needs whole distributions (the KL at the looks at held-out pairs) and the
live reference, out of AutoModel's sight, which tracks one model only.

All means are over pairs, and over all data-parallel processes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from nemo_automodel.recipes.llm.train_ft import build_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pipeline import strict_json
from pipeline.engines.automodel.adapters import adapters_off, has_adapters
from pipeline.engines.automodel.examples import IGNORED
from pipeline.engines.automodel.pairs import PairRecipe
from pipeline.engines.automodel.preference_losses import (
    LOSSES,
    PreferenceBatch,
    PreferenceLosses,
    mismatched_kl,
    preference_loss,
    sequence_log_probabilities,
)
from pipeline.schema import Align, Optimisation
from pipeline.schema.training import LOSS_SETTINGS
from pipeline.stages.ending import INTERRUPTED
from pipeline.stages.seals import entries
from pipeline.stages.step import Step

REFERENCE = "reference.safetensors"
SHARED_DISK_S = 60.0  # until another machine sees a new file
OF = "of"  # in the file's metadata: reference_key


def loss_parameters(settings: Align) -> dict[str, float | bool]:
    """The settings that are the chosen loss's own; those of the others are refused before (`pipeline/checks.py`)."""
    given = {name: getattr(settings, name) for name in LOSS_SETTINGS[settings.loss]}
    return {name: value for name, value in given.items() if value is not None}


class PreferenceRecipe(PairRecipe):
    """Training on (chosen, rejected) pairs; a third sequence of a group is a mismatched answer (KTO)."""

    loss_name = "preference loss"
    reported = ("accuracy", "reward_accuracy", "margin", "chosen_reward", "rejected_reward")

    def report_to(self, step: Step, settings: Optimisation, work: Any) -> None:
        """Where progress goes, and the settings of the loss."""
        super().report_to(step, settings, work)
        assert isinstance(settings, Align)
        self._align, self._work = settings, work
        self._group = work.group
        self._needs_reference = LOSSES[settings.loss].reference
        self._reference: dict[str, Any] = {}
        self._frozen: dict[str, Any] = {}  # a dictionary: AutoModel would save a bare model

    # -- the reference -----------------------------------------------------------------

    def load_checkpoint(self, restore_from: str | None = None) -> None:
        """Score with the reference first, while the weights still are the reference's."""
        adapted = has_adapters(self.model_parts[0])
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
        of = ""
        if self.dist_env.is_main and not path.exists():
            self._reporter.phase("look for reference scores")
            of = reference_key(self._work, self._align, self._computing())
            take_earlier(self._reporter, of, path)
        if self._first_has(path):
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
            save_file(scores, part_file, metadata={OF: of})
            part_file.rename(path)
            self._reporter.seal(path)
        return scores

    def _computing(self) -> list[Any]:
        """Where the arithmetic is done: kind of device, processes, threads of each."""
        device, count = self.compute_device.type, self.dist_env.world_size
        return [device, count, torch.get_num_threads() if device == "cpu" else 0]

    def _first_has(self, path: Path) -> bool:
        """Whether process 0 sees a file; the others take its word, and wait until they see it too."""
        if self.dist_env.world_size == 1:
            return path.exists()
        seen = torch.tensor(float(self.dist_env.is_main and path.exists()), device=self.compute_device)
        torch.distributed.all_reduce(seen)
        deadline = time.monotonic() + SHARED_DISK_S
        while seen and not path.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return bool(seen)

    def _score_all(self, loader: Any) -> Any:
        dataset, collate, size = loader.dataset, loader.collate_fn, self.dataloader.batch_size
        scores = torch.full((len(dataset.examples), self._group), torch.nan)
        places = dataset.first_visits()
        ranks, rank = self._get_dp_group_size(), self._get_dp_rank()
        for start in range(0, len(places), size * ranks):
            own = places[start + rank * size : start + (rank + 1) * size]
            batch = collate([dataset[place] for place in own or places[:1]])  # a sharded model runs in step
            if any(
                self.step_scheduler.sig_handler.signals_received()
            ):  # training, which hears it, is far off
                raise SystemExit(INTERRUPTED)
            found = self._scores(batch)[0].float().cpu()
            if own:
                scores[batch["index"]] = found
            if self.dist_env.is_main:
                self._reporter.progress(min(start + size * ranks, len(places)), len(places), "pairs")
        if ranks == 1:
            return scores
        known = self._dp_allreduce(torch.isfinite(scores).double())  # who knows what; nobody: it stays NaN
        return torch.where(known > 0, self._dp_allreduce(torch.nan_to_num(scores)), torch.nan)

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

    def pair_figures(self, batch: dict[str, Any], split: str, counting: bool = True) -> dict[str, Any]:
        """The loss of each pair, what it compares, and the lengths of the answers, ``[pairs]``."""
        scores, lengths = self._scores(batch)
        sides: dict[str, Any] = {}
        if self._needs_reference:
            reference = self._reference_scores(batch, split)
            sides = {"reference_chosen": reference[:, 0], "reference_rejected": reference[:, 1]}
            if self._group == 3:
                sides["kl"] = self._mean(mismatched_kl(scores[:, 2], reference[:, 2]), len(scores) * counting)
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

    # -- the looks at held-out pairs ---------------------------------------------------

    def look_figures(self, batch: dict[str, Any], counting: bool) -> dict[str, Any]:
        """The figures of held-out pairs, with the KL to the reference where whole distributions are known."""
        figures = self.pair_figures(batch, "validation", counting)
        if self._knows_distributions():
            figures["kl"] = self._divergence(batch)
        return figures

    def _mean(self, value: Any, pairs: int) -> Any:
        """The mean over all data-parallel processes of a mean over ``pairs`` pairs of this one's."""
        sums = torch.stack([value.double().cpu() * pairs, torch.tensor(float(pairs), dtype=torch.float64)])
        total, count = self._dp_allreduce(sums).tolist()
        return torch.tensor(total / max(count, 1), dtype=value.dtype, device=value.device)

    def _knows_distributions(self) -> bool:
        return "reference" in self._frozen or has_adapters(self.model_parts[0])

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

    def final_figures(self) -> dict[str, Any]:
        """As every training on pairs has them; the kept reference is published beside the model."""
        figures = super().final_figures()
        if self.dist_env.is_main and self._reference:
            shutil.copyfile(self._reporter.state / REFERENCE, self._reporter.output / REFERENCE)
        return figures


def reference_key(work: Any, settings: Align, computing: list[Any]) -> str:
    """What the reference's scores rest on, to the last bit: weights, examples and their batches, arithmetic.

    Code and toolchain are the same already: the controller names no others' artifacts (``runner/work.py``).
    """
    weights = sorted(Path(work.model).glob("*.safetensors"))
    files = [Path(work.model) / "config.json", *weights, Path(work.train), Path(work.validation)]
    digests = [entry["sha256"] for entry in entries(files)]
    layout = asdict(settings.parallel)
    rest = [work.group, settings.precision, settings.micro_batch_size, settings.packing, layout, computing]
    if settings.peft == "qlora":
        rest.append(settings.peft)
    return hashlib.sha256(strict_json.dumps([digests, rest], sort_keys=True).encode()).hexdigest()


def take_earlier(step: Step, of: str, target: Path) -> None:
    """Take the scores that an earlier alignment published, where they are of the same reference and examples."""
    for artifact in step.earlier:
        found = artifact / REFERENCE
        try:
            with safe_open(found, "pt") as file:
                if (file.metadata() or {}).get(OF) != of:
                    continue
            table = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["files"]
            shutil.copyfile(found, target)
        except (FileNotFoundError, ValueError, KeyError, SafetensorError):
            continue
        if entries([target]) != [table.get(REFERENCE)]:
            step.warning(f"{found} is not what was published; the reference is scored anew")
            target.unlink()
            continue
        step.seal(target)
        step.message(f"the reference's scores are those of align/{artifact.name}")
        return
