"""How the questions of ``lifecycle scale`` are added to the command line.  Light: ``lifecycle`` must start at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any


def question(
    subparsers: Any,
    name: str,
    call: Callable[[argparse.Namespace], int],
    help: str,
    examples: str,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    """A parser for one question, with examples below its help; ``call`` answers it."""
    made: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help,
        description=help,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=list(parents),
    )
    made.set_defaults(call=call)
    return made
