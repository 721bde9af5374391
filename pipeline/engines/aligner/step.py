"""Alignment by NeMo-Aligner: everything that its container needs, and the line to start it there.

The step never trains: NeMo-Aligner's scripts are only in the container.  It ends with exit status 2 and says
where data, checkpoint and launch line are.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.engines.aligner import data, launch, package
from pipeline.engines.aligner.config import configuration
from pipeline.engines.nemo.step import checkpoint, sealed, together, told
from pipeline.schema import Align, Model
from pipeline.stages.models import latest_model, load_tokenizer, model_folder
from pipeline.stages.step import InputError, Step, read_jsonl


def run(step: Step) -> None:
    """Write data, checkpoint and launch line; always ends with :class:`InputError`, which says what to do."""
    os.environ["NEMO_HOME"] = str(step.work / "nemo-home")
    settings, shape = step.section(Align), step.section(Model)
    step.phase("configure")
    tokenizer = load_tokenizer(step)
    pairs, start, results = step.state / "data", step.state / "start", step.work / "results"
    tree = configuration(settings, shape.context, checkpoint=start, data=pairs, results=results)
    checked = package.check_configuration(tree)
    script = launch.write(tree, step.output / "submission")
    step.phase("data")
    batch = settings.global_batch_size
    sealed(
        step,
        "data",
        lambda part: told(step, data.write_pairs(step.inputs["data"], tokenizer, shape.context, batch, part)),
    )
    first = read_jsonl(pairs / data.FILES["train"])[0]
    checked += package.check_data(set(first))
    step.message(f"{checked} names of configuration and data are read by nemo-aligner's code")
    checkpoint(step, together(step, model_folder(step, latest_model(step))))
    raise InputError(_handed_over(step, script))


def _handed_over(step: Step, script: Path) -> str:
    return (
        "align.engine: NeMo-Aligner trains in its own container, which this program does not start. "
        "Nothing was trained. Data, NeMo checkpoint and configuration are written and checked against nemo-aligner 0.7.0, "
        f"in {step.work}.\nOn a machine with GPUs and these files, start in a container with NeMo-Aligner 0.7.0 "
        f"(on one machine once, under Slurm as a task for each GPU)\n  {script}\n"
        "Then turn its checkpoint into a Hugging Face folder (python -m pipeline.engines.nemo.convert to-hf) "
        "and go on from it with model.base"
    )
