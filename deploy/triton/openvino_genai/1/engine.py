"""Many requests at once through OpenVINO GenAI's continuous batching.

One thread owns the pipeline: it takes new requests in, advances all running ones by one
token (``step``), and hands what was generated to each request's receiver.  Requests come
and go between steps, so a short answer never waits for a long one (Yu et al. 2022, Orca).
https://docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai.html
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import openvino
import openvino_genai as genai
from parameters import Parameters, RequestError
from text_stream import TextStream

MAX_SEQUENCES = 64  # sequences advanced together; more wait their turn
UNLIMITED = 2**31


@dataclass
class Piece:
    """A part of an answer.  ``finish_reason`` (stop, length) is set on the last one."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""

    @property
    def last(self) -> bool:
        return bool(self.finish_reason or self.error)


# Takes a piece; returns False when nobody wants the rest of the answer.
Receiver = Callable[[Piece], bool]


@dataclass
class _Running:
    handle: Any
    receiver: Receiver
    text: TextStream
    prompt_tokens: int
    completion_tokens: int = 0


class Engine:
    """A loaded model; :meth:`submit` from any thread.

    ``folder`` holds the OpenVINO IR with its tokenizer, ``kv_cache_gb`` bounds the
    key-value cache (it grows on demand), ``threads`` the inference threads.  Arithmetic
    and cache are fp32 whatever the processor prefers, so that tokens are those of the
    Hugging Face model.
    """

    def __init__(self, folder: Path, *, kv_cache_gb: int, threads: int, max_new_tokens: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = kv_cache_gb
        scheduler.max_num_seqs = MAX_SEQUENCES
        # A block kept from an earlier request would change the batch that a prompt is
        # computed in; without it an answer depends on its request only.
        scheduler.enable_prefix_caching = False
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        self.tokenizer = self._pipeline.get_tokenizer()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._context = int(config.get("max_position_embeddings") or UNLIMITED)
        self._max_new_tokens = max_new_tokens
        self._waiting: list[tuple[Any, Any, Receiver, TextStream, int]] = []
        self._running: list[_Running] = []
        self._count = 0
        self._closed = ""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="continuous-batching", daemon=True)
        self._thread.start()

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation as the prompt text of the model's chat template."""
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def encode(self, text: str) -> list[int]:
        """The token ids of a rendered prompt."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False).input_ids.data
        return [int(token) for token in encoded[0]]

    def submit(self, request: Parameters, receiver: Receiver) -> None:
        """Queue a request.  Raises :class:`RequestError` when it cannot be served."""
        prompt = self.encode(self.render(request.messages))
        room = self._context - len(prompt)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; the model reads at most {self._context - 1}"
            )
        if request.max_tokens is not None and request.max_tokens > room:
            raise RequestError(
                f"max_tokens is {request.max_tokens}; after a prompt of {len(prompt)} tokens "
                f"the model's context of {self._context} leaves {room}"
            )
        settings = self._settings(request, min(request.max_tokens or self._max_new_tokens, room))
        self.submit_tokens(prompt, settings, receiver, request.stop_words)

    def submit_tokens(
        self, prompt: list[int], settings: Any, receiver: Receiver, stop_words: list[str] | None = None
    ) -> None:
        """Queue token ids with OpenVINO GenAI's own ``GenerationConfig``."""
        ids = openvino.Tensor(numpy.array([prompt], dtype=numpy.int64))
        text = TextStream(self.tokenizer.decode, stop_words or [])
        with self._changed:
            if self._closed:
                raise RequestError(self._closed)
            self._waiting.append((ids, settings, receiver, text, len(prompt)))
            self._changed.notify()

    def greedy(self, max_tokens: int) -> Any:
        """Settings of plain greedy decoding, none of the generation defaults applied."""
        defaults = self._pipeline.get_config()
        settings = genai.GenerationConfig()
        settings.max_new_tokens = max_tokens
        settings.eos_token_id = defaults.eos_token_id
        settings.stop_token_ids = defaults.stop_token_ids
        settings.do_sample = False
        return settings

    def close(self) -> None:
        """Stop the thread; requests still running are told so."""
        with self._changed:
            self._closed = "the server is shutting down"
            self._changed.notify()
        self._thread.join()

    def _settings(self, request: Parameters, max_tokens: int) -> Any:
        settings = self._pipeline.get_config()
        settings.max_new_tokens = max_tokens
        if request.temperature == 0:
            settings.do_sample = False
        elif request.temperature is not None or request.top_p is not None or request.top_k is not None:
            settings.do_sample = True
            settings.temperature = 1.0 if request.temperature is None else request.temperature
        if settings.do_sample:
            if request.top_p is not None:
                settings.top_p = request.top_p
            if request.top_k is not None:
                settings.top_k = request.top_k
        if request.repetition_penalty is not None:
            settings.repetition_penalty = request.repetition_penalty
        if request.seed is not None:
            settings.rng_seed = request.seed
        settings.validate()
        return settings

    # -- the thread that owns the pipeline -----------------------------------------------

    def _work(self) -> None:
        try:
            while self._admit():
                self._pipeline.step()
                self._running = [running for running in self._running if self._deliver(running)]
        except Exception as error:
            # The pipeline's state is unknown now: answer everyone, and every later request.
            with self._changed:
                self._closed = f"the model failed: {error}"
        with self._changed:
            receivers = [running.receiver for running in self._running]
            receivers += [receiver for _, _, receiver, _, _ in self._waiting]
            for running in self._running:
                running.handle.cancel()
            self._running, self._waiting = [], []
        for receiver in receivers:
            receiver(Piece(error=self._closed))

    def _admit(self) -> bool:
        """Take new requests in, waiting for one when idle; False when it is time to end."""
        with self._changed:
            while not (self._waiting or self._running or self._closed):
                self._changed.wait()
            if self._closed:
                return False
            arrived, self._waiting = self._waiting, []
        for ids, settings, receiver, text, prompt_tokens in arrived:
            self._count += 1
            try:
                handle = self._pipeline.add_request(self._count, ids, settings)
            except RuntimeError as error:  # one request's fault, not the pipeline's
                receiver(Piece(error=str(error)))
                continue
            self._running.append(_Running(handle, receiver, text, prompt_tokens))
        return True

    def _deliver(self, running: _Running) -> bool:
        """Hand over what one request generated; False when it is finished."""
        tokens: list[int] = []
        reason = genai.GenerationFinishReason.NONE
        while running.handle.can_read():
            for output in running.handle.read().values():
                tokens += list(output.generated_ids)
                reason = output.finish_reason
        running.completion_tokens += len(tokens)
        piece = Piece("", tokens, "", running.prompt_tokens, running.completion_tokens)
        piece.text = running.text.add(tokens) if tokens else ""
        finished = running.handle.get_status() != genai.GenerationStatus.RUNNING
        if finished and not running.text.stopped:
            piece.text += running.text.finish()
        if running.text.stopped:
            piece.finish_reason = "stop"
        elif reason == genai.GenerationFinishReason.LENGTH:
            piece.finish_reason = "length"
        elif reason == genai.GenerationFinishReason.STOP:
            piece.finish_reason = "stop"
        elif finished:
            piece.error = "the request does not fit into the key-value cache (export.kv_cache_gb)"
        wanted = running.receiver(piece)
        if piece.last or not wanted:
            if not finished:
                running.handle.cancel()
            return False
        return True
