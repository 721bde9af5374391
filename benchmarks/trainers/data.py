"""The data and the model of the training benchmark, made once by the project's own code.

    python -m benchmarks.trainers.data FOLDER

reads ``FOLDER/job.json`` (a step's job with the recipe's settings and curation's artifact)
and writes there the examples of both kinds in the order that the recipe would visit them,
and a freshly initialised model of the recipe's shape: how quick a step is does not depend
on what the weights are.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

KINDS = ("sft", "dpo")


def main() -> None:
    """Write ``sft.safetensors``, ``dpo.safetensors``, their validation sets, and ``start/``."""
    from pipeline.engines.automodel import publish, tokenise
    from pipeline.engines.automodel.examples import run_order, spread
    from pipeline.schema import Align, Model, Train
    from pipeline.stages.models import load_tokenizer
    from pipeline.stages.step import Step

    folder = Path(sys.argv[1])
    step = Step.load(folder / "job.json")
    tokenizer, shape = load_tokenizer(step), step.section(Model)
    for kind in KINDS:
        settings: Any = step.section({"sft": Train, "dpo": Align}[kind])
        source = step.inputs["data"] / {"sft": "sft", "dpo": "preference"}[kind]
        for split in ("train", "validation"):
            records = tokenise.read_records(source / f"{split}.jsonl")
            where = f"{kind}, {split}"
            if kind == "sft":
                made, _ = tokenise.instruction_examples(tokenizer, records, shape.context, where=where)
            else:
                made, _, _ = tokenise.preference_examples(tokenizer, records, shape.context, where=where)
            batch = settings.global_batch_size
            order = run_order(made, settings.max_steps, batch, settings.seed)
            name = kind if split == "train" else f"{kind}-validation"
            made.save(folder / f"{name}.safetensors", order if split == "train" else spread(len(made), batch))
    if not (folder / "start").exists():
        publish.new_model(shape, tokenizer, step.section(Train).seed, folder / "start")


def stored(folder: Path, kind: str) -> Any:
    """The examples of a kind, as AutoModel is given them: ``OrderedExamples``."""
    from pipeline.engines.automodel.examples import OrderedExamples

    return OrderedExamples(str(folder / f"{kind}.safetensors"), {"sft": 1, "dpo": 2}[kind])


def plain_sequences(folder: Path, kind: str) -> list[list[tuple[list[int], list[int]]]]:
    """The sequences of each example in the data's own order, as (prompt, answer) token ids.

    The answer is what has labels; the last token, which is only ever predicted, ends it.
    """
    examples = stored(folder, kind).examples
    inputs, labels, ends = (t.tolist() for t in (examples.inputs, examples.labels, examples.offsets))
    pairs = []
    for start, end in itertools.pairwise(ends):
        whole = [*inputs[start:end], labels[end - 1]]
        first = next(place for place in range(start, end) if labels[place] >= 0) - start + 1
        pairs.append((whole[:first], whole[first:]))
    return [pairs[i : i + examples.group] for i in range(0, len(pairs), examples.group)]


if __name__ == "__main__":
    main()
