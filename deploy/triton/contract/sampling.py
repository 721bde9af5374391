"""How the next token is chosen: a request's wishes over the model's own defaults.

Decided here once, so that a request means the same on every engine.  ``defaults`` is the content of
``generation_config.json``; what it does not name is off.  Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from parameters import Parameters, RequestError

# Below these the likeliest token is all that is left: a difference of 0.001 in the logits is a factor of e**100 at this
# temperature, and no token of a vocabulary of a million is likeliest with less.  32-bit arithmetic overflows further down.
COLDEST = 1e-5
NARROWEST = 1e-6


@dataclass(frozen=True)
class Sampling:
    """Every choice made.  ``top_k`` 0: all tokens; ``seed`` None: the engine's own."""

    max_tokens: int
    min_tokens: int = 0
    greedy: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    ignore_end: bool = False
    logprobs: bool = False
    end_tokens: tuple[int, ...] = ()
    stop_words: tuple[str, ...] = field(default=())


def resolve(
    request: Parameters, defaults: dict[str, Any], *, prompt_tokens: int, context: int, max_new_tokens: int
) -> Sampling:
    """``max_new_tokens`` is the length of an answer that names none, ``context`` the model's, both in tokens.

    A temperature or top_p of next to nothing is greedy; else any of temperature, top_p and top_k asks for sampling.
    Raises :class:`RequestError` for what does not fit into the context.
    """
    room = context - prompt_tokens
    if room < 1:
        raise RequestError(f"the prompt has {prompt_tokens} tokens; the model reads at most {context - 1}")
    if request.max_tokens is not None and request.max_tokens > room:
        raise RequestError(
            f"max_tokens is {request.max_tokens}; after a prompt of {prompt_tokens} tokens "
            f"the model's context of {context} leaves {room}"
        )
    length = min(request.max_tokens or max_new_tokens, room)
    if request.min_tokens is not None and request.min_tokens > length:
        raise RequestError(f"min_tokens is {request.min_tokens}, more than the {length} that there may be")
    asked = (request.temperature, request.top_p, request.top_k)
    temperature = float(_first(request.temperature, defaults.get("temperature"), 1.0))
    top_p = float(_first(request.top_p, defaults.get("top_p"), 1.0))
    samples = any(value is not None for value in asked) or bool(defaults.get("do_sample", False))
    greedy = not samples or temperature < COLDEST or top_p < NARROWEST
    ends = defaults.get("eos_token_id")
    return Sampling(
        max_tokens=length,
        min_tokens=request.min_tokens or 0,
        greedy=greedy,
        temperature=1.0 if greedy else temperature,
        top_p=1.0 if greedy else top_p,
        top_k=0 if greedy else int(_first(request.top_k, defaults.get("top_k"), 0)),
        repetition_penalty=float(_first(request.repetition_penalty, defaults.get("repetition_penalty"), 1.0)),
        presence_penalty=float(_first(request.presence_penalty, 0.0)),
        frequency_penalty=float(_first(request.frequency_penalty, 0.0)),
        seed=request.seed,
        ignore_end=bool(request.ignore_end),
        logprobs=request.logprobs,
        end_tokens=tuple(ends if isinstance(ends, list) else [] if ends is None else [ends]),
        stop_words=tuple(request.stop_words),
    )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
