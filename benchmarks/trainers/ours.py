"""The project's recipe classes on AutoModel: ``python -m benchmarks.trainers.ours FOLDER KIND WARM_UP [key=value ...]``.

``key=value`` changes a setting of the section.  DPO's reference is computed before training
starts; here each step is followed by the scoring of as many pairs, so that it is paid for
where it is measured.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.trainers.data import stored
from benchmarks.trainers.pace import Pace
from benchmarks.trainers.work import Work

SECTIONS = {"sft": ("train", "recipe:NextTokenRecipe"), "dpo": ("align", "preference:PreferenceRecipe")}
NEVER = 1 << 30  # steps


def build(folder: Path, kind: str, changes: dict[str, Any], tokenizer: Path | None = None) -> Any:
    """The recipe of a run that neither saves nor looks at held-out data until its end."""
    from pipeline.engines.automodel import precision, session
    from pipeline.stages.step import Step

    section, recipe = SECTIONS[kind]
    step = Step.load(folder / "job.json")
    step.work = folder / f"work-{os.getpid()}"
    own = {"checkpoint_every": NEVER, "validate_every": NEVER, "validation_batches": 1}
    step.settings[section] |= own | changes
    work = session.Run(
        section, recipe, str(folder / "start"), str(tokenizer or step.inputs["data"] / "tokenizer"),
        *(str(folder / f"{kind}{end}.safetensors") for end in ("", "-validation")),
        group=2 if kind == "dpo" else 1,
    )  # fmt: skip
    shutil.rmtree(step.work, ignore_errors=True)
    step.settings[section]["precision"] = precision.choose(step, work.settings(step))
    os.environ.update(session._alone())
    return session.build(step, work)


def watch(recipe: Any, examples: Any, pace: Any, scoring: bool) -> None:
    """Call ``pace.step`` after each optimiser step of a recipe that is set up."""
    import torch

    lengths = (examples.offsets[1:] - examples.offsets[:-1]).view(-1, examples.group)
    step = recipe._run_train_optim_step
    dataset, collate = recipe.dataloader.dataset, recipe.dataloader.collate_fn
    places = {int(index): place for place, index in reversed(list(enumerate(dataset.order)))}

    def timed(batches: Any, *given: Any, **named: Any) -> Any:
        made = step(batches, *given, **named)
        done = Work()
        for batch in batches:
            each = lengths[batch["index"]].flatten().tolist()
            done += Work.of(each, int((batch["labels"] >= 0).sum()))
            if scoring:
                score(recipe, collate([dataset[places[index]] for index in batch["index"].tolist()]), torch)
        pace.step(done)
        return made

    recipe._run_train_optim_step = timed


def score(recipe: Any, batch: dict[str, Any], torch: Any) -> None:
    """What the reference costs for a batch."""
    from pipeline.engines.automodel.preference import adapters_off

    with torch.no_grad(), adapters_off(recipe.model_parts[0]):
        recipe._scores(batch)


def main() -> None:
    folder, kind, warm_up = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    changes = dict(word.split("=", 1) for word in sys.argv[4:])
    pace = Pace(warm_up)
    recipe = build(folder, kind, {key: yaml.safe_load(value) for key, value in changes.items()})
    recipe.setup()
    watch(recipe, stored(folder, kind).examples, pace, kind == "dpo" and changes.get("reference") != "live")
    recipe.run_train_validation_loop()
    raise RuntimeError("the data ended before the benchmark did")


if __name__ == "__main__":
    main()
