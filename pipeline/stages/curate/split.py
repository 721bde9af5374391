"""Training, validation and test, without near-duplicates across the borders."""

from __future__ import annotations

from pipeline.stages.curate.pairs import hashed

SPLITS = ("train", "validation", "test")


def split_of(group: str, validation_share: float, test_share: float) -> str:
    """The split of a group of alike documents, by the hash of the group's name alone.

    Adding or removing other documents never moves a group to another split.
    """
    place = hashed("split", group) / 2**64
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"
