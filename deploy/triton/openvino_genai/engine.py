"""Many requests at once through OpenVINO GenAI's continuous batching.

One thread owns the pipeline: it takes new requests in, advances all running ones by one
token (``step``), and hands what was generated to each request's receiver.  Requests come
and go between steps, so a short answer never waits for a long one (Yu et al. 2022, Orca).
https://docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai.html
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import openvino
import openvino_genai as genai
from answers import LENGTH, STOP, Piece, Receiver
from conversations.tokenizer import ChatTokenizer
from parameters import Parameters, RequestError
from pieces import Pieces
from prompts import UNLIMITED, Limits, prepare
from sampling import Sampling

MAX_SEQUENCES = 64  # sequences advanced together; more wait their turn
# Tokens of an answer that come closer together than this are handed over together: their text and their way through Triton
# take longer than a small model's step.  For each request under way it is so much more, so that handing over
# takes a part of the time and no more.  Not where a stop word may end an answer.
PIECE_S, PIECE_OF_EACH_S = 0.004, 0.0015
REASONS = {genai.GenerationFinishReason.LENGTH: LENGTH, genai.GenerationFinishReason.STOP: STOP}


@dataclass
class _Running:
    """``tokens`` and their probabilities have been generated and not handed over; they are ``due`` then."""

    handle: Any
    receiver: Receiver
    pieces: Pieces
    tokens: list[int] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    due: float = 0.0


@dataclass
class _Waiting:
    ids: list[int]
    sampling: Sampling
    receiver: Receiver


class Engine:
    """A loaded model; :meth:`submit` from any thread.

    ``folder`` holds the OpenVINO IR with its tokenizer, ``kv_cache_gb`` bounds the
    key-value cache (it grows on demand), ``threads`` the inference threads, ``context`` the tokens of a prompt and
    its answer, where that is less than the model's own.  Arithmetic
    and cache are fp32 whatever the processor prefers, so that tokens are those of the
    Hugging Face model.
    """

    def __init__(
        self, folder: Path, *, kv_cache_gb: int, threads: int, max_new_tokens: int, context: int = UNLIMITED
    ) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = kv_cache_gb
        scheduler.max_num_seqs = MAX_SEQUENCES
        # A block kept from an earlier request would change the batch that a prompt is
        # computed in; without it an answer depends on its request only.
        scheduler.enable_prefix_caching = False
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties(threads))
        # OpenVINO's own tokenizer makes control tokens of what messages spell, and cleans up what it decodes.
        self.tokenizer = ChatTokenizer.of_folder(folder)
        self.limits = Limits.read(folder, max_new_tokens, context)
        self._waiting: list[_Waiting] = []
        self._running: list[_Running] = []
        self._count = 0
        self._closed = ""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="continuous-batching", daemon=True)
        self._thread.start()

    def submit(self, request: Parameters, receiver: Receiver) -> None:
        """Queue a request.  Raises :class:`RequestError` when it cannot be served."""
        if request.lora is not None:
            raise RequestError(
                f"lora is {request.lora!r}; this server has no adapters to choose from: an adapter that was "
                f"merged is a model of its own name"
            )
        ids, sampling = prepare(self.tokenizer, self.limits, request)
        if receiver(Piece(prompt_tokens=len(ids))):
            self.submit_tokens(ids, sampling, receiver)

    def submit_tokens(self, ids: list[int], sampling: Sampling, receiver: Receiver) -> None:
        """Queue a prompt as token ids."""
        with self._changed:
            if self._closed:
                raise RequestError(self._closed)
            self._waiting.append(_Waiting(ids, sampling, receiver))
            self._changed.notify()

    def close(self) -> None:
        """Stop the thread; requests still running are told so."""
        with self._changed:
            self._closed = "the server is shutting down"
            self._changed.notify()
        self._thread.join()

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
            receivers += [waiting.receiver for waiting in self._waiting]
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
        for each in arrived:
            self._count += 1
            ids = openvino.Tensor(numpy.array([each.ids], dtype=numpy.int64))
            try:
                handle = self._pipeline.add_request(self._count, ids, configured(each.sampling))
            except RuntimeError as error:  # one request's fault, not the pipeline's
                each.receiver(Piece(error=str(error)))
                continue
            pieces = Pieces(self.tokenizer, each.sampling, len(each.ids))
            self._running.append(_Running(handle, each.receiver, pieces))
        return True

    def _deliver(self, running: _Running) -> bool:
        """Hand over what one request generated; False when it is finished."""
        reason = genai.GenerationFinishReason.NONE
        while running.handle.can_read():
            for output in running.handle.read().values():
                running.tokens += output.generated_ids
                running.token_logprobs += output.generated_log_probs
                reason = output.finish_reason
        finished = running.handle.get_status() != genai.GenerationStatus.RUNNING
        now = time.monotonic()
        if not finished and now < running.due:
            return True
        tokens, logprobs = running.tokens, running.token_logprobs
        running.tokens, running.token_logprobs = [], []
        if tokens and not running.pieces.one_by_one:
            running.due = now + max(PIECE_S, PIECE_OF_EACH_S * len(self._running))
        piece = running.pieces.add(tokens, logprobs, reason=REASONS.get(reason, ""))
        if finished and not piece.last:
            piece.error = "the request does not fit into the key-value cache (export.kv_cache_gb)"
        wanted = running.receiver(piece)
        if piece.last or not wanted:
            if not finished:
                running.handle.cancel()
            return False
        return True


def properties(threads: int) -> dict[str, Any]:
    """OpenVINO's settings: fp32 all the way, so that tokens are those of the Hugging Face model."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # with 4- and 8-bit weights it would round inputs, too
        "INFERENCE_NUM_THREADS": threads,
        # Two servers on one machine, the old and the new version, would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def configured(sampling: Sampling) -> Any:
    """OpenVINO GenAI's settings of one request; nothing is left to defaults of its own."""
    settings = genai.GenerationConfig()
    settings.max_new_tokens = sampling.max_tokens
    settings.min_new_tokens = sampling.min_tokens
    settings.do_sample = not sampling.greedy
    if not sampling.greedy:
        settings.temperature = sampling.temperature
        settings.top_p = sampling.top_p
        if sampling.top_k:
            settings.top_k = sampling.top_k
    settings.repetition_penalty = sampling.repetition_penalty
    settings.presence_penalty = sampling.presence_penalty
    settings.frequency_penalty = sampling.frequency_penalty
    if sampling.seed is not None:
        settings.rng_seed = sampling.seed
    settings.logprobs = int(sampling.logprobs)
    settings.ignore_eos = sampling.ignore_end
    if sampling.end_tokens:
        settings.eos_token_id = sampling.end_tokens[0]
        settings.stop_token_ids = set(sampling.end_tokens)
    settings.validate()
    return settings
