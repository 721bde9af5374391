"""The Makefile: its variables, any word as a value, which environments a verb wants, and one installation at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.toolchains import NAMES, ROOT, STAMP, Toolchain

SHELL = {
    "KEY": "sk-something", "OPTIONS": "-O2", "TARGET": "x86_64", "SITE": "lab", "RECIPE": "cake", "SET": "a.b=c",
    "A": "first", "B": "second", "ASK": "why", "PYTHON": "/no/such/python", "VENVS": "/no/such/folder",
}  # fmt: skip


@pytest.fixture
def venvs(tmp_path: Path) -> Path:
    """A folder of environments in which make finds everything; the controller's is the real one."""
    folder = tmp_path / "venvs"
    for name in set(NAMES) - {"controller", "launch"}:
        (folder / name).mkdir(parents=True)
        (folder / name / STAMP).touch()
    controller = folder / "controller"
    controller.mkdir()
    for each in Toolchain("controller").folder.iterdir():
        if each.name != STAMP:
            (controller / each.name).symlink_to(each)
    (controller / STAMP).touch()
    return folder


def make(*words: str, venvs: Path | str, root: Path = ROOT, **shell: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in SHELL and not k.startswith("MAKE")}
    return subprocess.run(
        ["make", "-r", *words],
        cwd=root, env={**environment, "LIFECYCLE_VENVS": str(venvs), **shell},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["plan", "explain", "run", "trace", "diff", "scale", "env-launch", "locks"])
def test_what_the_shell_exports_for_others_is_no_argument(verb: str, venvs: Path) -> None:
    """The case makefile-environment, for every variable that the Makefile has."""
    plain, other = make("-n", verb, venvs=venvs), make("-n", verb, venvs=venvs, **SHELL)
    assert plain.returncode == 0, plain.stderr
    assert (other.returncode, other.stdout) == (0, plain.stdout)
    assert not any(value in other.stdout for value in SHELL.values())


def test_a_verb_works_beside_what_the_shell_exports(venvs: Path) -> None:
    said = make("explain", "KEY=train.lr", venvs=venvs, **{**SHELL, "KEY": "sk-something"})
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("train.lr = ")


@pytest.mark.parametrize("name", ["two words", "it's", "a(b)", "back`tick", "semi;colon", "né, two"])
def test_a_value_is_one_word_whatever_is_in_it(name: str, venvs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / name / "tiny.yaml"  # a recipe's own name has no quotes; a folder's may
    recipe.parent.mkdir()
    shutil.copy(ROOT / "recipes" / "llama-tiny.yaml", recipe)
    site = tmp_path / f"site {name}.yaml"
    site.write_text("name: mine\n")
    said = make("explain", f"RECIPE={recipe}", f"SITE={site}", "KEY=site.name", venvs=venvs)
    assert (said.returncode, said.stdout.partition(":")[0]) == (0, "site.name = 'mine'"), said.stderr
    said = make("trace", f"TARGET={name}", venvs=venvs)
    assert f"there is no run {name!r}" in said.stderr
    said = make("diff", f"A={name}", "B=other", venvs=venvs)
    assert f"there is no run {name!r}" in said.stderr


@pytest.mark.parametrize(("kind", "wanted"), [("local", False), ("slurm", True), ("kubernetes", True)])
def test_a_site_wants_nemo_run_by_its_kind_not_by_its_name(
    kind: str, wanted: bool, venvs: Path, tmp_path: Path
) -> None:
    site = tmp_path / "mine.yaml"
    needed = {"kubernetes": "kubernetes: {image: an-image, claim: a-claim}\n"}
    site.write_text(f"name: mine\nkind: {kind}\n{needed.get(kind, '')}")
    for verb in ("train", "deploy"):
        # A Python that tells what it was asked to do; --help ends the verb before it begins.
        said = make(verb, f"SITE={site}", "PYTHON=echo", "OPTIONS=--help", venvs=venvs)
        assert ("-m pipeline.toolchains create launch" in said.stdout) == wanted, said.stderr
        assert "usage: lifecycle" in said.stdout


def test_a_site_of_the_project_that_is_local_wants_none_either(venvs: Path) -> None:
    said = make("train", "SITE=ray", "PYTHON=echo", "OPTIONS=--help", venvs=venvs)
    assert "usage: lifecycle" in said.stdout
    assert "create launch" not in said.stdout


def test_a_site_that_is_not_there_ends_before_anything_is_installed(venvs: Path) -> None:
    said = make("train", "SITE=lokal", "PYTHON=echo", venvs=venvs)
    assert said.returncode != 0
    assert "there is no site 'lokal'" in said.stderr
    assert "create" not in said.stdout


@pytest.mark.parametrize(
    "name", ["with space", "a(b", "a$b", "a:b", "a%b", "a'b", 'a"b', "a#b", "a;b", "a=b"]
)
def test_a_folder_that_make_cannot_use_is_refused_with_a_sentence(name: str, tmp_path: Path) -> None:
    said = make("-n", "plan", venvs=tmp_path / name)
    assert said.returncode != 0
    assert f'LIFECYCLE_VENVS is "{tmp_path / name}": make can use' in said.stderr
    assert not said.stdout


@pytest.mark.parametrize("name", ["a b", "(copy) of it's $HOME", "naïve"])
def test_the_repository_may_lie_anywhere(name: str, tmp_path: Path) -> None:
    """The case path-with-space: make's own rules in a clone of such a name."""
    clone = tmp_path / name
    (clone / "configs" / "toolchains").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", clone)
    for lock in (ROOT / "configs" / "toolchains").glob("*.lock"):
        shutil.copy(lock, clone / "configs" / "toolchains")
    said = make("env-controller", "PYTHON=echo", venvs="", root=clone)
    assert "-m pipeline.toolchains create controller" in said.stdout
    for environment in ("controller", "core"):
        (clone / ".venvs" / environment).mkdir(parents=True)
        (clone / ".venvs" / environment / STAMP).touch()
    said = make("-n", "train", venvs="", root=clone)
    assert (said.returncode, said.stdout.count("create")) == (0, 0), said.stderr
