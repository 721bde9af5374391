"""Run the light chain as the command line would: same errors, same exit statuses."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from pipeline import cli, schema, verbs
from pipeline.graph import Stage, Step
from pipeline.recipe import LoadedRecipe
from pipeline.runner.chain import Chain

HERE = "tests.faults.light"
CURATE = Stage(
    "curate", 1, "controller", ("curate",), ("data.jsonl",), uses_documents=True, module=f"{HERE}.curate"
)
TRAIN = Stage(
    "train",
    1,
    "controller",
    ("train",),
    ("model/weights",),
    consumes=(("data", ("curate",)),),
    module=f"{HERE}.train",
)
EXPORT = Stage(
    "export",
    1,
    "controller",
    ("export",),
    ("bundle",),
    consumes=(("data", ("curate",)), ("train", ("train",))),
    module=f"{HERE}.export",
)
STEPS = (
    Step(CURATE, ()),
    Step(TRAIN, (("data", "curate"),)),
    Step(EXPORT, (("data", "curate"), ("train", "train"))),
)


def chain(runs: Path, documents: Path, wait: bool = False, lease_s: float = 60.0, seed: int = 1234) -> Chain:
    """The light chain over a JSONL file of documents."""
    settings = schema.Recipe()
    settings.curate.sources = [schema.Source(kind="jsonl", path=str(documents))]
    settings.train.seed = seed
    settings.site.min_free_gb = 0.0
    settings.site.lease_s = lease_s
    settings.site.grace_s = 5.0
    return Chain(LoadedRecipe("light", settings), runs, STEPS, wait=wait)


def main(words: list[str]) -> int:
    """``RUNS DOCUMENTS [--wait] [--seed=N] [--lease=SECONDS]``; statuses as ``lifecycle run``."""
    options = dict(word.lstrip("-").partition("=")[::2] for word in words if word.startswith("--"))
    runs, documents = (Path(word) for word in words if not word.startswith("--"))
    made = chain(
        runs,
        documents,
        wait="wait" in options,
        lease_s=float(options.get("lease", 60)),
        seed=int(options.get("seed", 1234)),
    )
    verbs._load = lambda _: made  # type: ignore[assignment]
    return cli.guarded(verbs.run, Namespace(verb="run", plain=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
