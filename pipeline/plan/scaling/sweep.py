"""``lifecycle scale sweep``: the recipes of an IsoFLOP sweep for a base recipe (Hoffmann et al. 2022, section 3.2).

lifecycle scale sweep llama-tiny --budgets 5e11,1e12,2e12,4e12 --tokens-per-parameter 2 --held-out 1.4e13

For every budget C and size N a recipe of its own: the base's data, a model of about N parameters (:mod:`~pipeline.plan.scaling.sizes`),
and D = C / (6 N) tokens.  Its stages are ``curate`` and ``pretrain``.  All recipe files bear one name, each in a folder of its own, and a
recipe's name is the folder of its artifacts: so curation, whose identity they share, runs once, and the trained models lie beside each
other under ``runs/NAME/pretrain/``, where ``scale collect`` finds them by their settings.

Steps are D / (batch x tokens of a sequence); a sequence is a document, so its mean length is taken from the curation of the
base recipe where that has run.  The learning-rate schedule ends with the run, as an IsoFLOP point needs (Hoffmann et al. 2022, section 3.1);
warm-up is the base's, but at most a tenth of the steps.  The loss is that of the whole validation split, looked at once, at the end.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import recipe as recipes
from pipeline import schema, strict_json
from pipeline.errors import UserError
from pipeline.plan.quantity import words
from pipeline.plan.scaling import sizes
from pipeline.plan.scaling.budget import compute, positive
from pipeline.plan.scaling.corpus import Corpus, corpus_of
from pipeline.plan.scaling.recipes import write
from pipeline.plan.training.eager import parameters
from pipeline.toolchains import ROOT

LISTING = "sweep.json"
FLOP_PER_TOKEN = 6
WARM_UP = 0.1  # of the steps, at most
FEW_STEPS = 50
EPOCHS = 4.0  # Muennighoff et al. 2023, arXiv 2305.16264: repeats are almost as good as new data up to here


@dataclass(frozen=True)
class Point:
    """One run of the sweep: its recipe's folder, what it is to train, and how."""

    folder: str
    budget: float
    held_out: bool
    parameters: int
    tokens: int
    steps: int
    epochs: float | None
    hidden_size: int
    layers: int
    heads: int
    lr: float
    warmup_steps: int

    @property
    def flops(self) -> float:
        """What it will take: 6 N D of the rounded steps."""
        return FLOP_PER_TOKEN * self.parameters * self.tokens


