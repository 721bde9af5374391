"""Is the exported model the trained one?  Greedy tokens beside Hugging Face's, all of them.

The exported side is the very engine that the server runs, with all prompts in flight at
once.  Two implementations of the same fp32 arithmetic differ in the last bits, so where
Hugging Face's own two best tokens lie within ``TIE`` either is right: that difference is
excused, counted, and the comparison of that prompt ends there.  With int8 weights the
agreement is reported and gates nothing; the chat template must agree in any case.
"""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import schema
from pipeline.stages.data_sets import documents
from pipeline.stages.export.repository import model_files
from pipeline.stages.step import InputError, Step, read_jsonl

TIE = 1e-3  # logits
EXAMPLES = 5
OPENING = 80  # characters of a document that stand in for a question


def check(step: Step, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Compare on the first ``export.parity_prompts`` held-out questions; the content of parity.json."""
    settings = step.section(schema.Export)
    conversations = held_out(step, settings.parity_prompts)
    engine_module = load_engine(model_files(step))
    engine = engine_module.Engine(
        model_files(step) / "openvino",
        kv_cache_gb=settings.kv_cache_gb,
        threads=step.threads,
        max_new_tokens=settings.parity_tokens,
    )
    try:
        templates = [
            example
            for messages in conversations
            if (example := template_difference(engine, tokenizer, messages)) is not None
        ]
        prompts = [
            tokenizer.apply_chat_template([messages[0]], add_generation_prompt=True, return_dict=False)
            for messages in conversations
        ]
        prompts = [prompt[-context_room(model, settings.parity_tokens) :] for prompt in prompts]
        exported = generate_exported(engine, prompts, settings.parity_tokens)
    finally:
        engine.close()
    ends = set(model.generation_config.eos_token_id)
    equal, excused, different = 0, 0, 0
    examples: list[dict[str, Any]] = []
    for done, (prompt, got) in enumerate(zip(prompts, exported, strict=True), start=1):
        wanted = generate_reference(model, prompt, settings.parity_tokens, ends)
        place = first_difference(got, wanted)
        step.progress(done, len(prompts), "prompts")
        if place is None:
            equal += 1
            continue
        gap, best = top_two(model, prompt + wanted[:place])
        tie = gap <= TIE and place < len(got) and got[place] in best
        excused, different = excused + tie, different + (not tie)
        if len(examples) < EXAMPLES:
            examples.append(
                {
                    "prompt": tokenizer.decode(prompt),
                    "at_token": place,
                    "exported": got,
                    "hugging_face": wanted,
                    "top_two_gap": gap,
                    "excused": tie,
                }
            )
    return {
        "weights": settings.weights,
        "prompts": len(prompts),
        "tokens_per_prompt": settings.parity_tokens,
        "equal": equal,
        "excused": excused,
        "different": different,
        "tie_logits": TIE,
        "examples": examples,
        "template_equal": len(conversations) - len(templates),
        "template_examples": templates[:EXAMPLES],
    }


def fault(result: dict[str, Any]) -> str | None:
    """Why the export must not be published, in words; None where it may."""
    if result["template_equal"] < result["prompts"]:
        example = result["template_examples"][0]
        return (
            f"the chat template renders differently on the server for "
            f"{result['prompts'] - result['template_equal']} of {result['prompts']} prompts, e.g. "
            f"{example['exported']!r} instead of {example['hugging_face']!r}"
        )
    if result["weights"] == "fp32" and result["different"]:
        return (
            f"the exported model is not the trained one: greedy tokens differ on {result['different']} of "
            f"{result['prompts']} prompts ({result['equal']} equal, {result['excused']} excused as ties); "
            f"see parity.json in the step's output"
        )
    return None


def describe(result: dict[str, Any]) -> str:
    """One sentence about the comparison."""
    gated = "" if result["weights"] == "fp32" else f"; {result['weights']} weights: reported, not required"
    return (
        f"greedy tokens equal Hugging Face's on {result['equal']} of {result['prompts']} held-out prompts, "
        f"{result['excused']} differ at a tie, {result['different']} differ{gated}; "
        f"chat template renders the same bytes on {result['template_equal']}"
    )


def held_out(step: Step, count: int) -> list[list[dict[str, str]]]:
    """Conversations for the check: test questions first, then what else curation held out.

    A small corpus may have fewer test questions than wanted, an untitled one none: then
    validation questions and the openings of documents (held out ones first) fill up.  Each
    conversation has a second question, for the template.  Raises :class:`InputError` when
    even so there are too few.
    """
    data = step.inputs["data"]
    found: list[list[dict[str, str]]] = []
    for split in ("test", "validation"):
        records = read_jsonl(data / "sft" / f"{split}.jsonl")
        found += [[*r["messages"][:2], r["messages"][0]] for r in records if len(r["messages"]) >= 2]
    for split in ("test", "validation", "train"):
        if len(found) < count:
            for record in documents(data, split):
                opening = {"role": "user", "content": record["text"][:OPENING].strip()}
                found.append([opening, {**opening, "role": "assistant"}, opening])
    if len(found) < count:
        raise InputError(
            f"export.parity_prompts: {count} prompts wanted, curation has {len(found)}; give it more documents"
        )
    return found[:count]


def template_difference(engine: Any, tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, str] | None:
    """The two renderings where they differ: of the first question, or of the whole conversation."""
    for part in (messages[:1], messages):
        exported = engine.render(part)
        wanted = tokenizer.apply_chat_template(part, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(wanted, add_special_tokens=False)["input_ids"]
        if exported.encode() != wanted.encode() or engine.encode(exported) != ids:
            return {"exported": exported, "hugging_face": wanted}
    return None


def generate_exported(engine: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedy continuations of all prompts, generated together; end tokens included."""
    answers: list[list[int]] = [[] for _ in prompts]
    errors: list[str] = []
    open_prompts = threading.Semaphore(0)

    def receiver(place: int) -> Any:
        def take(piece: Any) -> bool:
            answers[place].extend(piece.tokens)
            if piece.error:
                errors.append(piece.error)
            if piece.last:
                open_prompts.release()
            return True

        return take

    for place, prompt in enumerate(prompts):
        engine.submit_tokens(prompt, engine.greedy(tokens), receiver(place))
    for _ in prompts:
        open_prompts.acquire()
    if errors:
        raise RuntimeError(f"the exported model does not answer: {errors[0]}")
    return answers


def generate_reference(model: Any, prompt: list[int], tokens: int, ends: set[int]) -> list[int]:
    """Hugging Face's greedy continuation of one prompt; the end token included."""
    import torch
    from transformers import GenerationConfig

    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=sorted(ends),
        pad_token_id=model.generation_config.pad_token_id,
    )
    ids = torch.tensor([prompt])
    # The model's own defaults (a repetition penalty, say) must not fill the gaps of `greedy`.
    kept, model.generation_config = model.generation_config, greedy
    try:
        with torch.no_grad():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    finally:
        model.generation_config = kept
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer


def first_difference(got: list[int], wanted: list[int]) -> int | None:
    """Where two token lists part, None if they are the same."""
    for place, (left, right) in enumerate(zip(got, wanted, strict=False)):
        if left != right:
            return place
    return None if len(got) == len(wanted) else min(len(got), len(wanted))


def top_two(model: Any, tokens: list[int]) -> tuple[float, list[int]]:
    """Hugging Face's two best next tokens and how far apart their logits lie."""
    import torch

    with torch.no_grad():
        best = torch.topk(model(torch.tensor([tokens])).logits[0, -1], 2)
    return float(best.values[0] - best.values[1]), [int(token) for token in best.indices]


def context_room(model: Any, tokens: int) -> int:
    """The longest prompt that leaves room for the answer."""
    return int(model.config.max_position_embeddings) - tokens


def load_engine(folder: Path) -> ModuleType:
    """The module of the exported engine, imported from the repository as the server does."""
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the repository is published as it is
    sys.path.insert(0, str(folder))
    try:
        for name in ("engine", "parameters", "text_stream"):
            sys.modules.pop(name, None)
        return importlib.import_module("engine")
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = written
