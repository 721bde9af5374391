"""Short and plain paths for what cannot do with any other: sockets, and programs that a shell starts.

The path of a UNIX socket has 107 bytes at most (unix(7)), and schedulers give TMPDIRs of more.  Triton's Python backend
starts its processes through ``bash -c`` with their paths unquoted.  Both are served by a link in a folder of ours alone::

    /tmp/lifecycle-1000/3f9c02ab -> /scratch/jobs/it's a long one (really)/...

Standard library alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import stat
import tempfile
from pathlib import Path

# What is bound below a folder for temporary files: 66 bytes of Ray's session and socket, the longest here.
LONGEST = 34
NAMED = 8  # hexadecimal digits of a link's name
# The same for every process of a user, whatever its TMPDIR: whoever stops a server finds the link that its start has made.
BASES = ("/tmp", "/var/tmp", "/dev/shm")


def private() -> Path:
    """A folder at a short plain path that nobody else may look into (mode 0700); made where it is not there.

    Raises ``OSError`` where no such folder can be had.
    """
    name = f"lifecycle-{os.getuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    for base in (*BASES, *([runtime] if _plain(runtime) else [])):
        folder = Path(base, name)
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if _ours(folder):
                return folder
    raise OSError(f"no private folder can be had in {', '.join(BASES)}: one of them must be writable")


def short(path: Path) -> Path:
    """The path itself where any program can use it, else a link to it in :func:`private`; the path must be whole."""
    if _plain(str(path)):
        return path
    link = _link(path)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(path)
    if not link.is_symlink() or link.readlink() != path:
        raise OSError(f"{link} is there and is no link to {path}")
    return link


def socket_folder(prefix: str) -> Path:
    """A new folder of ours alone for a socket."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=private()))


def forget(path: Path) -> None:
    """Remove the link that :func:`short` may have made to a path."""
    with contextlib.suppress(OSError):
        if not _plain(str(path)) and _link(path).is_symlink():
            _link(path).unlink()


def _link(path: Path) -> Path:
    return private() / hashlib.sha256(os.fsencode(path)).hexdigest()[:NAMED]


def _plain(path: str) -> bool:
    """Whether a path is short, and one word to every shell."""
    return 0 < len(path) <= LONGEST and shlex.quote(path) == path and re.match(r"[/\w]", path) is not None


def _ours(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
