"""``lifecycle scale train``: the compute-optimal model and token count for a budget, by every law.

lifecycle scale train --flops 5.76e23
lifecycle scale train --gpu-hours 1e6 --gpu H100-80GB --mfu 0.4
lifecycle scale train --budget-usd 2e6 --gpu H100-80GB --plot isoflop.svg
lifecycle scale train --runs runs.csv --flops 1e15
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from pipeline import strict_json
from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity
from pipeline.plan.scaling import budget as budgets
from pipeline.plan.scaling import picture
from pipeline.plan.scaling.commands import BOOTSTRAP
from pipeline.plan.scaling.laws import Optimum, outside, published


def train(options: Namespace) -> int:
    """Print (or draw, or write as JSON) what the budget buys; 0 where it could be said."""
    spent = budget_of(options)
    if spent is None and options.runs is None:
        raise UserError(
            "say what there is to spend (--flops, --gpu-hours with --gpu, or --budget-usd with --gpu), or what to fit (--runs FILE)"
        )
    if options.plot:
        picture.check(options.plot)
    own = None
    _refuse_ignored(options)
    if options.runs is not None:
        from pipeline.plan.scaling.own import study
        from pipeline.plan.scaling.runs import read_runs

        level = budgets.share(options.level or BOOTSTRAP["level"], "--level")
        draws = budgets.whole(options.bootstrap or BOOTSTRAP["bootstrap"], "--bootstrap")
        seed = budgets.whole(options.seed or BOOTSTRAP["seed"], "--seed")
        kind = options.interval or "parametric"
        own = study(options.runs, *read_runs(Path(options.runs)), kind, level, draws, seed)
    optima: tuple[Optimum, ...] = ()
    if spent is not None:
        optima = (*(own.optima(spent) if own else ()), *published(spent))
    warnings = own.warnings(spent) if own else []
    beyond = outside(spent) if spent is not None else None
    if beyond is not None:
        warnings.append(beyond)
    if options.plot:
        from pipeline.plan.scaling import plot

        plot.draw(options.plot, spent, own)
    if options.json:
        from pipeline.plan.scaling.show import as_dict

        print(strict_json.dumps(as_dict(spent, optima, own, warnings), indent=1))
    else:
        _print(spent, optima, own, warnings, options.explain)
        if options.plot:
            print(f"\nplot: {options.plot}")
    return 0


def _refuse_ignored(options: Namespace) -> None:
    """Raise :class:`UserError` for an option that nothing would be done with."""
    if options.gpu_hours is None and options.budget_usd is None:
        for name in ("gpu", "mfu", "precision"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name} needs --gpu-hours or --budget-usd: it turns them into FLOP, and changes nothing else"
                )
    if options.runs is None:
        for name in ("interval", *BOOTSTRAP):
            if getattr(options, name) is not None:
                raise UserError(f"--{name} needs --runs: it is of the intervals of your own fit")


def budget_of(options: Namespace) -> Quantity | None:
    """The training compute that the options say.  Raises :class:`UserError` for more than one, or a missing GPU."""
    named = {"--flops": options.flops, "--gpu-hours": options.gpu_hours, "--budget-usd": options.budget_usd}
    said = {name: text for name, text in named.items() if text is not None}
    if len(said) > 1:
        raise UserError(f"{' and '.join(said)}: one budget at a time")
    if not said:
        return None
    name, text = next(iter(said.items()))
    if name == "--flops":
        return budgets.from_flops(text)
    if options.gpu is None:
        raise UserError(f"{name} needs --gpu, e.g. --gpu H100-80GB")
    make = budgets.from_gpu_hours if name == "--gpu-hours" else budgets.from_money
    return make(text, options.gpu, options.mfu, options.precision or "bf16")


def _print(
    spent: Quantity | None, optima: tuple[Optimum, ...], own: object, warnings: list[str], explain: bool
) -> None:
    from pipeline.plan.scaling import show
    from pipeline.plan.scaling.own import Own

    console = show.console()
    if isinstance(own, Own):
        for title, table in show.own_tables(own):
            console.print(title, markup=False)
            console.print(table)
            console.print()
    if spent is not None:
        console.print(f"compute-optimal for {spent}", markup=False)
        console.print(show.laws_table(optima))
        console.print()
        for note in show.notes(optima):
            console.print(f"  {note}", markup=False, soft_wrap=True)
        sizes = [each.parameters.value for each in optima if not each.law.startswith(("Kaplan", "your"))]
        console.print(
            f"  the published laws (but Kaplan's) lie a factor of {max(sizes) / min(sizes):.3g} apart in size: an honest band of what is "
            "known beforehand; data, tokenizer and optimiser differ, and your own runs tell more (--runs)",
            markup=False,
            soft_wrap=True,
        )
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if explain:
        for each in optima:
            console.print(f"\n{each.law}", markup=False)
            for quantity in (each.parameters, each.tokens, each.ratio, each.loss):
                for line in quantity.derivation(1) if quantity else ():
                    console.print(line, markup=False, soft_wrap=True)
