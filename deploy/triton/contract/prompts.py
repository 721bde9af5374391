"""From a request to token ids and sampling, the same for every engine that takes token ids.

Messages are text, whatever they spell (``conversations``, the code that training used, too).  A ``prompt`` is its caller's own
rendering: what spells a control token there is one, as at vLLM and OpenAI, so whoever puts other people's text into it
must take those out of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversations.template import ConversationError
from conversations.tokenizer import ChatTokenizer
from parameters import Parameters, RequestError
from sampling import Sampling, resolve

UNLIMITED = 2**31


@dataclass(frozen=True)
class Limits:
    """What a model can take, read from its folder.

    ``context`` in tokens; ``max_new_tokens`` is the length of an answer that names none;
    ``longest_token`` in characters, so that a text that cannot fit is refused unread.
    """

    context: int
    max_new_tokens: int
    longest_token: int
    defaults: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, max_new_tokens: int, context: int = UNLIMITED) -> Limits:
        """From ``config.json``, ``generation_config.json`` and ``tokenizer.json``; ``context`` is the engine's."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        defaults = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        # A list of (token, score) in Unigram models, a mapping else.
        words = (entry[0] for entry in vocabulary) if isinstance(vocabulary, list) else vocabulary
        return cls(
            context=min(context, int(config.get("max_position_embeddings") or UNLIMITED)),
            max_new_tokens=max_new_tokens,
            longest_token=max(map(len, words)),
            defaults=defaults,
        )


def prepare(tokenizer: ChatTokenizer, limits: Limits, request: Parameters) -> tuple[list[int], Sampling]:
    """The prompt's ids and the sampling.  Raises :class:`RequestError` for what does not fit, or cannot be rendered."""
    try:
        text = rendered(tokenizer, request)
        if len(text) > limits.context * limits.longest_token:
            raise RequestError(
                f"the prompt has {len(text)} characters; the model reads at most {limits.context - 1} tokens"
            )
        ids = tokenizer.spelled(text) if request.prompt is not None else tokenizer.prompt(request.messages)
    except ConversationError as error:
        raise RequestError(str(error)) from None
    sampling = resolve(
        request,
        limits.defaults,
        prompt_tokens=len(ids),
        context=limits.context,
        max_new_tokens=limits.max_new_tokens,
    )
    return ids, sampling


def rendered(tokenizer: ChatTokenizer, request: Parameters) -> str:
    """The prompt as text: the caller's own, or what the chat template makes of the messages."""
    return request.prompt if request.prompt is not None else tokenizer.render(request.messages)
