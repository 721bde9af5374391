"""What a request may say, and what the model is asked for then.

Every field of OpenAI's API has one of three fates:

- it is served;
- it is accepted and left alone, because it cannot change the answer (``user``, ``metadata``, ``store`` ...);
- only the value that means "nothing of the kind" is taken, and everything else is refused with the reason in
  ``REFUSED``, because an answer that left it out would be a wrong one (``tools``, ``logit_bias`` ...).

A field that is none of OpenAI's, nor one of vLLM's that are served here (``top_k``, ``min_tokens``,
``repetition_penalty``, ``ignore_eos``), is refused, as OpenAI does and as the models' own contract does: a
misspelt ``temprature`` would be answered at another temperature, and nobody would know.

``None`` means: as the model's generation defaults say, for ``temperature``, ``top_p``, ``top_k``,
``repetition_penalty`` and the length of a chat's answer.  (OpenAI's own defaults, 1 and 1, are no better
for a model that was made with others.)  A completion has 16 tokens unless it says otherwise, as at OpenAI.
Bounds are those of the contract, ``deploy/triton/contract/parameters.py``, where it is the wider one.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from pipeline import strict_json
from pipeline.gateway.asks import Ask
from pipeline.gateway.errors import invalid

MOST_CHOICES = 16  # of one request: its prompts times n; each is a request to the model
MOST_STOP_WORDS = 16
SEEDS = 2**32
LARGEST = 2**31 - 1  # of a number of tokens: the model's inputs are 32 bits wide
SMALLEST = 1e-6  # of what must be more than 0, in 32 bits too
COMPLETION_TOKENS = 16
MOST_FIELDS = 100  # of one object: far more than there are

NO_TOOLS = "the models are not given tools and cannot call them"
TEXT_ONLY = "the models write text and nothing else"
# Why a value of these fields is refused, by the field's name.
REFUSED = {
    "audio": TEXT_ONLY,
    "best_of": "there is no choosing among answers; leave it out, or give the value of n",
    "echo": "the prompt is not repeated in the answer",
    "function_call": NO_TOOLS,
    "functions": NO_TOOLS,
    "logprobs": "the engines tell the probability of the chosen token alone",
    "logit_bias": "the engines take no bias of single tokens",
    "modalities": TEXT_ONLY,
    "moderation": "answers are not moderated",
    "name": "the models know roles and no names; write the name into the content",
    "reasoning_effort": "the models do not reason before they answer",
    "response_format": "answers are not held to a format; ask for it in words",
    "suffix": "the models write on at the end of a text, not in its middle",
    "tool_calls": NO_TOOLS,
    "tool_choice": NO_TOOLS,
    "tools": NO_TOOLS,
    "top_logprobs": "the engines tell the probability of the chosen token alone",
    "verbosity": "the models know no such measure; ask for it in words",
    "web_search_options": NO_TOOLS,
}


def _unicode(text: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not Unicode text: it holds half of a surrogate pair") from None
    return text


def _integer(value: Any) -> Any:
    """1.0 is an integer in JSON schema, and what some languages write for 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Nothing = Annotated[list[Any], Field(max_length=0)] | None
Text = Annotated[str, AfterValidator(_unicode)]
Words = Annotated[Text, Field(min_length=1)]
Whole = BeforeValidator(_integer)  # behind the bounds, which it would keep out of the description
Penalty = Annotated[float, Field(ge=-2, le=2)] | None


