"""Sources behind an fsspec address (``https://``, ``s3://``): which files, and their stamps.

    python -m pipeline.stages.remote_files SOURCE.json

prints ``[[name, address, size, stamp], ...]``; the controller, which has no fsspec, runs
it in the core toolchain to learn whether a remote input changed (by the store's own
checksum or entity tag, without reading the data).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.documents import STATE, Unit, belongs, chosen, data_files
from pipeline.schema import Source, from_plain

STAMPS = ("ETag", "etag", "md5Hash", "checksum", "mtime", "LastModified", "last_modified")


def remote_units(source: Source) -> list[tuple[Unit, int, str]]:
    """(file, bytes, stamp) of every file at a source's address, in order of their names.

    Raises ``FileNotFoundError`` where nothing is, and what the file system raises.
    """
    from fsspec.core import url_to_fs

    system, root = url_to_fs(str(source.path))
    if system.isfile(root) or belongs(source.kind, str(source.path)):
        names = [root]
    else:
        below = {name.removeprefix(root).strip("/"): name for name in system.find(root)}
        states = {
            own.rpartition("/")[0]: data_files(name, system.cat_file(name))
            for own, name in below.items()
            if source.kind == "dataset" and own.rpartition("/")[2] == STATE
        }
        names = [below.get(own, f"{root}/{own}") for own in chosen(source.kind, sorted(below), states)[0]]
    found = []
    for name in names:
        about = system.info(name)
        relative = name.removeprefix(root).strip("/") or name.rsplit("/", 1)[-1]
        found.append(
            (Unit(relative, system.unstrip_protocol(name)), int(about.get("size") or 0), _stamp(about))
        )
    if not found:
        raise FileNotFoundError(f"{source.path} holds no file for a source of kind {source.kind}")
    return found


def _stamp(about: dict[str, Any]) -> str:
    """The store's own word for the content; its size alone where it has none."""
    return next((f"{key}={about[key]}" for key in STAMPS if about.get(key)), f"size={about.get('size')}")


if __name__ == "__main__":
    wanted = from_plain(Source, json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        print(
            strict_json.dumps(
                [[unit.name, unit.path, size, stamp] for unit, size, stamp in remote_units(wanted)]
            )
        )
    except Exception as error:  # whatever a store's client raises becomes one line for the controller
        print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr)
        sys.exit(2)
