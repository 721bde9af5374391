"""Which files a source of documents consists of; the controller and curation must agree."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.schema import Source

COMPRESSED = ("", ".gz", ".zst", ".bz2")  # what every text format may be packed in
SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "text": (".txt", ".md", ".markdown", ".rst"),
    "html": (".html", ".htm"),
    "warc": (".warc",),
    "wet": (".wet",),
    "wikipedia": (".xml",),
    "dataset": (".arrow",),
}
WHOLE = ("parquet", "dataset")  # formats that bring their own compression

# What systems and editors leave among files, beside everything whose name begins with a dot
# (AppleDouble ``._x``, .DS_Store, .git, .ipynb_checkpoints).
LITTER = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",
    "@eadir", "lost+found", "__pycache__",
}  # fmt: skip
STATE = "state.json"  # names the files of a dataset that `save_to_disk` wrote
OF_DATASET = {STATE, "dataset_info.json", "dataset_dict.json"}
HIDDEN = "hidden and system files"
CACHED = "cached results of the datasets library"
TWICE = "links to what is read already"


@dataclass(frozen=True)
class Unit:
    """One file of a source: ``name`` is relative to the source's folder, ``path`` where it lies.

    Both are text: bytes of a file name that are not UTF-8 are escaped (``\\xff``), so such a
    file is not found at its path, and is put down as unreadable.
    """

    name: str
    path: str


@dataclass
class Found:
    """What a walk over a source's folder came upon."""

    entries: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # by what it is
    outside: list[Path] = field(default_factory=list)  # links that lead out of the folder, and are followed


def encoding_fault(source: Source) -> str | None:
    """What is wrong with the character set that a source names; None where nothing is."""
    if source.encoding is None:
        return None
    try:
        "".encode(source.encoding)  # refuses what is no encoding of text, too
    except (LookupError, ValueError):
        return f"{source.encoding!r} is no character set that Python knows; e.g. cp1252, shift_jis, utf-16"
    return None


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec address (``s3://...``) and not a local one."""
    return "://" in path


def suffixes(kind: str) -> list[str]:
    """The ends of the file names that a source of this kind reads."""
    return [plain + packed for plain in SUFFIXES[kind] for packed in (("",) if kind in WHOLE else COMPRESSED)]


def belongs(kind: str, name: str) -> bool:
    """Whether a file of this name is read by a source of this kind."""
    return name.lower().endswith(tuple(suffixes(kind)))


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, a backup or a system's own, and holds no data."""
    plain = name.lower()
    return plain.startswith((".", "~$")) or plain.endswith("~") or plain in LITTER


def chosen(kind: str, names: Iterable[str], states: dict[str, list[str]]) -> tuple[list[str], Counter[str]]:
    """Of a folder's files, by names relative to it with ``/``: those that are read, and what is passed over.

    ``states`` are the data files that each ``state.json`` names, by its folder ("" is the source's).
    """
    read: list[str] = []
    skipped: Counter[str] = Counter()
    for name in names:
        folder, _, own = name.rpartition("/")
        if any(is_litter(part) for part in name.split("/")):
            skipped[HIDDEN] += 1
        elif not belongs(kind, own):
            if kind != "dataset" or own not in OF_DATASET:
                skipped[_plain(Path(own).suffix.lower()) or "no ending"] += 1
        elif kind == "dataset" and (own not in states[folder] if folder in states else own[:6] == "cache-"):
            skipped[CACHED] += 1
        else:
            read.append(name)
    missing = (f"{folder}/{own}".lstrip("/") for folder, named in states.items() for own in named)
    return sorted({*read, *missing}), skipped  # a file that is named and not there is told as unreadable


def data_files(state: str, content: bytes) -> list[str]:
    """The files that a dataset's ``state.json`` (at ``state``) names.  Raises :class:`UserError`."""
    try:
        plain: Any = json.loads(content)
        names = [each["filename"] for each in plain["_data_files"]]
        if not all(isinstance(name, str) and name == Path(name).name != "" for name in names):
            raise ValueError("a data file's name leads out of the folder")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{state} does not name the dataset's files: {error}; save the dataset anew"
        ) from None
    if plain.get("_indices_files"):
        raise UserError(f"{state}: the dataset is a selection of its rows; save `dataset.flatten_indices()`")
    return names


