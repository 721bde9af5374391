"""How OpenMP's threads should wait: work of a chain, quiet and beside two busy processes, in alternation.

    .venvs/controller/bin/python -m benchmarks.waiting [--rounds 7] [--seconds 2] [--kinds train,evaluate]

Each way to wait has a process of its own for each kind of work, with the same threads; they are set up and warmed up
one after the other and then take turns of a few seconds, first on the machine as it is, then beside as many busy
processes as there are threads.  Printed are medians of the rounds in steps a second (answers' tokens for ``parity``), and what
was computed, which must be the same to the last bit.

``train``: an optimiser step of llama-tiny's shapes (batch 8, 128 tokens); ``evaluate``: losses without gradients;
``parity``: greedy answers with a cache, as the trained model gives them beside an export; ``serving``: one answer of an
export's OpenVINO model (``--model FOLDER``: its folder, with ``openvino_model.xml``), which has threads of its own (TBB).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.runner.execute import step_environment
from pipeline.threads import thread_count
from pipeline.toolchains import ROOT, Toolchain

# What is laid over a step's environment; None takes a variable away.
WAYS: dict[str, dict[str, str | None]] = {
    "spinning": {"OMP_WAIT_POLICY": None},
    "spins=10000": {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "10000"},
    "spins=1000": {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
KINDS = ("train", "evaluate", "parity", "serving")
SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
BATCH, LENGTH, ANSWER = 8, 128, 8


class Worker:
    """A process that does one kind of work and waits in one way."""

    def __init__(self, kind: str, way: str, threads: int, model: str) -> None:
        toolchain = Toolchain("serving" if kind == "serving" else "core")
        laid = {**step_environment(toolchain, threads), **WAYS[way]}
        environment = {name: value for name, value in laid.items() if value is not None}
        self.process = subprocess.Popen(
            [str(toolchain.python), "-m", "benchmarks.waiting", "--work", kind, "--model", model],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.digest = str(self._answer()["digest"])

    def run(self, seconds: float) -> float:
        """Steps a second over a turn."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(self._answer()["rate"])

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = strict_json.loads(self.process.stdout.readline() or "{}")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--kinds", default="train,evaluate,parity")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--model", default="")
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.model)
        return
    threads = thread_count(options.threads)
    print("| work | machine | " + " | ".join(WAYS) + " | bits |\n| --- | --- |" + " ---: |" * (len(WAYS) + 1))
    for kind in options.kinds.split(","):
        measure(kind, threads, options.rounds, options.seconds, options.model)


def measure(kind: str, threads: int, rounds: int, seconds: float, model: str) -> None:
    """One kind of work: every way in alternation, quiet and busy; prints two rows."""
    workers = {way: Worker(kind, way, threads, model) for way in WAYS}
    same = "the same" if len({worker.digest for worker in workers.values()}) == 1 else "DIFFERENT"
    try:
        for machine, busy in (("as it is", 0), (f"beside {threads} busy processes", threads)):
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                rates: dict[str, list[float]] = {way: [] for way in WAYS}
                for _ in range(rounds):
                    for way, worker in workers.items():
                        rates[way].append(worker.run(seconds))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
            shown = (
                f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"
                for found in rates.values()
            )
            load = f"{machine}, load {os.getloadavg()[0]:.1f}"
            print(f"| {kind} | {load} | {' | '.join(shown)} | {same} |", flush=True)
    finally:
        for worker in workers.values():
            worker.stop()


def work(kind: str, model: str) -> None:
    """The worker's side: set up, say what was computed, then a turn for each line of seconds."""
    step, digest = (served if kind == "serving" else trained)(kind, model)
    print(strict_json.dumps({"digest": digest}), flush=True)
    for line in sys.stdin:
        began, done = time.perf_counter(), 0.0
        while time.perf_counter() - began < float(line):
            done += step()
        print(strict_json.dumps({"rate": done / (time.perf_counter() - began)}), flush=True)


def trained(kind: str, model: str) -> tuple[Callable[[], float], str]:
    """A step of llama-tiny's shapes in PyTorch, and a digest of what two of them computed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = LlamaConfig(**SHAPE, num_key_value_heads=2, vocab_size=4096, max_position_embeddings=512)
    llama = LlamaForCausalLM(config).train(kind == "train")
    tokens = torch.randint(0, 4096, (BATCH, LENGTH))
    optimiser = torch.optim.AdamW(llama.parameters(), lr=1e-3)
    seen: list[Any] = []

    def train() -> float:
        loss = llama(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seen[:] = [loss.detach()]
        return 1.0

    def evaluate() -> float:
        with torch.inference_mode():
            seen[:] = [llama(input_ids=tokens, labels=tokens).loss]
        return 1.0

    def parity() -> float:
        made = llama.generate(
            input_ids=tokens[:1, :32],
            max_new_tokens=ANSWER,
            min_new_tokens=ANSWER,
            do_sample=False,
            pad_token_id=0,
        )
        seen[:] = [made]
        return float(ANSWER)

    step = {"train": train, "evaluate": evaluate, "parity": parity}[kind]
    for _ in range(2):
        step()
    return step, hashlib.sha256(seen[0].reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def served(kind: str, model: str) -> tuple[Callable[[], float], str]:
    """An answer of OpenVINO GenAI's continuous batching, as the CPU target gives it."""
    sys.path.insert(0, str(ROOT / "deploy" / "triton" / "openvino_genai"))
    sys.path.insert(0, str(ROOT / "deploy" / "triton" / "contract"))
    import openvino_genai as genai
    from engine import properties  # type: ignore[import-not-found]

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    threads = int(os.environ["OMP_NUM_THREADS"])
    pipeline = genai.ContinuousBatchingPipeline(str(Path(model)), scheduler, "CPU", properties(threads))
    settings = genai.GenerationConfig(max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False)

    def answer() -> float:
        found = pipeline.generate(["What does the function do?"], [settings])
        seen[:] = found[0].m_generation_ids
        return float(ANSWER)

    seen: list[str] = []
    answer()
    return answer, hashlib.sha256("".join(map(str, seen)).encode()).hexdigest()


if __name__ == "__main__":
    main()
