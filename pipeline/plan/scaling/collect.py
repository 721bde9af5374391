"""``lifecycle scale collect``: what a sweep's recipes measured, as the runs.csv that ``scale train`` fits.

For each recipe the published pre-training artifact with the recipe's own settings is looked up under ``runs/NAME/pretrain/``; its
manifest says parameters, tokens and validation loss.  ``flops`` is 6 x parameters that a token is multiplied by x tokens: attention over the
context is left out, as in the laws themselves (Hoffmann et al. 2022, Appendix F, finds the difference small).
"""

from __future__ import annotations

import csv
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from pipeline import graph
from pipeline import recipe as recipes
from pipeline.errors import UserError
from pipeline.plan.scaling import sizes
from pipeline.plan.scaling.sweep import FLOP_PER_TOKEN, read_listing
from pipeline.plan.scaling.table import RUNS
from pipeline.plan.training.eager import parameters
from pipeline.runner.identity import parts_of
from pipeline.runner.store import Store, read_artifact
from pipeline.toolchains import ROOT


def collect(options: Namespace) -> int:
    """Write runs.csv; says which recipes have not run yet."""
    folder = Path(options.folder)
    listing = read_listing(folder)
    output = Path(options.output) if options.output else folder / "runs.csv"
    rows, missing, diverged = [], [], []
    for point in listing["points"]:
        file = folder / point["folder"] / f"{listing['name']}.yaml"
        row = _row(file, point, Path(options.runs))
        if row is None:
            missing.append(str(file))
        elif not math.isfinite(float(row["loss"])):
            diverged.append(str(file))
        else:
            rows.append(row)
    if not rows:
        raise UserError(
            f"none of the {len(missing) + len(diverged)} recipes of {folder} has a published pre-training under {options.runs}: "
            f"lifecycle pretrain {missing[0] if missing else diverged[0]}"
        )
    try:
        with output.open("w", encoding="utf-8", newline="") as file_:
            writer = csv.DictWriter(file_, [name for name in RUNS if name in rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror or error}") from None
    print(f"{output}: {len(rows)} of {len(listing['points'])} runs")
    for file_name in missing:
        print(f"not run yet: lifecycle pretrain {file_name}")
    for file_name in diverged:
        print(f"warning: {file_name} diverged (its loss is no number) and is left out")
    return 0


def _row(file: Path, point: dict[str, Any], runs: Path) -> dict[str, Any] | None:
    """The row of one recipe; None where it has not run with its present settings."""
    loaded = recipes.load(str(file), ROOT)
    step = next(each for each in graph.resolve(loaded.settings.stages, False) if each.name == "pretrain")
    wanted = parts_of(step, loaded.settings, {}, {})["settings"]
    store = Store(runs, loaded.name)
    for path in store.artifacts("pretrain"):
        artifact = read_artifact(path)
        if artifact is None or artifact.manifest["parts"]["settings"] != wanted:
            continue
        metrics = artifact.manifest["metrics"]
        model = loaded.settings.model
        embedded = parameters(model) - sizes.computing(model)
        tokens = int(metrics["tokens"])
        corpus = _corpus(store, artifact.manifest["parents"]["data"]["identity"])
        return {
            "parameters": int(metrics["parameters"]),
            "tokens": tokens,
            "loss": metrics["validation_loss"],
            "flops": f"{FLOP_PER_TOKEN * (int(metrics['parameters']) - embedded) * tokens:.6g}",
            "budget": f"{point['budget']:.6g}",
            "epochs": f"{tokens / corpus:.4g}" if corpus else "",
            "held_out": int(point["held_out"]),
            "name": point["folder"],
        }
    return None


def _corpus(store: Store, identity: str) -> float | None:
    """Training tokens of the curated data that a run was trained on, end-of-text tokens counted."""
    found = store.find("curate", identity)
    if found is None:
        return None
    metrics = found.manifest["metrics"]
    return float(metrics["pretrain_train_tokens"]) + float(metrics["sizes"]["pretrain"]["train"])
