"""Reading the settings of a ``config.json`` one by one, with a clear line for each that makes no sense.

A configuration leaves out what its class has a default for, so each reader says which default that is
(``transformers/models/FAMILY/configuration_FAMILY.py``); the sizes that make a model what it is have none here, since
a file without them is rather damaged than meant.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UserError


class Required(enum.Enum):
    """In place of a default: the field has to be there."""

    HERE = "required"


REQUIRED = Required.HERE
LARGEST = 10**9  # no width, count or vocabulary comes near it; beyond, a digit slipped in
DEEPEST = 10_000  # layers


class Fields:
    """The settings of one model; ``name`` is the file that errors point at, ``prefix`` the section inside it."""

    def __init__(self, config: Mapping[str, Any], name: str, prefix: str = "") -> None:
        self.config, self.name, self.prefix = config, name, prefix

    def fault(self, key: str, words: str) -> UserError:
        """An error about one field."""
        return UserError(f"{self.name}: {self.prefix}{key} {words}")

    def size(self, *keys: str, default: int | Required = REQUIRED, largest: int = LARGEST) -> int:
        """A whole number of at least 1, under the first of ``keys`` that is there."""
        return self._whole(keys, default, 1, largest)

    def count(self, *keys: str, default: int | Required = REQUIRED) -> int:
        """A whole number of at least 0."""
        return self._whole(keys, default, 0, LARGEST)

    def optional(self, key: str, default: int | None = None) -> int | None:
        """A size that may be missing (``default``) or null (None)."""
        if key in self.config and self.config[key] is None:
            return None
        return default if key not in self.config else self.size(key)

    def flag(self, key: str, default: bool) -> bool:
        """A yes or no; null, which older files have, is the default."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fault(key, f"= {value!r} is neither true nor false")
        return value

    def words(self, key: str) -> Sequence[str] | None:
        """A list of names, or None where it is missing or null."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fault(key, f"= {value!r} is not a list of names")
        return value

    def whole_numbers(self, key: str) -> Sequence[int]:
        """A list of whole numbers of at least 0, such as layers by their place; empty where it is missing or null."""
        value = self.config.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(_is_whole(item) and item >= 0 for item in value):
            raise self.fault(key, f"= {value!r} is not a list of whole numbers of at least 0")
        return value

    def depth(self, default: int | Required = REQUIRED) -> int:
        """The number of layers."""
        return self.size("num_hidden_layers", default=default, largest=DEEPEST)

    def _whole(self, keys: tuple[str, ...], default: int | Required, least: int, largest: int) -> int:
        key = next((key for key in keys if self.config.get(key) is not None), None)
        if key is None:
            if isinstance(default, Required):
                others = f" (or {', '.join(keys[1:])})" if keys[1:] else ""
                raise self.fault(keys[0], f"is missing{others}: the shape of the model cannot be told")
            return default
        value = self.config[key]
        if not _is_whole(value):
            raise self.fault(key, f"= {value!r} is not a whole number")
        if not least <= value <= largest:
            raise self.fault(key, f"= {value} is out of range; it must be from {least} to {largest}")
        return int(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
