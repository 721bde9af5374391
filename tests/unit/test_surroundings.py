"""Processes on odd machines: what they are given in the place of what the machine lacks, and paths that any program can use."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pipeline import places
from pipeline.runner.execute import step_environment
from pipeline.surroundings import LOOPBACK, hub_cache, past_proxies, settled, writable
from pipeline.toolchains import ROOT, Toolchain

LONG = "as schedulers give them/" * 6
NAMES = ("a b", "(copy)", "it's", 'the "new" one', "$HOME", "${x}", "né", "semi;colon", "back`tick`", LONG)


@pytest.mark.parametrize("name", NAMES)
def test_any_folder_has_a_path_that_a_shell_and_a_socket_take(name: str, tmp_path: Path) -> None:
    """The cases path-with-space and long-tmpdir."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    link = places.short(folder)
    assert places.short(folder) == link  # once more, or by another process at the same time: the same
    assert link.resolve() == folder.resolve()
    assert len(str(link)) <= places.LONGEST
    # As Triton's Python backend does it: unquoted, through a shell.
    said = subprocess.run(["bash", "-c", f"exec ls -d {link}/."], capture_output=True, text=True, check=True)
    assert said.stdout == f"{link}/.\n"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(link / "socket"))
    assert (folder / "socket").is_socket()
    places.forget(folder)
    assert not link.is_symlink()
    assert folder.is_dir()


def test_a_plain_path_stays() -> None:
    assert places.short(Path("/tmp")) == Path("/tmp")
    assert places.short(Path("/scratch/job-1_a.b")) == Path("/scratch/job-1_a.b")


def test_the_private_folder_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody else has put at its place, or may look into, is not used."""
    bases = [tmp_path / "open", tmp_path / "link", tmp_path / "file", tmp_path / "good"]
    name = f"lifecycle-{os.getuid()}"
    for base in bases:
        base.mkdir()
    (bases[0] / name).mkdir(mode=0o755)
    (bases[1] / name).symlink_to(tmp_path)
    (bases[2] / name).touch()
    monkeypatch.setattr(places, "BASES", [str(base) for base in bases])
    before = os.umask(0o077)
    try:
        assert places.private() == bases[3] / name
    finally:
        os.umask(before)
    assert stat.S_IMODE(places.private().stat().st_mode) == 0o700
    monkeypatch.setattr(places, "BASES", [str(base) for base in bases[:3]])
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(OSError, match="no private folder can be had"):
        places.private()


def test_a_link_that_leads_elsewhere_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "BASES", [str(tmp_path)])
    folder = tmp_path / "a b"
    link = places.short(folder)
    link.unlink()
    link.symlink_to("/etc")
    with pytest.raises(OSError, match="is there and is no link to"):
        places.short(folder)


@pytest.mark.parametrize("missing", ["/proc/none", "", "/no/such/home"])
def test_homes_and_caches_that_cannot_be_written_lie_below_the_step(missing: str, tmp_path: Path) -> None:
    """The case odd-machine."""
    caches = ("HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR")
    spoilt = dict.fromkeys(caches, "/proc/none/x")
    made = settled({"HOME": missing, **spoilt}, tmp_path)
    for name in {"HOME", *spoilt} & set(made):
        assert writable(Path(made[name])), name
    if missing:
        assert made["HOME"] == str(tmp_path / "home")
        # Who is started by a step that is over has a home of its own, too.
        other = tmp_path / "server"
        assert settled(made, other)["HOME"] == str(other / "home")


def test_what_is_in_order_stays_as_it_is(tmp_path: Path) -> None:
    given = {
        "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "USER": "ada",
        "TMPDIR": "/tmp", "OTHER": "x",
    }  # fmt: skip
    assert settled(given, tmp_path / "work") == given
    assert not list(tmp_path.iterdir())


def test_a_cache_of_another_is_left_alone_and_the_hub_can_still_be_read(tmp_path: Path) -> None:
    """A home that can be written with a cache that cannot, as `sudo` leaves it."""
    hub = tmp_path / "cache" / "huggingface" / "hub"
    hub.mkdir(parents=True)
    given = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": "/proc/none/hf"}
    made = settled(given, tmp_path / "work")
    assert (made["HOME"], made["XDG_CACHE_HOME"]) == (given["HOME"], given["XDG_CACHE_HOME"])
    assert "HF_HOME" not in made
    read_only = settled({"HOME": str(tmp_path), "HF_HUB_CACHE": str(hub), "HF_HOME": "/proc/none"}, tmp_path)
    assert hub_cache(read_only) == hub


def test_a_user_without_a_name_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1_234_567)  # a container's bare number
    monkeypatch.setattr(os, "getgid", lambda: 1_234_567)
    assert hub_cache({}) is None  # and no home
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KeyError):
        getpass.getuser()
    made = settled({}, tmp_path)
    assert made["HOME"] == str(tmp_path / "home")
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, made[name])
    assert getpass.getuser() == "uid1234567"


def test_a_long_tmpdir_is_a_short_link_to_it(tmp_path: Path) -> None:
    folder = tmp_path / LONG
    folder.mkdir(parents=True)
    program = (
        "import json, os, sys; from pathlib import Path; from pipeline.surroundings import settled; "
        "print(json.dumps(settled(os.environ, Path(sys.argv[1]))['TMPDIR']))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    made = Path(json.loads(said.stdout))
    assert len(str(made)) <= places.LONGEST
    assert made.resolve() == folder.resolve()
    places.forget(folder)


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "all_proxy", "grpc_proxy"])
@pytest.mark.parametrize("excepted", ["", "internal.example.com, 10.0.0.1"])
def test_loopback_is_never_asked_of_a_proxy(proxy: str, excepted: str) -> None:
    """The case proxy-and-loopback, for every library that reads these variables."""
    for spelling in ("no_proxy", "NO_PROXY"):
        made = past_proxies({proxy: "http://127.0.0.1:9", spelling: excepted})
        assert made["no_proxy"] == made["NO_PROXY"]
        listed = made["no_proxy"].split(",")
        assert listed[-3:] == list(LOOPBACK)
        assert listed[:-3] == [each.strip() for each in excepted.split(",") if each]
        for host in LOOPBACK:
            assert urllib.request.proxy_bypass_environment(host, {"no": made["no_proxy"]})  # type: ignore[attr-defined]
    assert past_proxies({proxy: "", "no_proxy": "x"}) == {}


def test_a_step_is_given_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    made = step_environment(Toolchain("core"), 2, tmp_path)
    assert made["HOME"] == str(tmp_path / "home")
    assert made["NO_PROXY"].endswith("::1")
    assert shlex.split(made["OMP_NUM_THREADS"]) == ["2"]
