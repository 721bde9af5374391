"""API keys: a file with one a line, read again when it changes.

::

    # who: the key, or its SHA-256 where the file should not hold the key itself
    alice: 9f2c...            (any text without spaces, 16 characters or more)
    batch: sha256:5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8

``python -c 'import secrets; print(secrets.token_urlsafe(32))'`` makes one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from pathlib import Path

from pipeline.gateway.errors import GatewayError
from pipeline.gateway.settings import SettingsError

LOG = logging.getLogger("lifecycle.gateway")
SHORTEST = 16  # characters
HASHED = "sha256:"
LOOKED_AT_S = 5.0  # how often the file is looked at


class Keys:
    """The keys of a file.  Raises :class:`SettingsError` for one that cannot be read or understood."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if seen := exposed(path):
            LOG.warning("%s", seen)
        self._digests = read(path)
        self._seen = _stamp(path)
        self._looked = time.monotonic()

    def who(self, key: str) -> str | None:
        """The name that a key belongs to, in a time that says nothing about the keys there are."""
        self._refresh()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOKED_AT_S:
            return
        self._looked = now
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._digests = read(self.path)
        except SettingsError as error:
            LOG.error("the keys that were known stay: %s", error)


def authorised(keys: Keys, header: str) -> str:
    """Whose key an ``Authorization`` header holds.  Raises :class:`GatewayError` (401)."""
    scheme, _, key = header.partition(" ")
    name = keys.who(key.strip()) if scheme.lower() == "bearer" else None
    if name is None:
        said = "that API key is not known here" if key else "an API key is needed: Authorization: Bearer ..."
        raise GatewayError(401, said, code="invalid_api_key", reason="unauthorized")
    return name


def exposed(path: Path) -> str | None:
    """Why a file of secrets is one that others of this machine can read or change, with the remedy; None where they cannot.

    What a hash stands for cannot be read off it, but it can be exchanged.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return None  # told where it is read
    can = [words for bits, words in ((0o044, "read"), (0o022, "change")) if mode & bits]
    return (
        f"others on this machine may {' and '.join(can)} {path}, which holds secrets: chmod 600 {path}"
        if can
        else None
    )


def read(path: Path) -> dict[str, bytes]:
    """SHA-256 of each key by name.  Raises :class:`SettingsError`, never with a key in its text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"the keys in {path} cannot be read: {why}") from None
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        where = f"{path}, line {number}"
        if not (name and colon and key) or " " in key:
            raise SettingsError(f"{where}: expected 'name: key'")
        if name in found:
            raise SettingsError(f"{where}: the name {name!r} is there twice")
        if key.startswith(HASHED):
            try:
                found[name] = bytes.fromhex(key.removeprefix(HASHED))
            except ValueError:
                found[name] = b""
            if len(found[name]) != hashlib.sha256().digest_size:
                raise SettingsError(f"{where}: after {HASHED} come 64 hexadecimal digits")
        elif len(key) < SHORTEST:
            raise SettingsError(
                f"{where}: the key has {len(key)} characters; it must have {SHORTEST} or more"
            )
        else:
            found[name] = hashlib.sha256(key.encode("utf-8")).digest()
    if not found:
        raise SettingsError(f"{path} holds no key")
    return found


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Another one after each change; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