def local_units(source: Source) -> list[Unit]:
    """The files of a local source, in a fixed order.

    Something else under a fitting name (a folder without fitting files, a link to nothing)
    is listed too: curation puts it down as unreadable instead of passing it over.
    """
    root = Path(str(source.path))
    if not root.is_dir():
        return [Unit(_plain(root.name), str(root))]
    names, _ = _local(source, walk(root, source.kind))
    return [Unit(_plain(name), _plain(str(root / name))) for name in names]


def passed_over(source: Source) -> tuple[Counter[str], list[str]]:
    """Of a local folder: the files that this source does not read, by kind, and links that lead outside."""
    root = Path(str(source.path))
    if not root.is_dir():
        return Counter(), []
    found = walk(root, source.kind)
    links = [_plain(link.relative_to(root).as_posix()) for link in found.outside]
    return _local(source, found)[1] + found.skipped, links


def _local(source: Source, found: Found) -> tuple[list[str], Counter[str]]:
    root = Path(str(source.path))
    states = {}
    if source.kind == "dataset":
        for path in found.entries:
            if path.name == STATE and path.is_file():
                folder = path.parent.relative_to(root).as_posix()
                states["" if folder == "." else folder] = data_files(str(path), path.read_bytes())
    folders = {path for path in found.entries if path.is_dir()}
    parents = {
        parent
        for path in found.entries
        if path not in folders and belongs(source.kind, path.name)
        for parent in path.parents
    }
    # A folder is listed only under a fitting name, and then only where no file in it is read.
    names = (
        path.relative_to(root).as_posix()
        for path in found.entries
        if path not in folders or (belongs(source.kind, path.name) and path not in parents)
    )
    return chosen(source.kind, names, states)


def walk(root: Path, kind: str) -> Found:
    """Everything below a folder that is not litter, in a fixed order; no folder or file is come upon twice.

    Links are followed when all that lies in the folder itself is known, so a farm of links that
    lead to each other costs no more than the folders that it leads to.  A link to a file counts
    under the link's name where a source of this ``kind`` would not read the file under its own.
    """
    found = Found()
    top = os.path.realpath(root)
    seen: set[str] = {top}  # real paths
    linked: set[str] = set()  # of files that were reached by a link
    links: list[Path] = []
    pending: list[Path] = [root]
    while pending or links:
        if not pending:
            link = links.pop(0)
            real, folder_link = os.path.realpath(link), link.is_dir()
            known = real in seen and (folder_link or belongs(kind, Path(real).name))
            if known or real in linked or (folder_link and _above(real, top)):
                found.skipped[TWICE] += 1
                continue
            found.entries.append(link)
            if link.exists() and not _above(top, real):
                found.outside.append(link)
            if not folder_link:
                linked.add(real)
                continue
            seen.add(real)
            pending.append(link)
        folder = pending.pop()
        base = os.path.realpath(folder)
        for entry in _entries(folder):
            path = folder / entry.name
            if is_litter(entry.name):
                found.skipped[HIDDEN] += 1
            elif entry.is_symlink():
                links.append(path)
            else:
                real = f"{base.rstrip('/')}/{entry.name}"
                if real in seen:
                    continue
                seen.add(real)
                found.entries.append(path)
                if entry.is_dir():
                    pending.append(path)
    found.entries.sort()
    return found


def _above(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return iter(sorted(entries, key=lambda entry: entry.name))
    except OSError as error:
        raise UserError(f"{_plain(str(folder))} cannot be listed: {error.strerror}") from None


def _plain(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
