"""What images are built from: bases by digest, users that are not root, and a context without keys, data or history."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.serving.cluster import DEPLOY
from pipeline.toolchains import ROOT
from tests.deploy.conftest import DIGEST

IMAGES = sorted(DEPLOY.rglob("Dockerfile"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, lines that go on joined."""
    text = re.sub(r"\\\n", " ", file.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.parent.name)
def test_the_base_has_a_digest_and_the_user_is_not_root(file: Path) -> None:
    found = instructions(file)
    (base,) = [value for name, value in found if name == "FROM"]
    argument = re.fullmatch(r"\$\{(\w+)\}", base)
    assert argument, "the base is given by whoever builds"
    assert [value for name, value in found if name == "ARG"] == [argument[1]] * 2, "and has no default"
    check = next(value for name, value in found if name == "RUN")
    for given, status in ((f"docker.io/library/python@{DIGEST}", 0), ("python:3.11", 1), ("", 1)):
        done = subprocess.run(
            ["sh", "-c", check], env={argument[1]: given}, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, given
        assert ("names no digest" in done.stderr) == bool(status)
    user = [value for name, value in found if name == "USER"][-1]
    assert int(user.partition(":")[0]) > 0


def sent(path: str) -> bool:
    """Whether a path is part of the context, by the rules of .dockerignore: the last pattern that matches decides.

    https://docs.docker.com/build/concepts/context/#dockerignore-files
    """
    found = True
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        again, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        anywhere = pattern.startswith("**/")
        names = (
            [each.rpartition("/")[2] for each in above]
            if anywhere
            else [each for each in above if "/" not in each]
        )
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            found = again
    return found


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venvs/core/bin/python", "runs/llama-tiny/train/latest/model.safetensors", ".env", "tests/data/make.py",
        "deploy/compose.env", "deploy/keys", "deploy/tls.key", "deploy/tls.crt", "deploy/grafana-password",
        "deploy/id_ed25519", "deploy/id_ed25519.pub", "pipeline/__pycache__/cli.cpython-311.pyc", "my-data.jsonl",
        "configs/.secret.yaml", "key.pem",
    ],
)  # fmt: skip
def test_what_nobody_asked_for_is_not_in_an_image(path: str) -> None:
    assert not sent(path)


def test_what_is_copied_and_what_the_repository_has_is_there() -> None:
    for file in (DEPLOY / "Dockerfile", DEPLOY / "gateway" / "Dockerfile"):
        for source in [
            word for name, value in instructions(file) if name == "COPY" for word in value.split()[:-1]
        ]:
            assert source == "." or (sent(source) and (ROOT / source).exists()), source
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = [
        path
        for path in known.splitlines()
        if path.startswith(("pipeline/", "configs/", "recipes/", "deploy/"))
    ]
    assert wanted
    assert [path for path in wanted if not sent(path)] == []


def test_environments_are_installed_by_the_files_that_are_copied_before(tmp_path: Path) -> None:
    """`make env` in the image comes before the code is copied: it must rest on nothing else."""
    found = instructions(DEPLOY / "Dockerfile")
    before = found[: next(place for place, (_, value) in enumerate(found) if "make env" in value)]
    for *sources, target in (value.split() for name, value in before if name == "COPY"):
        for source in sources:
            place = tmp_path / target / ("" if (ROOT / source).is_dir() else Path(source).name)
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    wanted = next(value for _, value in found if "make env" in value).partition("make ")[2]
    done = subprocess.run(
        ["make", "--dry-run", *wanted.split()],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"]
        },  # nothing of the make that runs this, nor of another place for environments
        capture_output=True,
        text=True,
        check=False,
    )
    assert "pipeline.toolchains create core" in done.stdout, done.stderr
    program = [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); import pipeline.toolchains"]
    subprocess.run(program, cwd=tmp_path, check=True)
