"""The README's examples of talking to a deployed model, run as they stand, on the ports that they name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

from pipeline.toolchains import ROOT
from tests.gateway.conftest import Started

PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
SECTION = re.compile(r"### Talking to it\n(.*?)\n#", re.DOTALL)
FENCE = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def examples() -> list[tuple[str, str]]:
    found = SECTION.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    return FENCE.findall(found[1])


def test_there_are_curl_openai_and_tritonclient() -> None:
    kinds = [
        (kind, next(word for word in ("curl", "tritonclient", "openai") if word in text))
        for kind, text in examples()
    ]
    assert kinds == [("bash", "curl"), ("python", "openai"), ("python", "tritonclient")]


def test_the_examples_answer(start: Callable[..., Started]) -> None:
    gateway = start(**PORTS)
    asked = gateway.generate(text_input="What does the function numpy.linalg.norm do?", temperature=0)
    assert asked.status_code == 200
    for kind, text in examples():
        command = ["bash", "-ec", text] if kind == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip(), text
        if kind == "bash":
            assert done.stdout.rstrip().endswith("data: [DONE]")
            assert '"usage":{"prompt_tokens"' in done.stdout
