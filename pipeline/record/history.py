"""Artifacts and what they rest on, read from their manifests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import graph
from pipeline.errors import UserError
from pipeline.recipe_names import NAME
from pipeline.runner import owner
from pipeline.runner.identity import SHORT
from pipeline.runner.store import Artifact, Store, read_artifact

ORDER = {stage.name: place for place, stage in enumerate(graph.STAGES)}


@dataclass
class History:
    """Artifacts in the order of the graph, and the parents that a manifest names but that are gone."""

    artifacts: list[Artifact]
    gone: list[dict[str, str]] = field(default_factory=list)

    def by_stage(self) -> dict[str, Artifact]:
        return {str(each.manifest["stage"]): each for each in self.artifacts}


def recipes_in(runs: Path) -> list[Store]:
    """The stores of all recipes that have anything under ``runs``."""
    if not runs.is_dir():
        return []
    folders = sorted(path for path in runs.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [Store(runs, folder.name) for folder in folders]


def all_artifacts(runs: Path) -> Iterator[Artifact]:
    """Every readable artifact of every recipe."""
    for store in recipes_in(runs):
        for stage in ORDER:
            for path in store.artifacts(stage):
                artifact = read_artifact(path)
                if artifact:
                    yield artifact


def history(artifact: Artifact) -> History:
    """The artifact and everything it rests on, each once."""
    found: dict[Path, Artifact] = {}
    gone: dict[str, dict[str, str]] = {}
    waiting = [artifact]
    while waiting:
        each = waiting.pop()
        if each.path in found:
            continue
        found[each.path] = each
        for name, parent in each.manifest["parents"].items():
            path = each.path.parent.parent / parent["stage"] / parent["path"]
            read = read_artifact(path)
            if read and read.identity == parent["identity"]:
                waiting.append(read)
            else:
                gone[parent["identity"]] = {**parent, "input": name}
    return History(sorted(found.values(), key=_place), list(gone.values()))


def latest_chain(store: Store) -> History:
    """The artifact of a recipe's last run of each stage, in the order of the graph."""
    found = [store.latest(stage) for stage in ORDER]
    return History([each for each in found if each])


def find_run(words: str, runs: Path) -> History:
    """The run that a person means: a recipe's name (its latest chain), or an artifact and what it rests on.

    An artifact is named by its folder, by a file in it, or by its identity or the beginning
    of one.  Raises :class:`UserError` where nothing, or more than one thing, is meant.
    """
    by_file = is_recipe(words, runs)
    if by_file or (NAME.fullmatch(words) and (runs / words).is_dir()):
        store = Store(runs, Path(words).stem if by_file else words)
        if by_file:
            owner.check(store.root, Path(words))
        chain = latest_chain(store)
        if not chain.artifacts:
            raise UserError(f"{words} has published nothing in {runs} yet")
        return chain
    return history(find_artifact(words, runs))


def is_recipe(words: str, runs: Path) -> bool:
    """Whether this is the file of a recipe (there, or gone by now) that has something under ``runs``."""
    return words.endswith((".yaml", ".yml")) and (runs / Path(words).stem).is_dir()


def find_artifact(words: str, runs: Path) -> Artifact:
    """The artifact that a path or an identity names; see :func:`find_run`."""
    path = Path(words)
    if path.exists():
        for folder in (path.resolve(), *path.resolve().parents):
            artifact = read_artifact(folder)
            if artifact:
                return artifact
        raise UserError(
            f"{words} is no artifact, nor a file of one: no folder above it has a sound manifest.json"
        )
    if re.fullmatch(r"[0-9a-f]{4,64}", words):
        found = [each for each in all_artifacts(runs) if each.identity.startswith(words)]
        if len({each.identity for each in found}) == 1:
            return found[0]
        if found:
            shown = ", ".join(f"{each.manifest['stage']} {each.identity[:SHORT]}" for each in found[:5])
            raise UserError(f"{words} is the beginning of several identities: {shown}; give more of it")
    known = ", ".join(store.recipe for store in recipes_in(runs)) or "none"
    raise UserError(
        f"there is no run {words!r}: give a recipe with runs in {runs} ({known}), the path of an artifact, "
        "or the beginning of an identity"
    )


def _place(artifact: Artifact) -> tuple[int, str]:
    return ORDER.get(str(artifact.manifest["stage"]), len(ORDER)), artifact.path.name
