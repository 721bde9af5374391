"""Many requests at once through Triton's vLLM backend, which is a model of its own beside this one.

Batching, paging, parallelism and adapters are vLLM's; here is the way from a request of the contract to that model's
inputs, and from its answers to pieces.  https://github.com/triton-inference-server/vllm_backend
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from answers import LENGTH, STOP, Piece, Receiver, TokenLogprob
from beside import Answering
from conversations.tokenizer import ChatTokenizer
from neighbour import ask
from parameters import Parameters, RequestError
from prompts import Limits, prepare, rendered
from sampling import Sampling
from text_stream import Certain, portions

REASONS = {"stop": STOP, "length": LENGTH}
ASKED = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
EXAMPLE = [{"role": "user", "content": "What is this?"}]


class Engine:
    """``backend`` is the name of vLLM's model, ``checkpoint`` its Hugging Face folder.

    ``adapters`` are the names that a request may choose, ``most`` how many requests are answered at once.
    """

    def __init__(
        self,
        backend: str,
        checkpoint: Path,
        adapters: list[str],
        *,
        max_new_tokens: int,
        context: int,
        most: int,
    ) -> None:
        self.tokenizer = ChatTokenizer.of_folder(checkpoint)
        self.limits = Limits.read(checkpoint, max_new_tokens, context)
        self._backend, self._adapters = backend, adapters
        self._answering = Answering(most)
        self._text(Parameters(EXAMPLE), self.tokenizer.prompt(EXAMPLE))  # it says so now where that fails

    def submit(self, request: Parameters, receiver: Receiver) -> None:
        """Queue a request.  Raises :class:`RequestError` when it cannot be served."""
        if request.lora is not None and request.lora not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise RequestError(f"lora is {request.lora!r}; the adapters here are: {known}")
        ids, sampling = prepare(self.tokenizer, self.limits, request)
        inputs = asked(self._text(request, ids), sampling, request.lora)
        if receiver(Piece(prompt_tokens=len(ids))):
            self._answering.start(receiver, self._answer, inputs, sampling)

    def close(self) -> None:
        """Stop taking requests; those under way are answered."""
        self._answering.close()

    def _text(self, request: Parameters, ids: list[int]) -> str:
        """The text that vLLM, which tokenises and adds special tokens by itself, reads as exactly these ids.

        A chat template writes the token that begins a text, and so does a tokenizer that is asked to: one of them is
        too many.  In the history, an answer that begins with white space may be read together with the white space before it.
        Raises :class:`RequestError` where no such text is found.
        """
        text, begin = rendered(self.tokenizer, request), self.tokenizer.named.get("bos_token", "")
        wanted = [ids] if request.prompt is not None else [ids, self.tokenizer.joined(request.messages)]
        for each in (text, text.removeprefix(begin)):
            if self.tokenizer.read(each) in wanted:
                return each
        spelled = {word for turn in request.messages for word in self.tokenizer.spelled_in(turn["content"])}
        if spelled:
            raise RequestError(
                f"this server's engine reads text by itself, and would take {', '.join(sorted(spelled))} in a message for "
                "a control token: leave it out"
            )
        raise RequestError(
            f"this server adds special tokens to a text: one must begin with {begin!r}, as the chat template's does"
        )

    def _answer(self, inputs: dict[str, Any], sampling: Sampling, receiver: Receiver) -> None:
        text, told = Certain(list(sampling.stop_words)), 0
        held: list[TokenLogprob] = []
        try:
            for outputs in ask(self._backend, inputs):
                reason = str(outputs["finish_reason"])
                fresh = chosen(json.loads(outputs["logprobs"])) if "logprobs" in outputs else []
                count = int(outputs["num_output_tokens"])
                if (
                    reason == "stop" and count
                ):  # vLLM counts the token that ends an answer, and shows none of it
                    count, fresh = count - 1, fresh[:-1]
                held += fresh
                for part, tokens in portions(outputs["text_output"], count, [each.token for each in fresh]):
                    text.add(part, tokens)
                shown = text.release(final=reason in REASONS)
                told += shown.tokens
                piece = Piece(
                    text=shown.text,
                    prompt_tokens=int(outputs["num_input_tokens"]),
                    completion_tokens=told,
                    finish_reason=STOP if text.stopped else REASONS.get(reason, ""),
                )
                now, held = held[: shown.tokens], held[shown.tokens :]
                if sampling.logprobs:
                    piece.logprobs = now
                if reason not in ("None", *REASONS):
                    piece.error = f"generation ended: {reason}"
                if not receiver(piece) or piece.last:
                    return
            receiver(Piece(error="the engine ended the answer without a reason"))
        except Exception as error:  # whatever it is, its client must hear of it
            receiver(Piece(error=f"the model failed: {error}"))


def asked(prompt: str, sampling: Sampling, lora: str | None) -> dict[str, Any]:
    """The inputs of vLLM's model; nothing of the sampling is left to defaults of its own.

    Stop words are kept from it: it would count their tokens.  To know which those are, the tokens' texts are asked for.
    """
    by_token = sampling.logprobs or bool(sampling.stop_words)
    values: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": sampling.ignore_end,
        # vLLM stops at these even where it is to ignore the tokenizer's own.
        "stop_token_ids": [] if sampling.ignore_end else list(sampling.end_tokens),
    }
    if sampling.seed is not None:
        values["seed"] = sampling.seed
    if by_token:
        values["logprobs"] = 0
    if lora is not None:
        values["lora_name"] = lora
    flags = dict.fromkeys(ASKED, True) | {"stream": True, "exclude_input_in_output": True}
    if by_token:
        flags["return_logprobs"] = True
    return {"text_input": prompt, "sampling_parameters": json.dumps(values, allow_nan=False), **flags}


def chosen(said: list[dict[str, Any]] | None) -> list[TokenLogprob]:
    """The chosen token of each position: vLLM puts it first among the candidates."""
    found = []
    for candidates in said or []:
        entry = next(iter(candidates.values()))
        found.append(TokenLogprob(entry["decoded_token"] or "", float(entry["logprob"])))
    return found
