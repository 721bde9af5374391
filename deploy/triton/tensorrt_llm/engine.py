"""Many requests at once through TensorRT-LLM's LLM API.

Batching, paging, parallelism and cancelling are TensorRT-LLM's; here are its event loop in a thread of its own, and
the way from a request to its arguments and from its tokens to text.
https://nvidia.github.io/TensorRT-LLM/llm-api/
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from answers import CANCELLED, LENGTH, STOP, Piece, Receiver, told
from conversations.tokenizer import ChatTokenizer
from parameters import Parameters, RequestError
from pieces import Pieces
from prompts import Limits, prepare
from sampling import Sampling
from tensorrt_llm import LLM, SamplingParams
from tensorrt_llm.executor import LoRARequest

REASONS = {"stop": STOP, "length": LENGTH, "cancelled": CANCELLED}


class Engine:
    """A loaded model; :meth:`submit` from any thread.

    ``checkpoint`` is the Hugging Face folder, ``arguments`` those of ``LLM()`` besides, ``adapters`` the
    folders of LoRA adapters by the name that a request gives.
    """

    def __init__(
        self,
        checkpoint: Path,
        arguments: dict[str, Any],
        adapters: dict[str, Path],
        *,
        max_new_tokens: int,
        context: int,
    ) -> None:
        self.tokenizer = ChatTokenizer.of_folder(checkpoint)
        self.limits = Limits.read(checkpoint, max_new_tokens, context)
        self._adapters = {
            name: LoRARequest(name, number, str(folder))
            for number, (name, folder) in enumerate(sorted(adapters.items()), start=1)
        }
        self._llm = LLM(model=str(checkpoint), **arguments)
        self._closed, self._lock = "", threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm-api", daemon=True)
        self._thread.start()

    def submit(self, request: Parameters, receiver: Receiver) -> None:
        """Queue a request.  Raises :class:`RequestError` when it cannot be served."""
        adapter = None
        if request.lora is not None:
            if request.lora not in self._adapters:
                known = ", ".join(self._adapters) or "none"
                raise RequestError(f"lora is {request.lora!r}; the adapters here are: {known}")
            adapter = self._adapters[request.lora]
        ids, sampling = prepare(self.tokenizer, self.limits, request)
        with self._lock:
            if self._closed:
                raise RequestError(self._closed)
            if not receiver(Piece(prompt_tokens=len(ids))):
                return
            work = self._answer(ids, sampling, adapter, receiver)
            answer = asyncio.run_coroutine_threadsafe(work, self._loop)
        answer.add_done_callback(told(receiver, lambda: self._closed))

    def close(self) -> None:
        """Stop; requests still running are told so."""
        with self._lock:
            self._closed = "the server is shutting down"
        tasks = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        tasks.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._llm.shutdown()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _answer(self, ids: list[int], sampling: Sampling, adapter: Any, receiver: Receiver) -> None:
        pieces = Pieces(self.tokenizer, sampling, len(ids))
        taken = 0
        output = None
        try:
            output = self._llm.generate_async(
                ids, sampling_params=configured(sampling), lora_request=adapter, streaming=True
            )
            async for result in output:
                answer = result.outputs[0]
                tokens = list(answer.token_ids)
                fresh, logprobs = tokens[taken:], list(answer.logprobs or [])[taken:]
                taken = len(tokens)
                # A token that ended the answer may be gone from the tokens and not from their probabilities.
                known = [chosen(logprob, token) for token, logprob in zip(fresh, logprobs, strict=False)]
                reason = REASONS.get(answer.finish_reason or "", "")
                piece = pieces.add(fresh, known, reason=reason)
                if answer.finish_reason is not None and not piece.last:
                    piece.error = f"generation ended: {answer.finish_reason}"
                if not receiver(piece) or piece.last:
                    if answer.finish_reason is None:
                        output.abort()
                    return
            receiver(Piece(error="the engine ended the answer without a reason"))
        except asyncio.CancelledError:
            if output is not None:
                output.abort()
            receiver(Piece(error=self._closed))
        except Exception as error:  # whatever it is, its client must hear of it
            if output is not None:
                output.abort()
            receiver(Piece(error=f"the model failed: {error}"))


def chosen(logprob: Any, token: int) -> float:
    """The chosen token's log-probability, given as a number or as a mapping of candidates."""
    if isinstance(logprob, dict):
        entry = logprob.get(token) or next(iter(logprob.values()))
        return float(getattr(entry, "logprob", entry))
    return float(logprob)


def configured(sampling: Sampling) -> Any:
    """TensorRT-LLM's settings of one request; nothing is left to defaults of its own."""
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens or None,
        # Greedy is what it does when none of the three is given.
        temperature=None if sampling.greedy else sampling.temperature,
        top_p=None if sampling.greedy else sampling.top_p,
        top_k=None if sampling.greedy else sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        ignore_eos=sampling.ignore_end,
        end_id=sampling.end_tokens[0] if sampling.end_tokens else None,
        stop_token_ids=list(sampling.end_tokens[1:]) or None,
        logprobs=1 if sampling.logprobs else None,  # 0 is none
        detokenize=False,
        exclude_input_from_output=True,
    )
