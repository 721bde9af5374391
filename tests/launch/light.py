"""The command line over the light chain (tests/faults/light): the jobs of the tests run this.

    python -m tests.launch.light VERB RECIPE.yaml [OPTIONS as lifecycle]

Everything but the work of the steps is the product's own.
"""

from __future__ import annotations

import sys

from pipeline import cli, graph
from pipeline.launch import submit
from tests.faults.light.__main__ import STEPS


def main(words: list[str]) -> int:
    """As ``lifecycle``, for the stages curate, train and export."""
    graph.resolve = lambda names, *_: tuple(step for step in STEPS if step.name in names)
    submit.MODULE = "tests.launch.light"
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
