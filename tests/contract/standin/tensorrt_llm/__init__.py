"""A stand-in for TensorRT-LLM's LLM API: the same names, the same refusals, a Hugging Face model behind them.

It checks every argument against the catalogue of the released package (``pipeline/serving/engines``), as the package
itself does, and answers with the tokens of the checkpoint that it was given.  What it proves is the
*contract* between our engine and the API, and nothing about speed or kernels.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from .engines import TENSORRT_LLM, catalogue, faults

KNOWN = catalogue(TENSORRT_LLM)


def _refuse(section: str, values: dict[str, Any]) -> None:
    for path, why in faults(TENSORRT_LLM, section, values):
        raise ValueError(f"{section} got invalid argument: {path}: {why}")


class SamplingParams:
    def __init__(self, **values: Any) -> None:
        unknown = set(values) - set(KNOWN["classes"]["SamplingParams"])
        if unknown:
            raise TypeError(f"SamplingParams got an unexpected keyword argument {min(unknown)!r}")
        _refuse("SamplingParams", values)
        self.__dict__.update(dict.fromkeys(KNOWN["classes"]["SamplingParams"]) | values)
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError("top_p")


class CompletionOutput:
    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[Any] = []
        self.finish_reason: str | None = None


class RequestOutput:
    """An asynchronous iterator over the answer so far."""

    def __init__(self, prompt: list[int], streaming: bool) -> None:
        self.prompt_token_ids = prompt
        self.outputs = [CompletionOutput()]
        self.streaming = streaming
        self.stopped = False
        self.pieces: queue.Queue[tuple[list[int], list[Any], str | None]] = queue.Queue()

    def abort(self) -> None:
        self.stopped = True

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.outputs[0].finish_reason is not None:
            raise StopAsyncIteration
        while True:
            tokens, logprobs, reason = await asyncio.get_running_loop().run_in_executor(None, self.pieces.get)
            output = self.outputs[0]
            output.token_ids, output.logprobs, output.finish_reason = tokens, logprobs, reason
            if self.streaming or reason is not None:
                return self


class LLM:
    def __init__(
        self,
        model: str,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse("TorchLlmArgs", {"model": model, "tensor_parallel_size": tensor_parallel_size, **kwargs})
        if trust_remote_code:
            raise ValueError("a checkpoint's own code must not run")
        self.adapters = bool(kwargs.get("enable_lora"))
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        **rest: Any,
    ) -> RequestOutput:
        unknown = set(rest) - set(KNOWN["generate_async"])
        if unknown:
            raise TypeError(f"generate_async() got an unexpected keyword argument {min(unknown)!r}")
        if not isinstance(sampling_params, SamplingParams):
            raise TypeError("sampling_params")
        if lora_request is not None and not self.adapters:
            raise ValueError("LoRA is not enabled")
        output = RequestOutput(inputs, streaming)
        threading.Thread(target=self._generate, args=(output, sampling_params), daemon=True).start()
        return output

    def shutdown(self) -> None: ...

    @torch.inference_mode()
    def _generate(self, output: RequestOutput, chosen: SamplingParams) -> None:
        tokens: list[int] = []
        logprobs: list[float] = []
        ends = {chosen.end_id, *(chosen.stop_token_ids or [])}
        greedy = chosen.temperature is None and chosen.top_k is None and chosen.top_p is None
        generator = torch.Generator().manual_seed(0 if chosen.seed is None else chosen.seed)
        ids = torch.tensor([output.prompt_token_ids])
        past = None
        while True:
            found = self._model(ids, past_key_values=past, use_cache=True)
            past, logits = found.past_key_values, found.logits[0, -1]
            logs = torch.log_softmax(logits, -1)
            if len(tokens) < (chosen.min_tokens or 0):
                logits[[end for end in ends if end is not None]] = -torch.inf
            if chosen.top_k:
                logits[logits < logits.topk(chosen.top_k).values[-1]] = -torch.inf
            if greedy:
                token = int(logits.argmax())
            else:
                shares = torch.softmax(logits / (chosen.temperature or 1.0), -1)
                token = int(torch.multinomial(shares, 1, generator=generator))
            tokens.append(token)
            logprobs.append(float(logs[token]))
            reason = None
            if token in ends and not chosen.ignore_eos:
                reason = "stop"
            elif len(tokens) >= chosen.max_tokens:
                reason = "length"
            elif output.stopped:
                reason = "cancelled"
            # What ends an answer by stop_token_ids is taken out of the tokens, and not out of the log-probabilities.
            shown = tokens[:-1] if reason == "stop" and token != chosen.end_id else tokens
            said = (
                [{place: one} for place, one in zip(tokens, logprobs, strict=True)] if chosen.logprobs else []
            )
            output.pieces.put((list(shown), said, reason))
            if reason is not None:
                return
            ids = torch.tensor([[token]])
