"""Saving the pictures of the verbs, with one line for a file that cannot be written.

A picture is written before anything is printed: a pipe that closes early (``| head``) then costs nothing.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

KINDS = (".svg", ".png", ".pdf")
DOTS_PER_INCH = 130


def check(path: str | Path) -> None:
    """Raise :class:`UserError` for a name whose ending is no picture's, or a folder that is not there.

    For before the work; whether the file can be written is known when :func:`save` writes it.
    """
    file = Path(path)
    if file.suffix.lower() not in KINDS:
        raise UserError(f"--plot {path}: the name must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--plot {path}: there is no folder {file.absolute().parent}")
    if file.is_dir():
        raise UserError(f"--plot {path}: is a folder")


def save(figure: Any, path: str | Path) -> None:
    """Write a matplotlib figure in the kind that the file's ending says.

    It is drawn in memory first, so that a picture that fails to be drawn leaves no half of a file.
    """
    check(path)
    file, drawn = Path(path), io.BytesIO()
    figure.savefig(drawn, format=file.suffix.lower().removeprefix("."), dpi=DOTS_PER_INCH)
    try:
        file.write_bytes(drawn.getvalue())
    except OSError as error:
        raise UserError(f"--plot {path}: cannot be written: {error.strerror or error}") from None