def sweep(options: Namespace) -> int:
    """Write the recipes and say how to run them."""
    loaded = recipes.load(options.recipe, ROOT, options.set, options.site)
    base = loaded.settings
    if base.model.base is not None or "pretrain" not in base.stages:
        raise UserError(f"{loaded.name} does not pre-train from scratch: a sweep needs a recipe that does")
    corpus = corpus_of(loaded, Path(options.runs), options.tokens_per_sequence)
    made = list(_planned(base, corpus, options))
    name = f"{loaded.name}-sweep"
    folder = Path(options.output or f"sweeps/{loaded.name}")
    points = [point for point, _ in made]
    listing = {"base": loaded.name, "name": name, "points": [asdict(point) for point in points]}
    try:
        _make_room(folder)
        for point, settings in made:
            write(folder / point.folder / f"{name}.yaml", settings, loaded.name, point)
        (folder / LISTING).write_text(strict_json.dumps(listing, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be written: {error.strerror or error}") from None
    warnings = [*corpus.warnings, *_warnings(points)]
    if options.json:
        print(
            strict_json.dumps(
                {**listing, "folder": str(folder), "corpus": asdict(corpus), "warnings": warnings}
            )
        )
    else:
        _print(folder, points, corpus, warnings)
    return 0


def _planned(
    base: schema.Recipe, corpus: Corpus, options: Namespace
) -> Iterator[tuple[Point, schema.Recipe]]:
    """Every point with its recipe, held-out runs last."""
    budgets = sorted(_numbers(options.budgets, "--budgets", compute))
    ratio = positive(options.tokens_per_parameter, "--tokens-per-parameter")
    fixed = sorted(_numbers(options.sizes, "--sizes")) if options.sizes else None
    for budget in budgets:
        seen = set()
        for size in fixed or _about(optimum(budget, ratio), options):
            point, settings = planned(base, corpus, budget, size)
            if point.parameters not in seen:  # two sizes that one shape comes nearest to
                yield point, settings
            seen.add(point.parameters)
    if options.held_out is not None:
        budget = compute(options.held_out, "--held-out")
        size = options.held_out_size
        wanted = positive(size, "--held-out-size") if size else optimum(budget, ratio)
        yield planned(base, corpus, budget, wanted, held_out=True)
    elif options.held_out_size is not None:
        raise UserError("--held-out-size needs --held-out, the compute of that run")


def optimum(budget: float, ratio: float) -> float:
    """Parameters at which the budget pays for ``ratio`` tokens each: C = 6 N (ratio N)."""
    return math.sqrt(budget / (FLOP_PER_TOKEN * ratio))


def planned(
    base: schema.Recipe, corpus: Corpus, budget: float, size: float, held_out: bool = False
) -> tuple[Point, schema.Recipe]:
    """One point and its recipe."""
    model = sizes.shaped(base.model, size)
    batch = base.pretrain.global_batch_size
    steps = round(budget / (FLOP_PER_TOKEN * sizes.computing(model)) / (batch * corpus.tokens_per_sequence))
    if steps < 2:
        raise UserError(
            f"a budget of {budget:.3g} FLOP pays a model of {parameters(model):,} parameters less than two steps of {batch} "
            "sequences: ask for a larger budget, smaller models or a smaller batch"
        )
    warm_up = max(1, min(base.pretrain.warmup_steps, math.floor(WARM_UP * steps)))
    tokens = round(steps * batch * corpus.tokens_per_sequence)
    pretrain = replace(
        base.pretrain,
        max_steps=steps,
        lr=sizes.rate(base.model, model, base.pretrain.lr),
        warmup_steps=warm_up,
        validate_every=steps,
        best_every=0,
        validation_batches=corpus.validation_batches(batch) or base.pretrain.validation_batches,
    )
    kind = "held-out-" if held_out else ""
    point = Point(
        f"{kind}c{_short(budget)}-n{words(parameters(model), 'parameter').split()[0]}",
        budget,
        held_out,
        parameters(model),
        tokens,
        steps,
        tokens / corpus.tokens if corpus.tokens else None,
        model.hidden_size,
        model.layers,
        model.heads,
        pretrain.lr,
        warm_up,
    )
    settings = replace(
        base,
        description=f"IsoFLOP sweep: {budget:.3g} FLOP, {words(parameters(model), 'parameter')}s",
        stages=["curate", "pretrain"],
        model=model,
        pretrain=pretrain,
    )
    return point, settings


def _about(centre: float, options: Namespace) -> list[float]:
    """Sizes about the expected optimum, evenly spaced in logs."""
    models, spacing = int(positive(options.models, "--models")), positive(options.spacing, "--spacing")
    if models < 3 or spacing <= 1:
        raise UserError(
            "--models must be 3 or more, and --spacing above 1: a parabola needs three different sizes"
        )
    return [centre * spacing ** (place - (models - 1) / 2) for place in range(models)]


def _numbers(text: str, option: str, read: Callable[[str, str], float] = positive) -> list[float]:
    found = [read(part.strip(), option) for part in text.split(",") if part.strip()]
    if not found:
        raise UserError(f"{option}: expected numbers with commas between them, e.g. {option} 1e12,2e12")
    if len(set(found)) < len(found):
        raise UserError(f"{option} {text}: the same number is there twice")
    return found


def _make_room(folder: Path) -> None:
    """Drop the recipes of an earlier sweep in this folder; refuse one that holds anything else."""
    if not folder.exists():
        return
    listing = folder / LISTING
    if not folder.is_dir() or (any(folder.iterdir()) and not listing.is_file()):
        raise UserError(f"--output {folder}: is there already and holds no sweep; name another folder")
    if listing.is_file():
        before = json.loads(listing.read_text(encoding="utf-8"))
        for point in before["points"]:
            file = folder / point["folder"] / f"{before['name']}.yaml"
            file.unlink(missing_ok=True)
            if file.parent.is_dir() and not any(file.parent.iterdir()):
                file.parent.rmdir()


def _warnings(points: Sequence[Point]) -> Iterator[str]:
    for point in points:
        if point.epochs is not None and point.epochs > EPOCHS:
            yield (
                f"{point.folder}: {point.epochs:.1f} passes over the data; beyond {EPOCHS:g} repeats are worth less than new data "
                "(Muennighoff et al. 2023)"
            )
        if point.steps < FEW_STEPS:
            yield f"{point.folder}: only {point.steps} steps: its loss says more of the schedule than of its size"
    fitted: dict[float, int] = {}
    for point in points:
        if not point.held_out:
            fitted[point.budget] = fitted.get(point.budget, 0) + 1
    for budget, count in fitted.items():
        if count < 3:
            yield f"the budget of {budget:.3g} FLOP has {count} sizes: a parabola needs at least 3"
    if len(fitted) < 3:
        yield f"{len(fitted)} budgets: a power law over fewer than 3 minima cannot be checked; take 4 or more"


def _print(folder: Path, points: Sequence[Point], corpus: Corpus, warnings: Sequence[str]) -> None:
    from pipeline.plan.scaling.show import console, count, plain_table

    table = plain_table(
        "recipe",
        "budget (FLOP)",
        "parameters",
        "width x layers",
        "heads",
        "tokens",
        "epochs",
        "steps",
        "lr",
        "warm-up",
    )
    for point in points:
        table.add_row(
            point.folder,
            f"{point.budget:.3g}",
            count(point.parameters),
            f"{point.hidden_size} x {point.layers}",
            str(point.heads),
            count(point.tokens),
            "?" if point.epochs is None else f"{point.epochs:.2f}",
            str(point.steps),
            f"{point.lr:.2g}",
            str(point.warmup_steps),
        )
    out = console()
    out.print(table)
    total = sum(point.tokens for point in points)
    for line in (
        "",
        f"{len(points)} runs, {count(total)} tokens, {sum(point.flops for point in points):.3g} FLOP in all; a sequence counts "
        f"{corpus.tokens_per_sequence:.1f} tokens ({corpus.source})",
        *(f"warning: {warning}" for warning in warnings),
        "",
        f"run them     for recipe in {folder}/*/*.yaml; do lifecycle pretrain $recipe; done",
        f"collect      lifecycle scale collect {folder}",
        f"fit          lifecycle scale train --runs {folder}/runs.csv --flops C",
    ):
        out.print(line, markup=False, soft_wrap=True)


def _short(value: float) -> str:
    """5e11 for 500000000000.0; for folder names."""
    return f"{value:.3g}".replace("e+", "e")


def read_listing(folder: Path) -> dict[str, Any]:
    """The listing of a sweep.  Raises :class:`UserError` where the folder is no sweep's."""
    file = folder / LISTING
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder}: there is no {LISTING} that can be read: it is not a folder of `scale sweep`"
        ) from None
    assert isinstance(found, dict)
    return found
