"""Is the exported model the trained one?  Answers, logits and perplexity beside Hugging Face's, measured.

Everything is computed by what will be served: the engine of the server on the CPU target; on the GPU
targets, whose kernels do not run here, the written checkpoint read back (:mod:`quantised`).  An fp32
export must give the same greedy tokens; each other precision has a tolerance (:data:`TOLERANCES`), and an export
outside it is not published.  The chat template must render the same bytes in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from pipeline.stages.export.reference import Reference, batches
from pipeline.stages.step import Step

EXAMPLES = 5
SERVED_ROLES = ("system", "user", "assistant")  # as deploy/triton/contract/parameters.py has them
PROBES = 64  # questions with their answers that a server of this export will be held to

# What a precision may cost.  What counts is how far the distributions are and what it costs in perplexity: of rounded weights,
# neither equal answers nor equal best tokens are asked for.  bf16 and int8 have five times the largest divergence that was measured
# of SmolLM2-135M (2e-4 and 0.0042 nats).  int4 costs that model 14% of its perplexity (README, "Serving"), and is refused: whoever
# takes it says so.  The others: some times what was measured on llama-tiny's aligned model, of two million parameters.  Not
# measured are int8-sq, nvfp4 and the two AWQ formats (whose groups of 128 its width does not hold): they have the limits of their kin.
EIGHT = Tolerance(different=None, top1_agreement=None, kl=0.008, perplexity=0.02)
FOUR = Tolerance(different=None, top1_agreement=None, kl=0.03, perplexity=0.05)
TOLERANCES = {
    "fp32": Tolerance(different=0.0, top1_agreement=0.999, kl=1e-6, perplexity=1e-4),
    "bf16": Tolerance(different=None, top1_agreement=None, kl=1e-3, perplexity=0.005),
    "int8": Tolerance(different=None, top1_agreement=None, kl=0.02, perplexity=0.01),
    "fp8": EIGHT,
    "int8-sq": EIGHT,
    "int4": FOUR,
    "int4-awq": FOUR,
    "w4a8-awq": FOUR,
    "nvfp4": FOUR,
}


class AtWork(Protocol):
    """A model that can be asked, in whatever form, for a batch at a time (:func:`.reference.batches`)."""

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]: ...

    def logits(self, sequences: list[list[int]], last: list[int]) -> list[np.ndarray]: ...


def check(
    step: Step, reference: Reference, tokenizer: Any, exported: AtWork, served: Any = None, context: int = 0
) -> dict[str, Any]:
    """Compare on held-out questions and documents; the content of parity.json.

    ``served``, where there is one, is the tokenizer with which the server will render the chat template.
    ``context``: tokens of a prompt and its answer that will be served; 0: as many as the model can.
    """
    settings = step.section(schema.Export)
    conversations = held_out.conversations(step, settings.parity_prompts)
    room = (context or int(reference.model.config.max_position_embeddings)) - settings.parity_tokens
    if len(conversations) < settings.parity_prompts:
        step.message(
            f"held to the trained model on {len(conversations):,} prompts: curation has no more "
            f"(export.parity_prompts is {settings.parity_prompts:,})"
        )
    prompts = [chat_tokenizer(tokenizer).prompt(asked.turns)[-room:] for asked in conversations]
    templates = [] if served is None else template_differences(served, tokenizer, conversations)
    tokens, logits = Tokens(prompts=len(prompts)), LogitsSum()
    compared: dict[int, tuple[list[int], list[int], dict[str, Any] | None]] = {}
    for some in batches(prompts):
        asked_now = [prompts[place] for place in some]
        ours = exported.answers(asked_now, settings.parity_tokens)
        theirs = reference.greedy(asked_now, settings.parity_tokens)
        # Along the reference's answer: what comes after the prompt and after each of its tokens but the last.
        along = [prompt + answer[:-1] for prompt, (answer, _) in zip(asked_now, theirs, strict=True)]
        found = exported.logits(along, [len(answer) for answer, _ in theirs])
        for place, got, (wanted, wide), own in zip(some, ours, theirs, found, strict=True):
            logits.add(own, wide)
            compared[place] = got, wanted, difference(got, wanted, wide)
        step.progress(len(compared), len(prompts), "prompts")
    probes: list[dict[str, Any]] = []
    for place, (prompt, asked) in enumerate(zip(prompts, conversations, strict=True)):
        got, wanted, apart = compared[place]
        _count(tokens, tokenizer, prompt, apart)
        if got == wanted and len(prompt) < room and len(probes) < PROBES and askable(asked.turns):
            text = chat_tokenizer(tokenizer).decode(got)
            probes.append({"messages": asked.turns, "text": text})
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
        "prompts_wanted": settings.parity_prompts,
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


def difference(got: list[int], wanted: list[int], logits: np.ndarray) -> dict[str, Any] | None:
    """Where and how an answer leaves the reference's, whose ``logits`` these are; None where it does not."""
    place = first_difference(got, wanted)
    if place is None:
        return None
    # Past the end of the reference's answer there is nothing to tie with.
    row = logits[min(place, len(logits) - 1)]
    best = [int(token) for token in np.argsort(row)[-2:]]
    gap = float(row[best[1]] - row[best[0]])
    tie = gap <= TIE and place < min(len(got), len(wanted)) and got[place] in best
    return {
        "at_token": place,
        "exported": got,
        "hugging_face": wanted,
        "top_two_gap": gap,
        "excused": tie,
    }


def _count(tokens: Tokens, tokenizer: Any, prompt: list[int], apart: dict[str, Any] | None) -> None:
    if apart is None:
        tokens.equal += 1
        return
    tie = bool(apart["excused"])
    tokens.excused, tokens.different = tokens.excused + tie, tokens.different + (not tie)
    if len(tokens.examples) < EXAMPLES:
        tokens.examples.append({"prompt": tokenizer.decode(prompt), **apart})


def _perplexity(step: Step, reference: Reference, tokenizer: Any, exported: AtWork) -> Perplexity | None:
    """Of the model and of its export on held-out documents; None where curation has none."""
    settings = step.section(schema.Export)
    length = min(int(reference.model.config.max_position_embeddings), settings.perplexity_tokens)
    documents = held_out.texts(step, tokenizer, settings.perplexity_documents, length)
    sums, count, done = [0.0, 0.0], 0, 0
    for some in batches(documents):
        chosen = [documents[place] for place in some]
        for place, model in enumerate((reference, exported)):
            sums[place] -= sum(_likelihoods(model, chosen))
        count += sum(len(ids) - 1 for ids in chosen)
        done += len(some)
        step.progress(done, len(documents), "documents", "perplexity")
    if not count:
        return None
    return Perplexity(float(np.exp(sums[0] / count)), float(np.exp(sums[1] / count)), len(documents))


def _likelihoods(model: AtWork, documents: list[list[int]]) -> Iterator[float]:
    """The log-likelihood of each document of a batch."""
    whole = model.logits(documents, [len(ids) for ids in documents])
    for ids, logits in zip(documents, whole, strict=True):
        yield log_likelihood(logits, ids)


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
