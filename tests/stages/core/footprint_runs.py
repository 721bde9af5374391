"""Training runs that measure their memory: ``python footprint_runs.py FOLDER CASES`` in each of WORLD_SIZE processes.

Several runs in one process, for importing the libraries takes longer than a run.  ``CASES`` is a JSON file,
name -> {stage, shape, group, lengths, labels, settings}; a run leaves ``FOLDER/NAME/footprint-RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[3])]

from conftest import write_job  # noqa: E402

from pipeline import schema  # noqa: E402
from pipeline.engines.automodel import publish, session  # noqa: E402
from pipeline.engines.automodel.examples import Examples  # noqa: E402
from pipeline.engines.automodel.preference import PreferenceRecipe  # noqa: E402
from pipeline.engines.automodel.recipe import NextTokenRecipe  # noqa: E402
from pipeline.stages.step import Step  # noqa: E402

RECIPES = {"train": NextTokenRecipe, "align": PreferenceRecipe}


def start_from(folder: Path, shape: schema.Model) -> None:
    """A model of this shape and its tokenizer, stored in fp32 as the chain's own models are."""
    names = ["<pad>", "<eos>", "<unk>", *(f"word{i}" for i in range(3, shape.vocab_size))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    publish.new_model(shape, tokenizer, 1, folder / "model")


def examples(shape: schema.Model, case: dict[str, Any], groups: int) -> Examples:
    """Random sequences; the last ``labels`` (a share) of each are learned."""
    draw = torch.Generator().manual_seed(0)
    shortest = int(shape.context * case["shortest"])
    sequences = []
    for _ in range(groups * case["group"]):
        length = int(torch.randint(shortest, shape.context + 1, (), generator=draw))
        tokens = torch.randint(0, shape.vocab_size, (length + 1,), generator=draw).tolist()
        learned = round(length * case["labels"])
        sequences.append((tokens[:-1], [-100] * (length - learned) + tokens[length + 1 - learned :]))
    return Examples.of(sequences, case["group"])


def prepare(folder: Path, case: dict[str, Any], count: int) -> None:
    """Everything that the processes of a run read."""
    settings, shape = case["settings"], schema.Model(**case["shape"])
    wanted = {**settings, "parallel": schema.Parallel(**settings.get("parallel", {}))}
    if "lora" in settings:
        wanted["lora"] = schema.Lora(**settings["lora"])
    stage = {case["stage"]: {"max_steps": 2, "warmup_steps": 0, "validation_batches": 1, **wanted}}
    job = write_job(case["stage"], folder, model=case["shape"], launch={"processes": count}, **stage)
    job.write_text(json.dumps({**json.loads(job.read_text()), "extra": {"footprint": True}}))
    step = Step.load(job)
    start_from(step.state, shape)
    section = {"train": schema.Train, "align": schema.Align}[case["stage"]]
    data = examples(shape, case, 2 * settings["global_batch_size"])
    files = session.prepare(step, step.section(section), data, data, case["stage"])
    kind = session.kind_of(RECIPES[case["stage"]])
    places = (str(step.state / "model"), str(step.state / "tokenizer"))
    work = session.Run(case["stage"], kind, *places, *files, parent="pretrain", group=case["group"])
    session.write_run(folder / "run.json", work)


def main() -> None:
    """Run the cases in order, all processes together."""
    folder, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    torch.distributed.init_process_group("gloo")
    for name, case in cases.items():
        if os.environ["RANK"] == "0":
            prepare(folder / name, case, int(os.environ["WORLD_SIZE"]))
        torch.distributed.barrier()
        session.train(Step.load(folder / name / "job.json"), session.read_run(folder / name / "run.json"))
        torch.distributed.barrier()


if __name__ == "__main__":
    main()
