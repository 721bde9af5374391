"""A plain loop: ``python -m benchmarks.trainers.bare FOLDER KIND WARM_UP [like-lengths]``.

PyTorch and transformers and nothing else: bf16 autocast over fp32 weights, padded batches
in the order of the data, logits of every position, ``cross_entropy``, clipping, fused AdamW.
For DPO a frozen copy of the model scores in every step.  ``like-lengths`` is the same loop by
somebody who minds: the recipe's order, which puts sequences of like length together, and
the output layer at the labelled positions only.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.trainers.data import plain_sequences, stored
from benchmarks.trainers.pace import Pace
from benchmarks.trainers.work import Work
from pipeline.stages.step import Step

SECTION = {"sft": "train", "dpo": "align"}


def batches(folder: Path, kind: str, size: int, like_lengths: bool) -> Iterator[tuple[Any, Any, list[int]]]:
    """Inputs and labels ``[sequences, longest]`` and the sequences' lengths."""
    import torch

    data = plain_sequences(folder, kind)
    order = list(range(len(data)))
    random.Random(0).shuffle(order)
    if like_lengths:
        order = stored(folder, kind).order.tolist()
    for start in range(0, len(order), size):
        items = [data[index] for index in order[start : start + size]]
        rows = [sides[which] for which in range(len(items[0])) for sides in items]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
        inputs = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full_like(inputs, -100)
        lengths = []
        for row, (prompt, answer) in enumerate(rows):
            whole = torch.tensor(prompt + answer)
            lengths.append(len(whole) - 1)
            inputs[row, : len(whole) - 1] = whole[:-1]
            labels[row, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
        yield inputs, labels, lengths


def losses(model: Any, inputs: Any, labels: Any, sparse: bool) -> Any:
    """Cross-entropy of each labelled position, and which sequence it is of."""
    import torch

    wanted = labels >= 0
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        if sparse:
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            logits, targets = model.lm_head(hidden[wanted]), labels[wanted]
        else:
            logits, targets = model(input_ids=inputs, use_cache=False).logits.flatten(0, 1), labels.flatten()
    each = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    return (each, rows[wanted]) if sparse else (each, rows.flatten())


def main() -> None:
    folder, kind, warm_up = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    like_lengths = "like-lengths" in sys.argv[4:]
    pace = Pace(warm_up)
    import torch
    from transformers import AutoModelForCausalLM

    step = Step.load(folder / "job.json")
    settings = step.settings[SECTION[kind]]
    torch.set_num_threads(step.threads)
    model = AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32).train()
    reference = copy.deepcopy(model).eval().requires_grad_(False) if kind == "dpo" else None
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings["lr"], fused=True)
    for inputs, labels, lengths in batches(folder, kind, settings["global_batch_size"], like_lengths):
        each, rows = losses(model, inputs, labels, like_lengths)
        if reference is None:
            loss = each.sum() / (labels >= 0).sum()
        else:
            with torch.no_grad():
                fixed, _ = losses(reference, inputs, labels, like_lengths)
            ratios = torch.zeros(len(labels)).index_add(0, rows, fixed - each)
            chosen, rejected = ratios.chunk(2)
            loss = -torch.nn.functional.logsigmoid(settings["beta"] * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
        pace.step(Work.of(lengths, int((labels >= 0).sum())))
    raise RuntimeError("the data ended before the benchmark did")


if __name__ == "__main__":
    main()
