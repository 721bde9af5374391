"""TRL's trainers as they come: ``python -m benchmarks.trainers.trl_side FOLDER KIND WARM_UP [key=value ...]``.

Their defaults: bf16 and gradient checkpointing on, no packing, batches in random order,
padded; for DPO the reference beside the policy in every step.  ``key=value`` changes an
argument of the trainer.  The data are given as tokens, so no time goes into tokenising.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.trainers.data import plain_sequences
from benchmarks.trainers.pace import Pace
from benchmarks.trainers.work import Work
from pipeline.stages.step import Step

SECTION = {"sft": "train", "dpo": "align"}


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The examples in the columns of TRL's own collators."""
    if kind == "sft":
        return [
            {"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)}
            for ((prompt, answer),) in plain_sequences(folder, kind)
        ]
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for (prompt, chosen), (_, rejected) in plain_sequences(folder, kind)
    ]


def main() -> None:
    folder, kind, warm_up = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    pace = Pace(warm_up)
    changes = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in sys.argv[4:])}
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    step = Step.load(folder / "job.json")
    torch.set_num_threads(step.threads)
    settings = step.settings[SECTION[kind]]

    class Prepared(DPOTrainer):  # type: ignore[misc]
        """With a data set that needs no tokenising."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    trainer, config = {"sft": (SFTTrainer, SFTConfig), "dpo": (Prepared, DPOConfig)}[kind]

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32)

    arguments: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "max_steps": settings["max_steps"],
        "per_device_train_batch_size": settings["global_batch_size"],
        "learning_rate": settings["lr"],
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    own: dict[str, Any] = {"ref_model": load()} if kind == "dpo" else {}
    made = trainer(
        model=load(),
        args=config(**{**arguments, **changes}),
        train_dataset=Dataset.from_list(records(folder, kind)),
        processing_class=PreTrainedTokenizerFast.from_pretrained(step.inputs["data"] / "tokenizer"),
        **own,
    )
    train = made.training_step
    done = Work()

    def counted(model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        nonlocal done
        lengths = (inputs["attention_mask"].sum(1) - 1).tolist()  # the last token is only predicted
        learned = inputs["labels"] >= 0 if "labels" in inputs else inputs["completion_mask"]
        done = Work.of(lengths, int(learned.sum()))
        return train(model, inputs, *given, **named)

    made.training_step = counted
    from transformers import TrainerCallback

    class Paced(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pace.step(done)

    made.add_callback(Paced())
    made.train()
    raise RuntimeError("the data ended before the benchmark did")


if __name__ == "__main__":
    main()
