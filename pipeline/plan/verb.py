"""``lifecycle plan``: what would run and why, and what the training steps and the deployed model need."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from pipeline import strict_json, terminal
from pipeline.errors import UserError
from pipeline.graph import STAGES, TRAINING, descendants
from pipeline.plan.calibrate import calibrate
from pipeline.plan.hardware import parse
from pipeline.plan.needs import Needs, needs, plain
from pipeline.plan.place import places
from pipeline.plan.serving.deployment import Deployment, deployment
from pipeline.plan.show import lines
from pipeline.runner import base, inputs
from pipeline.runner.chain import Chain, Planned
from pipeline.runner.display import Display, make_display

LIVE = next(stage.name for stage in STAGES if stage.live)
ELSEWHERE = (
    "what is done at this site is on its volume, which is not to be seen from here: a run sends every "
    "step, and those that are done are found so there; `lifecycle run ... --dry-run` shows the manifest"
)


def plan(chain: Chain, options: Namespace) -> int:
    """Print the plan of a chain, or write it as JSON; see ``lifecycle plan --help`` for the options."""
    planned: list[Planned] = []
    unknown = ELSEWHERE if chain.loaded.settings.site.kind == "kubernetes" else ""
    missing: UserError | None = None
    if not unknown:
        try:
            inputs.check_inputs(chain.loaded)
            planned = chain.plan()
        except UserError as error:  # what the recipe needs can be said all the same
            if options.calibrate or not _unfetched(chain):
                raise
            missing, unknown = error, f"what would run is not known: {error}"
    elif options.calibrate:
        raise UserError("--calibrate times steps on this machine, and this site's run elsewhere")
    if options.calibrate:
        # What is printed on the way must not come between JSON's lines.
        calibrate(
            chain, Display(terminal.console(stderr=True)) if options.json else make_display(options.plain)
        )
    found, served = _needs(chain, planned, options), _served(chain, options)
    if options.json:
        steps = [{"step": each.step.name, "state": each.state, "why": each.why} for each in planned]
        said: dict[str, Any] = {
            "steps": steps,
            "unknown": unknown or None,
            "needs": [plain(each) for each in found],
        }
        said["deploy"] = served.plain() if served else None
        print(strict_json.dumps(said, indent=2))
    elif planned:
        _print_planned(chain, planned)
    elif missing is None:
        print(unknown)
    if not options.json:
        for line in lines(found, served, options.explain):
            print(line)
    if missing is not None and not options.gpus:
        raise missing
    if missing is not None and not options.json:
        print(unknown)
    return 0


def _unfetched(chain: Chain) -> bool:
    """Whether the base is a hub's model that is not here yet: what it would need can be said by the recipe's numbers."""
    model = chain.loaded.settings.model
    return model.base is not None and base.is_hub_id(model.base) and base.folder(model) is None


def _needs(chain: Chain, planned: list[Planned], options: Namespace) -> list[Needs]:
    """Of the training steps that would run; of all, where GPUs are named or nothing is known of what is done."""

    fleet = parse(options.gpus) if options.gpus is not None else None
    every = fleet is not None or options.calibrate or options.explain or not planned
    wanted = [step.name for step in chain.steps] if every else []
    wanted += [each.step.name for each in planned if each.state in ("run", "resume")]
    training = [name for name in TRAINING if name in wanted]
    return needs(chain.loaded, training, places(chain.loaded.settings, fleet), **chain.known(planned))


def _served(chain: Chain, options: Namespace) -> Deployment | None:
    """What the deployed model would hold."""

    recipe = chain.loaded.settings
    if LIVE not in recipe.stages:
        return None
    return deployment(recipe, places(recipe, parse(options.gpus) if options.gpus is not None else None)(LIVE))


def _print_planned(chain: Chain, planned: list[Planned]) -> None:
    for item in planned:
        advice = "".join(f" ({each})" for each in item.advice)
        print(f"{item.step.name:<9} {item.state:<8} {item.why}{advice}")
    todo = {item.step.name for item in planned if item.state in ("run", "resume")}
    first = {item.step.name for item in planned if item.step.name in todo and "follows " not in item.why}
    after = [name for name in descendants(chain.steps, first) if name in todo - first]
    done = [item.step.name for item in planned if item.state == "done"]
    if todo:
        print(f"\n{len(done)} of {len(planned)} steps are reused{': ' if done else ''}{', '.join(done)}")
    if after:
        print(f"{', '.join(after)} follow, as far as the output of the steps before them changes")
