"""The contenders of the GPU benchmark, in one process: the project's recipes, and a Transformers + PEFT loop.

Both train the model in ``folder/start`` on the same packed rows: sequences of fixed lengths
that together fill a row, the second half of each sequence labelled.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.trainers.work import Shape, Work
from pipeline import schema

RANK = 16
SECTIONS = {"sft": "train", "dpo": "align"}


class Done(Exception):
    """As many steps were timed as were wanted."""


def job(folder: Path, shape: Shape, row: int, threads: int) -> None:
    """``job.json`` of a step on a model of this shape."""
    recipe = schema.Recipe()
    for name, value in asdict(shape).items():
        if hasattr(recipe.model, name):
            setattr(recipe.model, name, value)
    recipe.model.context = row
    settings = {name: asdict(getattr(recipe, name)) for name in ("model", "train", "align", "launch")}
    plain = {
        "stage": "train", "module": "benchmarks.training_gpu", "recipe": "gpu", "identity": "0" * 64,
        "settings": settings, "inputs": {}, "work": str(folder / "work"), "threads": threads,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(plain))


def model(folder: Path, shape: Shape, row: int, device: str) -> int:
    """Write a randomly initialised Llama in bf16, made on the device, and a tokenizer; its parameters."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=row, rope_theta=500_000.0, tie_word_embeddings=False,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            made = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    made.save_pretrained(folder / "start")
    words = Tokenizer(models.WordLevel({"</s>": 0}, unk_token="</s>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder / "tokenizer")
    return sum(p.numel() for p in made.parameters())


def data(folder: Path, kind: str, lengths: list[int], vocabulary: int, rows: int) -> Work:
    """Examples that fill ``rows`` rows with sequences of these lengths; what one row is."""
    from pipeline.engines.automodel.examples import IGNORED, Examples

    generator = torch.Generator().manual_seed(1)
    sequences = []
    for length in lengths * rows:
        tokens = torch.randint(0, vocabulary, (length + 1,), generator=generator).tolist()
        sequences.append((tokens[:-1], [IGNORED] * (length // 2) + tokens[length // 2 + 1 :]))
    made = Examples.of(sequences, {"sft": 1, "dpo": 2}[kind])
    for name in (kind, f"{kind}-validation"):
        count = len(made) if name == kind else len(made) // rows
        made.save(folder / f"{name}.safetensors", list(range(count)))
    return Work.of(lengths, sum(length - length // 2 for length in lengths))


def ours(folder: Path, kind: str, changes: dict[str, Any], steps: int, warm_up: int) -> list[float]:
    """Seconds of each timed step of the project's recipe; the reference's scoring is counted in."""
    from benchmarks.trainers.ours import build, score

    recipe = build(
        folder,
        kind,
        {**changes, "exact_kl": False} if kind == "dpo" else changes,
        tokenizer=folder / "tokenizer",
    )
    recipe.setup()
    step, clock = recipe._run_train_optim_step, Clock(steps, warm_up)

    def timed(batches: Any, *given: Any, **named: Any) -> Any:
        made = step(batches, *given, **named)
        if kind == "dpo":
            for batch in batches:
                score(recipe, batch, torch)
        clock.tick()
        return made

    recipe._run_train_optim_step = timed
    with contextlib.suppress(Done):
        recipe.run_train_validation_loop()
    return clock.seconds


def plain(folder: Path, kind: str, changes: dict[str, Any], steps: int, warm_up: int) -> list[float]:
    """Seconds of each timed step of a loop that Transformers and PEFT are enough for.

    Sequences are padded to the longest; bf16 weights, SDPA, fused AdamW, clipping; gradient
    checkpointing where ``recompute`` is not ``none``; DPO's reference in every step, with the
    adapters off.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from benchmarks.trainers.data import stored

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net: Any = AutoModelForCausalLM.from_pretrained(
        folder / "start", dtype=torch.bfloat16, attn_implementation="sdpa"
    ).to(device)
    if changes["parallel"]["recompute"] != "none":
        net.gradient_checkpointing_enable({"use_reentrant": False})
        net.enable_input_require_grads()
    if changes["peft"] == "lora":
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        net = get_peft_model(
            net, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names, task_type="CAUSAL_LM")
        )
    net.train()
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-5, fused=True)
    examples, clock = stored(folder, kind), Clock(steps, warm_up)

    def logs(inputs: Any, labels: Any) -> Any:
        logits = net(input_ids=inputs, use_cache=False).logits.float().flatten(0, 1)
        each = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")
        return -each.view(labels.shape).sum(1)

    try:
        for number in range(warm_up + steps):
            for _ in range(changes["accumulate"]):
                size = changes["micro_batch_size"]
                first = number * size
                items = [examples[(first + i) % len(examples)]["sequences"] for i in range(size)]
                rows = [pair for sides in zip(*items, strict=True) for pair in sides]
                pad = torch.nn.utils.rnn.pad_sequence
                inputs = pad([tokens for tokens, _ in rows], batch_first=True).to(device)
                labels = pad([labels for _, labels in rows], batch_first=True, padding_value=-100).to(device)
                found = logs(inputs, labels)
                if kind == "sft":
                    loss = -found.sum() / (labels >= 0).sum()
                else:
                    with torch.no_grad(), net.disable_adapter():
                        fixed = logs(inputs, labels)
                    chosen, rejected = (found - fixed).chunk(2)
                    loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
                (loss / changes["accumulate"]).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            clock.tick()
    except Done:
        pass
    return clock.seconds


class Clock:
    """Times steps after some for warming up; raises :class:`Done` when it has enough."""

    def __init__(self, steps: int, warm_up: int) -> None:
        self.seconds: list[float] = []
        self._steps, self._warm_up, self._began = steps, warm_up, 0.0

    def tick(self) -> None:
        """A step ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._warm_up -= 1
        if self._warm_up < 0:
            self.seconds.append(now - self._began)
        self._began = time.perf_counter()
        if len(self.seconds) == self._steps:
            raise Done


def fresh(run: Callable[[], list[float]]) -> tuple[list[float], float]:
    """Seconds of a contender's steps and its peak memory in bytes; empty where it does not fit."""
    cuda = torch.cuda.is_available()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = run()
    except torch.cuda.OutOfMemoryError:
        seconds = []
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    gc.collect()
    return seconds, float(peak)


def threads() -> int:
    """The machine's cores."""
    return os.cpu_count() or 1
