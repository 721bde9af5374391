"""Whose artifacts a folder of runs holds: two recipes whose files share a name would share ``runs/NAME``.

The artifacts themselves could not be confused, since a step's identity says what it is; but the latest chain, the running
server, the report and what may be removed are looked up by the recipe's name alone.  So the first run of a recipe writes
down which file it is, and another file of that name is refused while that one exists.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import strict_json
from pipeline.errors import UserError
from pipeline.launch.orders import SITE_FILE
from pipeline.stages.step import write_json
from pipeline.toolchains import ROOT

if TYPE_CHECKING:
    from pipeline.recipe import LoadedRecipe

RECORD = "recipe.json"
SWEEP = "sweep.json"  # beside the recipes of a sweep, which share their artifacts (plan/scaling/sweep.py)


def check(root: Path, recipe: Path | None) -> None:
    """Raise :class:`UserError` where the artifacts in ``root`` (``runs/NAME``) are those of another recipe file."""
    theirs = _recorded(root)
    ours = None if recipe is None else _owner(root, recipe)
    if theirs is None or ours is None or theirs == ours:
        return
    other = ROOT / theirs  # an absolute path stays as it is
    if other.is_file() and not (Path(ours).is_file() and other.samefile(ours)):
        raise UserError(
            f"{root} holds what {theirs} made, and {recipe} would be taken for it: both are called {root.name!r}. "
            "Rename one of the two files, or keep the runs of this one elsewhere (--runs FOLDER)"
        )


def claim(root: Path, loaded: LoadedRecipe) -> None:
    """Write down whose artifacts ``root`` holds; raises as :func:`check` does."""
    check(root, loaded.file)
    ours = None if loaded.file is None else _owner(root, loaded.file)
    if ours is not None and _recorded(root) != ours:
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / RECORD, {"recipe": ours})


def _owner(root: Path, recipe: Path) -> str | None:
    """What stands for a recipe's file in the record; None for what a submission pinned, which is the recipe of its folder."""
    file = recipe.resolve()
    if (file.parent / SITE_FILE).is_file():
        return None
    listing = file.parent.parent / SWEEP
    if listing.is_file():
        return f"the sweeps called {file.stem}"
    ours = ROOT.resolve()
    return file.relative_to(ours).as_posix() if file.is_relative_to(ours / "recipes") else str(file)


def _recorded(root: Path) -> str | None:
    try:
        return str(strict_json.loads((root / RECORD).read_bytes())["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of a version before there were records, or damaged: nobody's
