"""Next-token training on AutoModel's recipe class.

Set-up, optimiser, schedule, accumulation, clipping, data-parallel averaging, checkpoints
and resume are AutoModel's.  Ours are the forward pass (autocast on any device, sequences
kept apart when packed, logits only where there is a label), the look at the validation
data, and the reports to the step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nemo_automodel.components.distributed.utils import get_sync_ctx
from nemo_automodel.components.loggers.metric_logger import MetricsSample
from nemo_automodel.recipes.llm.train_ft import TrainFinetuneRecipeForNextTokenPrediction
from torch.distributed.tensor import DTensor
from torch.nn import functional

from pipeline.engines.automodel.adapters import start_alike
from pipeline.engines.automodel.calibration import Calibration
from pipeline.engines.automodel.diverged import LOSS, finite_weights, learned_nothing, require_finite
from pipeline.engines.automodel.examples import IGNORED
from pipeline.engines.automodel.linear_loss import linear_cross_entropy
from pipeline.schema import Optimisation
from pipeline.stages.step import Step, write_json

if TYPE_CHECKING:
    from pipeline.engines.automodel.session import Run

METRIC_EVERY = 10  # optimiser steps
FORWARD = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class NextTokenRecipe(TrainFinetuneRecipeForNextTokenPrediction):
    """Pre-training and supervised fine-tuning.

    ``report_to`` gives the recipe the running step, its settings and what it is to train;
    call it before ``setup()``.
    """

    loss_name = "loss"

    def report_to(self, step: Step, settings: Optimisation, work: Run) -> None:
        """Where progress goes, and whether the forward pass is autocast to bf16."""
        self._reporter = step
        self._settings, self._section = settings, work.section
        self._bf16, self._seed = settings.precision == "bf16", settings.seed
        self._seen: dict[str, Any] = {"tokens": 0, "last_loss": None}
        self._began = time.monotonic()
        self._sealed: Path | None = None
        self._calibration = Calibration.of(step)

    @property
    def compute_device(self) -> Any:
        """Where the model is; AutoModel names no device on a machine without CUDA."""
        return self.dist_env.device or torch.device("cpu")

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast over fp32 weights, or nothing."""
        if not self._bf16:
            return nullcontext()
        context: AbstractContextManager[Any] = torch.autocast(self.compute_device.type, dtype=torch.bfloat16)
        return context

    def forward_arguments(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward pass is given of a batch, on its device."""
        given = {name: batch[name] for name in ("input_ids", *FORWARD) if name in batch}
        moved = {n: v.to(self.compute_device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        return {**moved, "use_cache": False}

    def labelled_hidden(self, batch: dict[str, Any], model: Any) -> tuple[Any, Any]:
        """Last hidden states ``[labels, width]`` and labels ``[labels]`` of the labelled positions.

        In SFT most positions are prompt and padding, and the output layer is the widest of
        a small model: it is applied to the labelled positions only.
        """
        # Places are found where the batch is made: a mask on a GPU would have to be waited for.
        labels = batch["labels"].flatten()
        places = (labels != IGNORED).nonzero()[:, 0]
        with self.autocast():
            hidden = model.model(**self.forward_arguments(batch)).last_hidden_state
        wanted = hidden.flatten(0, 1).index_select(0, places.to(hidden.device))
        return wanted, labels[places].to(hidden.device)

    def labelled_logits(self, batch: dict[str, Any], model: Any = None) -> tuple[Any, Any]:
        """Logits ``[labels, vocabulary]`` and labels ``[labels]`` of the labelled positions.

        In several processes the whole model is called, as its wrapper requires; of a packed
        row it then makes the logits of the labelled positions only.  ``model`` is the policy
        unless another is given.
        """
        model = model if model is not None else self.model_parts[0]
        if self.dist_env.world_size == 1:
            hidden, labels = self.labelled_hidden(batch, model)
            with self.autocast():
                return model.lm_head(hidden), labels
        labels = batch["labels"].to(self.compute_device)
        wanted = labels != IGNORED
        arguments = self.forward_arguments(batch)
        if len(labels) == 1:
            arguments["logits_to_keep"] = wanted[0].nonzero()[:, 0]
        with self.autocast():
            logits = _whole(model(**arguments).logits)
        return logits[0] if len(labels) == 1 else logits[wanted], labels[wanted]

    def summed_loss(self, batch: dict[str, Any]) -> Any:
        """Cross-entropy summed over the labelled positions, in nats."""
        head: Any = getattr(self.model_parts[0], "lm_head", None)  # DDP's wrapper has none
        if self.dist_env.world_size == 1 and type(head) is torch.nn.Linear and head.bias is None:
            hidden, labels = self.labelled_hidden(batch, self.model_parts[0])
            if self._bf16:
                hidden = hidden.to(torch.bfloat16)
            return linear_cross_entropy(hidden, head.weight, labels)
        logits, labels = self.labelled_logits(batch)
        return functional.cross_entropy(logits.float(), labels, reduction="sum")

    def synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between processes after the last micro batch of a step only."""
        deferred = getattr(self.distributed_config, "defer_fsdp_grad_sync", True)
        context: AbstractContextManager[Any] = get_sync_ctx(
            self.model_parts[0], last, defer_fsdp_grad_sync=deferred
        )
        return context

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
        if self._get_cp_group_size() > 1:  # AutoModel shares a sequence out itself (not executed here)
            given = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
            super()._forward_backward_step(
                idx,
                given,
                loss_buffer=loss_buffer,
                num_label_tokens=num_label_tokens,
                num_batches=num_batches,
                is_train=is_train,
            )
            return
        with self.synchronised(idx == num_batches - 1):
            # AutoModel adds up what the processes report, and averages their gradients.
            share = self.loss_share(batch, num_label_tokens, num_batches)
            loss_buffer.append(share.detach().clone())
            (share * self._get_dp_group_size(include_cp=True)).backward()

    def loss_share(self, batch: dict[str, Any], num_label_tokens: int | None, num_batches: int) -> Any:
        """What a micro batch adds to the loss of its optimiser step, over all processes."""
        return self.summed_loss(batch) / num_label_tokens

    def validation_batches(self) -> Iterator[tuple[dict[str, Any], int]]:
        """This process's batches of the validation data, and how many items of each count.

        Every process gets as many batches, since a sharded model runs in step; where the
        data do not divide, the last are filled up with what does not count.
        """
        loader = next(iter(self.val_dataloaders.values()))
        dataset, collate, size = loader.dataset, loader.collate_fn, loader.batch_size
        ranks, rank = self._get_dp_group_size(), self._get_dp_rank()
        for start in range(0, len(dataset), size * ranks):
            places = range(start + rank * size, min(start + (rank + 1) * size, len(dataset)))
            filled = list(places) or [0]
            yield collate([dataset[place] for place in filled]), len(places)

    def _run_train_optim_step(self, batches: Any, max_grad_norm: float | None = None) -> Any:
        """AutoModel's optimiser step; ends training where it has come apart, and hears a signal to stop.

        AutoModel asks for the signal only at steps that write no checkpoint of their own: never, where
        every step does.
        """
        made = super()._run_train_optim_step(batches, max_grad_norm)
        figures = made.metrics
        self._require_finite({LOSS: figures["loss"], "the gradient's norm": figures["grad_norm"]})
        _ = self.step_scheduler.sigterm_received
        return made

    def _require_finite(self, figures: dict[str, Any]) -> None:
        scheduler, checkpoints = self.step_scheduler, Path(self.checkpointer.config.checkpoint_dir)
        done = min(scheduler.step + 1, scheduler.max_steps)
        require_finite(figures, int(done), self._settings, self._section, checkpoints)

    @torch.no_grad()
    def _run_validation_epoch(self, val_dataloader: Any) -> Any:
        """A look at the validation data, in evaluation mode; the loss must be finite."""
        for part in self.model_parts:
            part.eval()
        made = self.look()
        self._require_finite({"the validation loss": made.metrics["val_loss"]})
        return made

    def look(self) -> Any:
        """The figures of the validation data, ``val_loss`` among them."""
        sums = torch.zeros(2, dtype=torch.float64)  # nats, labels
        for batch, counting in self.validation_batches():
            loss = self.summed_loss(batch)
            if counting:
                sums += torch.tensor([float(loss), float((batch["labels"] != IGNORED).sum())])
        total, labels = self._dp_allreduce(sums).tolist()
        metrics = {"val_loss": total / max(labels, 1), "num_label_tokens": int(labels)}
        return MetricsSample(step=self.step_scheduler.step, epoch=self.step_scheduler.epoch, metrics=metrics)

    def load_checkpoint(self, restore_from: str | None = None) -> None:
        """Go on from the latest checkpoint, asked for by name.

        One that AutoModel finds by itself it takes for another run's when the model's path
        differs, as it does after the work folder moved to the next epoch.  That it is this
        run's is known: the folder belongs to the step's identity.
        """
        start_alike(self.model_parts[0], self._seed)
        with self._unwrapped_on_load():
            super().load_checkpoint(restore_from or "LATEST")

    @contextmanager
    def _unwrapped_on_load(self) -> Iterator[None]:
        """Weights are loaded into the model inside DDP's wrapper, as they are saved from it.

        AutoModel 0.7 unwraps on saving only, and then misses the output layer of a model with
        tied embeddings (held by the kill tests of ``tests/stages/core/test_layouts.py``).
        """
        load = self.checkpointer.load_model

        def unwrapped(model: Any, *arguments: Any, **named: Any) -> Any:
            parts = model if isinstance(model, list) else [model]
            inside = [getattr(part, "module", part) for part in parts]
            return load(inside if isinstance(model, list) else inside[0], *arguments, **named)

        self.checkpointer.load_model = unwrapped
        try:
            yield
        finally:
            self.checkpointer.load_model = load

    def save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        """AutoModel's checkpoint, sealed once it is complete: only sealed ones are gone on from.

        The loss of a step was computed before its update, so the update may have broken the weights unseen.
        """
        if not finite_weights(self.model_parts, self.dist_env.world_size, self.compute_device):
            self._require_finite({"a weight": float("nan")})
        super().save_checkpoint(*arguments, **named)
        self._seal_latest()

    def _finalize_and_close_checkpointer(self) -> None:
        """The last of the checkpoints that are written beside training is complete only now."""
        super()._finalize_and_close_checkpointer()
        self._seal_latest()

    def _seal_latest(self) -> None:
        latest = Path(self.checkpointer.config.checkpoint_dir) / "LATEST"
        if self.dist_env.is_main and latest.exists() and latest.resolve() != self._sealed:
            self._sealed = latest.resolve()
            self._reporter.seal(self._sealed)

    def take_best(self) -> None:
        """The weights of the lowest validation loss that was seen, in place of the last."""
        with self._unwrapped_on_load():
            super().load_checkpoint("LOWEST_VAL")

    def _make_progress_bar(self, total: int | None = None, initial: int = 0) -> None:
        return None

    def log_train_metrics(self, log_data: Any) -> None:
        """Pass an optimiser step's figures to the step's events."""
        if self._calibration is not None:
            tokens = log_data.metrics["num_tokens_per_step"]
            self._calibration.look(tokens, self.dist_env.is_main, self._whole_run)
        if not self.dist_env.is_main:
            return
        self.metric_logger_train.log(log_data)
        metrics = log_data.metrics
        done = log_data.step + 1
        self._seen["tokens"] += metrics["num_tokens_per_step"]
        self._seen["last_loss"] = metrics["loss"]
        if done == 1:
            write_json(self._first_step, {"loss": metrics["loss"]})
            self._reporter.seal(self._first_step)
        note = f"{self.loss_name} {metrics['loss']:.3f}, {metrics['tps']:,.0f} tokens/s"
        self._reporter.progress(done, self.step_scheduler.max_steps, "steps", note)
        if done % METRIC_EVERY == 0 or done == self.step_scheduler.max_steps:
            figures = {"loss": metrics["loss"], "lr": metrics["lr"], "grad_norm": float(metrics["grad_norm"])}
            self._reporter.metric(done, **figures, **self.extra_metrics(metrics))

    @property
    def _first_step(self) -> Path:
        """Where the loss of the first step is kept for the end, which another attempt may come to."""
        return self._reporter.state / "first-step.json"

    def _whole_run(self) -> dict[str, Any]:
        """For a calibration: one look at the validation loss, and what the whole run will read."""
        self._run_validation_epoch(next(iter(self.val_dataloaders.values())))
        tokens, _ = self.dataloader.dataset.token_counts()
        return {
            "max_steps": int(self.step_scheduler.max_steps),
            "run_tokens": tokens,
            "processes": self.dist_env.world_size,
        }

    def extra_metrics(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Further figures of an optimiser step that are worth reporting."""
        return {}

    def log_val_metrics(self, val_name: str, log_data: Any, metric_logger: Any = None) -> None:
        """Pass a look at the validation loss to the step's events."""
        if self.dist_env.is_main and log_data is not None:
            self._reporter.metric(log_data.step + 1, validation_loss=log_data.metrics["val_loss"])

    def final_figures(self) -> dict[str, Any]:
        """Validation at the end of training, tokens seen and the rate, for the manifest.

        Tokens are counted from the fixed order of examples, so they are the same after a
        resume; ``train_loss`` is None when nothing but the end was left to do.
        """
        final = self._final = self._run_validation_epoch(next(iter(self.val_dataloaders.values())))
        seconds = time.monotonic() - self._began
        inputs, labels = self.dataloader.dataset.token_counts()
        self._tell_of_nothing_learned(final.metrics["val_loss"])
        return {
            "parameters": sum(parameter.numel() for parameter in self.model_parts[0].parameters()),
            "processes": self.dist_env.world_size,
            "steps": int(self.step_scheduler.max_steps),
            "train_loss": self._seen["last_loss"],
            "validation_loss": final.metrics["val_loss"],
            "tokens": inputs,
            "label_tokens": labels,
            **self._visited(),
            # Of the last attempt, where the step was interrupted.
            "tokens_per_second": round(self._seen["tokens"] / seconds),
        }

    def guessed_over(self) -> int | None:
        """Tokens that a guess would be spread over; None where the loss is no cross-entropy over tokens."""
        model = getattr(self.model_parts[0], "module", self.model_parts[0])
        return int(model.get_input_embeddings().weight.shape[0])

    def _tell_of_nothing_learned(self, loss: float) -> None:
        if not self.dist_env.is_main:
            return
        kept = self._first_step
        start = json.loads(kept.read_text(encoding="utf-8"))["loss"] if kept.exists() else None
        if told := learned_nothing(loss, start, self.guessed_over()):
            self._reporter.warning(told)

    def _visited(self) -> dict[str, int]:
        """What of the data the run visited, and how much of the held-out data its looks take."""
        held_out = next(iter(self.val_dataloaders.values())).dataset.visits()
        return {
            **self.dataloader.dataset.visits(),
            "validation_examples": held_out["examples"],
            "validation_looked_at": held_out["visits"],
        }


def _whole(tensor: Any) -> Any:
    """The whole of a tensor that tensor parallelism left in shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
