"""The environment that processes of ours are given, on machines that lack what libraries take for granted.

A user without a name (a container's bare number), a home or cache that cannot be written (batch nodes, read-only images), a
TMPDIR too long for a socket, a proxy that would be asked for this machine's own addresses.  What is in order stays as it is.
Standard library alone.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipeline import places

LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Folders that libraries make for themselves, below the home where these are not set (XDG Base Directory Specification).
BASES = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
}
# Folders of one library, below those where these are not set.
OF_LIBRARIES = (
    "HF_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "MPLCONFIGDIR", "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TRITON_HOME", "TRITON_CACHE_DIR", "TRITON_DUMP_DIR",
    "TRITON_OVERRIDE_DIR", "CUDA_CACHE_PATH", "NUMBA_CACHE_DIR", "NLTK_DATA", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR",
    "NEMORUN_HOME",
)  # fmt: skip
REPLACED = "LIFECYCLE_HOME_REPLACED"  # the home is one of ours, which may go before those do who inherit it


def settled(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """A copy of an environment that works on an odd machine.

    ``folder`` is a whole path and takes the home where there is none to write in.
    """
    made = {**environment, **past_proxies(environment)}
    _name(made)
    _home(made, folder / "home")
    if made.get("TMPDIR"):
        made["TMPDIR"] = str(places.short(Path(tempfile.gettempdir()).absolute()))
    return made


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep this machine's own addresses from its proxies, beside what they except already.

    Libraries read one spelling or the other, and some let one hide the other.
    """
    if not proxied(environment):
        return {}
    listed = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    excepted = [each for each in map(str.strip, ",".join(listed).split(",")) if each]
    value = ",".join(dict.fromkeys([*excepted, *LOOPBACK]))
    return {"no_proxy": value, "NO_PROXY": value}


def proxied(environment: Mapping[str, str]) -> bool:
    """Whether an environment names a proxy."""
    found = {name.lower() for name, value in environment.items() if value}
    return any(name.endswith("_proxy") and name != "no_proxy" for name in found)


def _name(made: dict[str, str]) -> None:
    """A name for those who ask ``getpass.getuser``, which fails for a user that the system has none for."""
    if not any(made.get(variable) for variable in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            made["LOGNAME"] = made["USER"] = f"uid{os.getuid()}"


def _home(made: dict[str, str], own: Path) -> None:
    """A home and caches that can be written; what was fetched into the user's hub cache can still be read there."""
    hub = hub_cache(made)
    before = dict(made)
    given = made.get("HOME") or _home_of_system()
    if REPLACED in made or given is None or not (Path(given).is_dir() and writable(Path(given))):
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        made["HOME"], made[REPLACED] = str(own), "1"
        for name in BASES:
            if name in made and not writable(Path(made[name])):
                del made[name]
    home = Path(made.get("HOME") or given or own)
    for name, usual in BASES.items():
        if not writable(Path(made.get(name) or home / usual)):
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
            made[name] = str(own / usual)
    for name in OF_LIBRARIES:
        if name in made and not writable(Path(made[name])):
            del made[name]
    if made != before and hub is not None and hub_cache(made) != hub and hub.is_dir():
        made["HF_HUB_CACHE"] = str(hub)


def hub_cache(environment: Mapping[str, str]) -> Path | None:
    """Where Hugging Face's libraries keep what they fetched; None for a user without a home.

    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    if environment.get("HF_HUB_CACHE"):
        return _expanded(environment["HF_HUB_CACHE"], environment)
    if environment.get("HF_HOME"):
        return _expanded(f"{environment['HF_HOME']}/hub", environment)
    return _expanded(f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface/hub", environment)


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest one above it that is there."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            try:
                tempfile.TemporaryFile(dir=place).close()
            except OSError:
                return False
            return True
    return False


def _expanded(path: str, environment: Mapping[str, str]) -> Path | None:
    home = environment.get("HOME") or _home_of_system()
    if not path.startswith("~/"):
        return Path(path)
    return None if home is None else Path(home, path.removeprefix("~/"))


def _home_of_system() -> str | None:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