class _Strict(BaseModel):
    """JSON types as they are written: no "1" for 1, and no unknown field.

    A body of a megabyte can hold half a million mistakes, and noting them all would hold up everyone's answers
    for seconds: lists are read to the first one (``fail_fast``), and so are objects of many fields.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, found: Any) -> Any:
        if isinstance(found, dict) and len(found) > MOST_FIELDS:
            raise ValueError(f"there are {len(found)} fields; there may be {len(cls.model_fields)}")
        return found


class StreamOptions(_Strict):
    """``include_usage``: one more chunk with the token counts.  Chunks are never padded (obfuscation)."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextPart(_Strict):
    """A part of a message.  Parts are put together as they are, nothing between them."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """A turn of the conversation; what else OpenAI's messages have may be null."""

    role: Literal["developer", "system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: None = None
    refusal: None = None
    annotations: Nothing = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing = None

    def plain(self) -> dict[str, str]:
        """As the contract's ``messages`` have it: ``developer`` is today's word for ``system``."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class TextFormat(_Strict):
    """The only format there is."""

    type: Literal["text"]


class _Request(_Strict):
    """What both kinds of request have."""

    model: Text
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), Whole] | None = None
    stop: Words | Annotated[list[Words], Field(max_length=MOST_STOP_WORDS, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=SMALLEST, le=1)] | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    seed: Annotated[int, Field(ge=0, lt=SEEDS), Whole] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST), Whole] | None = None
    # vLLM's
    top_k: Annotated[int, Field(ge=1, le=LARGEST), Whole] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST), Whole] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    # It cannot change the answer.
    user: str | None = None
    # Refused
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @property
    def choices(self) -> int:
        """Choices of one prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def _check(self) -> None:
        """Raise :class:`GatewayError` for fields that do not go together."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is for answers that are streamed; set stream", "stream_options")

    def _check_alternatives(self, param: str) -> None:
        """The likeliest token is known where it must be the chosen one, and nowhere else.

        A model's own defaults may hold a repetition penalty, so its absence has to be asked for.
        """
        penalised = self.presence_penalty or self.frequency_penalty or self.min_tokens
        if self.temperature != 0 or self.repetition_penalty != 1 or penalised:
            raise invalid(
                f"{param} is 1: the likeliest token is known only where it is the chosen one. "
                "Set temperature to 0 and repetition_penalty to 1 and leave other penalties and min_tokens out, "
                f"or set {param} to 0",
                param,
                "unsupported_value",
            )

    def _asks(self, prompts: list[dict[str, Any]], answer_id: str, api: str, **others: Any) -> list[Ask]:
        """For every prompt ``n`` requests to the model, alike but for their seeds.

        Without a seed several choices get a random one: an engine's own may be the same for each request.
        """
        names = (
            "temperature", "top_p", "top_k", "min_tokens", "repetition_penalty", "presence_penalty",
            "frequency_penalty",
        )  # fmt: skip
        common = {name: getattr(self, name) for name in names} | others
        common = {name: value for name, value in common.items() if value is not None}
        if self.ignore_eos:
            common["ignore_end"] = True
        if self.stop:
            common["stop_words"] = [self.stop] if isinstance(self.stop, str) else self.stop
        seed = secrets.randbelow(SEEDS) if self.seed is None and self.choices > 1 else self.seed
        weight = 1 if len(prompts) * self.choices == 1 else 0
        asks: list[Ask] = []
        for prompt in prompts:
            for choice in range(self.choices):
                inputs = {**prompt, **common, "request_id": f"{answer_id}-{len(asks)}"}
                if seed is not None:
                    inputs["seed"] = (seed + choice) % SEEDS
                asks.append(Ask(self.model, inputs, api, weight))
        return asks


class ChatRequest(_Request):
    """The body of POST /v1/chat/completions.

    ``max_completion_tokens`` is the newer name of ``max_tokens``, and counts where both are given.
    """

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=LARGEST), Whole] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=1), Whole] | None = None
    # They cannot change the answer.
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    # Refused
    audio: None = None
    function_call: Literal["none", "auto"] | None = None
    functions: Nothing = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    moderation: None = None
    reasoning_effort: Literal["none"] | None = None
    response_format: TextFormat | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Nothing = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None

    def asks(self, answer_id: str, most: int | None = None) -> list[Ask]:
        """The model's requests, one a choice.  Raises :class:`GatewayError` for what does not go together.

        ``most``: tokens of an answer.  The model's own default is not longer (``pipeline/checks.py``).
        """
        self._check()
        if self.messages[-1].role != "user":
            raise invalid("the last of messages must be the user's", "messages")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
        if self.top_logprobs:
            self._check_alternatives("top_logprobs")
        messages = strict_json.dumps([message.plain() for message in self.messages], ensure_ascii=False)
        return self._asks(
            [{"messages": messages}],
            answer_id,
            "chat",
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=self.logprobs or None,
        )


class CompletionRequest(_Request):
    """The body of POST /v1/completions.

    ``prompt``: text that goes to the model as it is, or several.  Token ids are not taken: the models' contract
    is text.  ``logprobs``: 0 for the chosen tokens', 1 for the likeliest ones' besides.
    """

    prompt: Words | Annotated[list[Words], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)]
    logprobs: Annotated[int, Field(ge=0, le=1), Whole] | None = None
    # Refused
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES), Whole] | None = None
    echo: Literal[False] | None = None
    suffix: None = None

    def asks(self, answer_id: str, most: int | None = None) -> list[Ask]:
        """As for a chat, with no more than ``most`` tokens where the request does not say how many."""
        self._check()
        if self.best_of not in (None, self.choices):
            raise invalid(f"best_of: {REFUSED['best_of']}", "best_of", "unsupported_value")
        if self.logprobs:
            self._check_alternatives("logprobs")
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) * self.choices > MOST_CHOICES:
            raise invalid(f"prompts times n is more than {MOST_CHOICES}; send several requests", "n")
        return self._asks(
            [{"prompt": prompt} for prompt in prompts],
            answer_id,
            "completions",
            max_tokens=self.max_tokens or min(COMPLETION_TOKENS, most or COMPLETION_TOKENS),
            logprobs=True if self.logprobs is not None else None,
        )
