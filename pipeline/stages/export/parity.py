"""Is the exported model the trained one?  Answers, logits and perplexity beside Hugging Face's, measured.

Everything is computed by what will be served: the engine of the server on the CPU target; on the GPU
targets, whose kernels do not run here, the written checkpoint read back (:mod:`quantised`).  An fp32
export must give the same greedy tokens; each other precision has a tolerance (:data:`TOLERANCES`), and an export
outside it is not published.  The chat template must render the same bytes in any case.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from pipeline import schema
from pipeline.chat_templates import forged
from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.stages.export import held_out
from pipeline.stages.export.agreement import (
    TIE,
    LogitsSum,
    Perplexity,
    Tokens,
    Tolerance,
    first_difference,
    log_likelihood,
    plain,
)
from pipeline.stages.export.reference import Reference
from pipeline.stages.step import Step

EXAMPLES = 5
SERVED_ROLES = ("system", "user", "assistant")  # as deploy/triton/contract/parameters.py has them
PROBES = 64  # questions with their answers that a server of this export will be held to

# What a precision may cost: some times what was measured on llama-tiny's aligned model (README, "Serving"), of two
# million parameters, which rounding hurts more than it hurts a large one.  Not measured there are int8-sq, nvfp4 and the two
# AWQ formats (whose groups of 128 its width does not hold): they have the limits of their kin.
EIGHT = Tolerance(different=0.4, top1_agreement=0.94, kl=0.008, perplexity=0.02)
FOUR = Tolerance(different=0.8, top1_agreement=0.85, kl=0.03, perplexity=0.05)
TOLERANCES = {
    "fp32": Tolerance(different=0.0, top1_agreement=0.999, kl=1e-6, perplexity=1e-4),
    "bf16": Tolerance(different=0.1, top1_agreement=0.99, kl=1e-4, perplexity=0.005),
    "int8": Tolerance(different=0.25, top1_agreement=0.97, kl=0.001, perplexity=0.01),
    "fp8": EIGHT,
    "int8-sq": EIGHT,
    "int4": FOUR,
    "int4-awq": FOUR,
    "w4a8-awq": FOUR,
    "nvfp4": FOUR,
}


class AtWork(Protocol):
    """A model that can be asked, in whatever form."""

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]: ...

    def logits(self, ids: list[int]) -> np.ndarray: ...


def check(
    step: Step, reference: Reference, tokenizer: Any, exported: AtWork, served: Any = None
) -> dict[str, Any]:
    """Compare on held-out questions and documents; the content of parity.json.

    ``served``, where there is one, is the tokenizer with which the server will render the chat template.
    """
    settings = step.section(schema.Export)
    conversations = held_out.conversations(step, settings.parity_prompts)
    room = int(reference.model.config.max_position_embeddings) - settings.parity_tokens
    if len(conversations) < settings.parity_prompts:
        step.message(
            f"held to the trained model on {len(conversations):,} prompts: curation has no more "
            f"(export.parity_prompts is {settings.parity_prompts:,})"
        )
    prompts = [chat_tokenizer(tokenizer).prompt(asked.turns)[-room:] for asked in conversations]
    templates = [] if served is None else template_differences(served, tokenizer, conversations)
    tokens, logits = Tokens(prompts=len(prompts)), LogitsSum()
    got = exported.answers(prompts, settings.parity_tokens)
    probes: list[dict[str, Any]] = []
    for done, (prompt, ours, asked) in enumerate(zip(prompts, got, conversations, strict=True), start=1):
        wanted = reference.answer(prompt, settings.parity_tokens)
        ids, start = prompt + wanted, len(prompt) - 1
        theirs = reference.logits(ids)[start:-1]
        logits.add(exported.logits(ids)[start:-1], theirs)
        _count(tokens, tokenizer, prompt, ours, wanted, theirs)
        if ours == wanted and len(prompt) < room and len(probes) < PROBES and askable(asked.turns):
            text = chat_tokenizer(tokenizer).decode(ours)
            probes.append({"messages": asked.turns, "text": text})
        step.progress(done, len(prompts), "prompts")
    perplexity = _perplexity(step, reference, tokenizer, exported)
    tolerance = replace(TOLERANCES[settings.weights], **settings.tolerance)
    figures = logits.figures()
    faults = tolerance.faults(tokens, figures, perplexity)
    if templates:
        example = templates[0]
        faults.insert(
            0,
            f"the chat template renders differently on the server for {len(templates)} of {len(prompts)} "
            f"prompts, e.g. {example['exported']!r} instead of {example['hugging_face']!r}",
        )
    return {
        "weights": settings.weights,
        "tokens_per_prompt": settings.parity_tokens,
        "tie_logits": TIE,
        **plain(tokens),
        "logits": plain(figures),
        "perplexity": None if perplexity is None else plain(perplexity),
        "tolerance": plain(tolerance),
        "template_equal": None if served is None else len(conversations) - len(templates),
        "template_examples": templates[:EXAMPLES],
        "turns_that_text_can_pass_for": forged(chat_tokenizer(tokenizer)),
        "faults": faults,
        "probes": probes,
    }


def _count(
    tokens: Tokens, tokenizer: Any, prompt: list[int], ours: list[int], wanted: list[int], logits: np.ndarray
) -> None:
    place = first_difference(ours, wanted)
    if place is None:
        tokens.equal += 1
        return
    # Past the end of the reference's answer there is nothing to tie with.
    row = logits[min(place, len(logits) - 1)]
    best = [int(token) for token in np.argsort(row)[-2:]]
    gap = float(row[best[1]] - row[best[0]])
    tie = gap <= TIE and place < min(len(ours), len(wanted)) and ours[place] in best
    tokens.excused, tokens.different = tokens.excused + tie, tokens.different + (not tie)
    if len(tokens.examples) < EXAMPLES:
        tokens.examples.append(
            {
                "prompt": tokenizer.decode(prompt),
                "at_token": place,
                "exported": ours,
                "hugging_face": wanted,
                "top_two_gap": gap,
                "excused": tie,
            }
        )


def _perplexity(step: Step, reference: Reference, tokenizer: Any, exported: AtWork) -> Perplexity | None:
    """Of the model and of its export on held-out documents; None where curation has none."""
    settings = step.section(schema.Export)
    length = min(int(reference.model.config.max_position_embeddings), settings.perplexity_tokens)
    documents = held_out.texts(step, tokenizer, settings.perplexity_documents, length)
    sums, count = [0.0, 0.0], 0
    for done, ids in enumerate(documents, start=1):
        for place, model in enumerate((reference, exported)):
            sums[place] -= log_likelihood(model.logits(ids), ids)
        count += len(ids) - 1
        step.progress(done, len(documents), "documents", "perplexity")
    if not count:
        return None
    return Perplexity(float(np.exp(sums[0] / count)), float(np.exp(sums[1] / count)), len(documents))


def describe(result: dict[str, Any]) -> str:
    """Two sentences about the comparison."""
    logits, perplexity = result["logits"], result["perplexity"]
    same = result["template_equal"]
    template = "" if same is None else f"; chat template renders the same bytes on {same}"
    documents = (
        ""
        if perplexity is None
        else f"; held-out perplexity {perplexity['before']:.4g} -> {perplexity['after']:.4g}"
    )
    return (
        f"greedy tokens equal Hugging Face's on {result['equal']} of {result['prompts']} held-out prompts, "
        f"{result['excused']} differ at a tie, {result['different']} differ{template}. Logits differ by "
        f"{logits['max_difference']:.2g} at most, {logits['mean_difference']:.2g} on average (best token the same at "
        f"{logits['top1_agreement']:.1%}, {logits['kl']:.2g} nats){documents}"
    )


def askable(turns: held_out.Turns) -> bool:
    """Whether a client of the server can send these turns: it takes no results of tools."""
    return turns[-1]["role"] == "user" and all(turn["role"] in SERVED_ROLES for turn in turns)


def template_differences(
    served: Any, tokenizer: Any, conversations: list[held_out.Asked]
) -> list[dict[str, str]]:
    """The renderings that differ, of what is asked or of the conversation gone on; one each at most."""
    found = []
    for asked in conversations:
        for part in (asked.turns, asked.gone_on):
            exported = served.render(part)
            wanted = tokenizer.apply_chat_template(part, add_generation_prompt=True, tokenize=False)
            if exported.encode() != wanted.encode() or served.prompt(part) != chat_tokenizer(
                tokenizer
            ).prompt(part):
                found.append({"exported": exported, "hugging_face": wanted})
                break
    return found
