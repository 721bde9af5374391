"""Next-token training on AutoModel's recipe class.

Set-up, optimiser, schedule, accumulation, clipping, data-parallel averaging, checkpoints
and resume are AutoModel's.  Ours are the forward pass (autocast on any device, logits
only where there is a label) and the reports to the step.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from nemo_automodel.recipes.llm.train_ft import TrainFinetuneRecipeForNextTokenPrediction
from torch.nn import functional

from pipeline.engines.automodel.examples import IGNORED
from pipeline.engines.automodel.linear_loss import linear_cross_entropy
from pipeline.stages.step import Step

METRIC_EVERY = 10  # optimiser steps


class NextTokenRecipe(TrainFinetuneRecipeForNextTokenPrediction):
    """Pre-training and supervised fine-tuning.

    ``report_to`` gives the recipe the running step and the precision; call it before
    ``setup()``.
    """

    loss_name = "loss"

    def report_to(self, step: Step, precision: str) -> None:
        """Where progress goes, and whether the forward pass is autocast to bf16."""
        self._reporter = step
        self._bf16 = precision == "bf16"
        self._seen: dict[str, Any] = {"tokens": 0, "last_loss": None}
        self._began = time.monotonic()

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

    def labelled_hidden(self, batch: dict[str, Any], model: Any) -> tuple[Any, Any]:
        """Last hidden states ``[labels, width]`` and labels ``[labels]`` of the labelled positions.

        In SFT most positions are prompt and padding, and the output layer is the widest of
        a small model: it is applied to the labelled positions only.
        """
        labels = batch["labels"].to(self.compute_device)
        wanted = labels != IGNORED
        with self.autocast():
            inputs = batch["input_ids"].to(self.compute_device)
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        return hidden[wanted], labels[wanted]

    def labelled_logits(self, batch: dict[str, Any], model: Any = None) -> tuple[Any, Any]:
        """Logits ``[labels, vocabulary]`` and labels ``[labels]`` of the labelled positions.

        Under data parallelism the whole model is called, as its wrapper requires, and the
        positions are chosen afterwards (not executed here: one process only).  ``model`` is
        the policy unless another is given.
        """
        model = model if model is not None else self.model_parts[0]
        if self.dist_env.world_size == 1:
            hidden, labels = self.labelled_hidden(batch, model)
            with self.autocast():
                return model.lm_head(hidden), labels
        labels = batch["labels"].to(self.compute_device)
        wanted = labels != IGNORED
        with self.autocast():
            inputs = batch["input_ids"].to(self.compute_device)
            return model(input_ids=inputs, use_cache=False).logits[wanted], labels[wanted]

    def summed_loss(self, batch: dict[str, Any]) -> Any:
        """Cross-entropy summed over the labelled positions, in nats."""
        head = self.model_parts[0].lm_head
        if self.dist_env.world_size == 1 and type(head) is torch.nn.Linear and head.bias is None:
            hidden, labels = self.labelled_hidden(batch, self.model_parts[0])
            if self._bf16:
                hidden = hidden.to(torch.bfloat16)
            return linear_cross_entropy(hidden, head.weight, labels)
        logits, labels = self.labelled_logits(batch)
        return functional.cross_entropy(logits.float(), labels, reduction="sum")

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
        loss = self.summed_loss(batch)
        if num_label_tokens is not None:
            loss = loss / num_label_tokens
        loss_buffer.append(loss.detach().clone())
        if is_train:
            (loss * self._get_dp_group_size(include_cp=True)).backward()

    def load_checkpoint(self, restore_from: str | None = None) -> None:
        """Go on from the latest checkpoint, asked for by name.

        One that AutoModel finds by itself it takes for another run's when the model's path
        differs, as it does after the work folder moved to the next epoch.  That it is this
        run's is known: the folder belongs to the step's identity.
        """
        super().load_checkpoint(restore_from or "LATEST")

    def save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        """AutoModel's checkpoint, sealed once it is complete: only sealed ones are gone on from."""
        super().save_checkpoint(*arguments, **named)
        latest = Path(self.checkpointer.config.checkpoint_dir) / "LATEST"
        if self.dist_env.is_main and latest.exists():
            self._reporter.seal(latest.resolve())

    def _make_progress_bar(self, total: int | None = None, initial: int = 0) -> None:
        return None

    def log_train_metrics(self, log_data: Any) -> None:
        """Pass an optimiser step's figures to the step's events."""
        if not self.dist_env.is_main:
            return
        self.metric_logger_train.log(log_data)
        metrics = log_data.metrics
        done = log_data.step + 1
        self._seen["tokens"] += metrics["num_tokens_per_step"]
        self._seen["last_loss"] = metrics["loss"]
        note = f"{self.loss_name} {metrics['loss']:.3f}, {metrics['tps']:,.0f} tokens/s"
        self._reporter.progress(done, self.step_scheduler.max_steps, "steps", note)
        if done % METRIC_EVERY == 0 or done == self.step_scheduler.max_steps:
            figures = {"loss": metrics["loss"], "lr": metrics["lr"], "grad_norm": float(metrics["grad_norm"])}
            self._reporter.metric(done, **figures)

    def log_val_metrics(self, val_name: str, log_data: Any, metric_logger: Any = None) -> None:
        """Pass a look at the validation loss to the step's events."""
        if self.dist_env.is_main and log_data is not None:
            self._reporter.metric(log_data.step + 1, validation_loss=log_data.metrics["val_loss"])

    def final_figures(self) -> dict[str, Any]:
        """Validation at the end of training, tokens seen and the rate, for the manifest.

        Tokens are counted from the fixed order of examples, so they are the same after a
        resume; ``train_loss`` is None when nothing but the end was left to do.
        """
        final = self._run_validation_epoch(next(iter(self.val_dataloaders.values())))
        seconds = time.monotonic() - self._began
        inputs, labels = self.dataloader.dataset.token_counts()
        return {
            "steps": int(self.step_scheduler.max_steps),
            "train_loss": self._seen["last_loss"],
            "validation_loss": final.metrics["val_loss"],
            "tokens": inputs,
            "label_tokens": labels,
            # Of the last attempt, where the step was interrupted.
            "tokens_per_second": round(self._seen["tokens"] / seconds),
        }
