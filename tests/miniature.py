"""A miniature recipe's inputs for export, and a stage run as the controller runs it: for tests of serving."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.threads import thread_environment

ROOT = Path(__file__).resolve().parents[1]
IDENTITY = "e" * 64
PROMPTS = 50
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def port_settings() -> dict[str, Any]:
    http, grpc, metrics = free_ports(3)
    return {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "start_timeout_s": 120}


def run_stage(
    stage: str,
    work: Path,
    inputs: dict[str, Path],
    settings: dict[str, Any],
    extra: dict[str, str] | None = None,
    asked: dict[str, int] | None = None,
) -> tuple[int, str]:
    """Run a stage as the controller does; returns the exit status and what it told the user.

    ``asked`` are the attributes that the chat template asks for.
    """
    small = {"parity_prompts": PROMPTS, "parity_tokens": 12}
    export = schema.Export(**{**small, **(settings if stage == "export" else {})})
    export.settle(gpus=0)
    sections = {
        "model": dataclasses.asdict(schema.Model()),
        "evaluate": dataclasses.asdict(schema.Evaluate(attributes=asked or {})),
        "export": dataclasses.asdict(export),
        "deploy": dataclasses.asdict(schema.Deploy()),
    }
    if stage != "export":
        sections[stage].update(settings)
    work.mkdir(parents=True)
    job = {
        "stage": stage,
        "module": f"pipeline.stages.{stage}",
        "recipe": "mini",
        "identity": IDENTITY,
        "settings": sections,
        "inputs": {name: str(path) for name, path in inputs.items()},
        "base_model": None,
        "work": str(work),
        "threads": 2,
        "extra": extra or {},
    }
    (work / "job.json").write_text(json.dumps(job))
    environment = {
        **os.environ,
        **thread_environment(2),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
    }
    with open(work / "log.txt", "wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.stages", str(work / "job.json")],
            env=environment,
            stdout=log,
            stderr=log,
            timeout=300,
            check=False,
        )
    events = [json.loads(line) for line in (work / "events.jsonl").read_text().splitlines()]
    return done.returncode, "\n".join(e["text"] for e in events if "text" in e)


def make_inputs(folder: Path) -> dict[str, Path]:
    """A curated-data folder with a trained tokenizer, and a random Llama (seeded)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [name for name in dir(socket) if not name.startswith("_")] + [socket.socket.__doc__ or ""]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    raw.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=specials[0], pad_token=specials[1], eos_token=specials[3]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "data" / "tokenizer")
    for split in ("train", "validation", "test"):
        for file in (f"sft/{split}.jsonl", f"pretrain/{split}/00000.jsonl"):
            (folder / "data" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "data" / file).write_text("")
    for split, first in (("test", 0), ("train", 12)):
        with open(folder / "data" / "pretrain" / split / "00000.jsonl", "w", encoding="utf-8") as handle:
            for number in range(first, first + 6):
                text = f"The socket.{words[number]} of {words[number + 6]}. " * 5
                handle.write(json.dumps({"text": text}) + "\n")
    with open(folder / "data" / "sft" / "test.jsonl", "w", encoding="utf-8") as handle:
        for number in range(PROMPTS):
            question = f"What does `socket.{words[number]}` do? é{number}\n"
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Return it."}]
            handle.write(json.dumps({"id": str(number), "messages": turns, "name": words[number]}) + "\n")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=1,
        initializer_range=0.2,  # spread logits: greedy decoding without ties
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [3, 0]
    model.save_pretrained(folder / "pretrain" / "model")
    (folder / "pretrain" / "model.json").write_text('{"kind": "full", "path": "model"}')
    return {"data": folder / "data", "pretrain": folder / "pretrain"}
