"""Many requests at once through Triton's TensorRT-LLM backend, which is a model of its own beside this one.

For sites that pin TensorRT-LLM <= 1.2: the backend runs engines that ``trtllm-build`` made, and was removed upstream in
July 2026.  It takes token ids and gives token ids; names and shapes are those of its ``config.pbtxt`` in release 1.x.
https://github.com/triton-inference-server/tensorrtllm_backend/blob/v1.0.0/docs/model_config.md
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy
from answers import LENGTH, STOP, Piece, Receiver
from beside import Answering, array, ask
from conversations.tokenizer import ChatTokenizer
from parameters import Parameters, RequestError
from pieces import Pieces
from prompts import Limits, prepare
from sampling import Sampling

NEVER = -1  # an end token that no vocabulary has


class Engine:
    """``backend`` is the name of the backend's model, ``tokenizer`` the Hugging Face folder.

    ``most`` is how many requests are answered at once.
    """

    def __init__(
        self, backend: str, tokenizer: Path, *, max_new_tokens: int, context: int, most: int
    ) -> None:
        self.tokenizer = ChatTokenizer.of_folder(tokenizer)
        self.limits = Limits.read(tokenizer, max_new_tokens, context)
        self._backend = backend
        self._answering = Answering(most)

    def submit(self, request: Parameters, receiver: Receiver) -> None:
        """Queue a request.  Raises :class:`RequestError` when it cannot be served."""
        if request.lora is not None:
            raise RequestError(f"lora is {request.lora!r}; this server has no adapters to choose from")
        ids, sampling = prepare(self.tokenizer, self.limits, request)
        if receiver(Piece(prompt_tokens=len(ids))):
            self._answering.start(receiver, self._answer, ids, sampling)

    def close(self) -> None:
        """Stop taking requests; those under way are answered."""
        self._answering.close()

    def _answer(self, ids: list[int], sampling: Sampling, receiver: Receiver) -> None:
        pieces = Pieces(self.tokenizer, sampling, len(ids))
        name, counted = str(uuid.uuid4()), 0
        outputs = ["output_ids", "sequence_length", *(["output_log_probs"] if sampling.logprobs else [])]
        try:
            for found in ask(self._backend, asked(ids, sampling), outputs, name):
                length = int(found["sequence_length"].reshape(-1)[0])
                tokens = [int(token) for token in found["output_ids"].reshape(-1)[:length]]
                counted += len(tokens)
                logs: list[float] = []
                if sampling.logprobs and tokens:
                    # The newest are the last, whether those before them come again or not.
                    logs = found["output_log_probs"].reshape(-1)[-len(tokens) :].tolist()
                reason = LENGTH if counted >= sampling.max_tokens else ""
                piece = pieces.add(tokens, logs, reason=reason)
                if not receiver(piece) or piece.last:
                    if not reason and piece.end_token is None:
                        self._stop(name)
                    return
            # The engine keeps the end token to itself: an answer that is over and not too long has met it.
            receiver(pieces.add([], reason=STOP))
        except Exception as error:  # whatever it is, its client must hear of it
            receiver(Piece(error=f"the model failed: {error}"))

    def _stop(self, name: str) -> None:
        """Have the backend drop a request: one with the same id and ``stop``."""
        inputs = [
            *_prompt([0]),
            array("request_output_len", [[1]], numpy.int32),
            array("stop", [[True]], bool),
        ]
        for _ in ask(self._backend, inputs, ["output_ids"], name):
            pass


def _prompt(ids: list[int]) -> list[Any]:
    return [array("input_ids", [ids], numpy.int32), array("input_lengths", [[len(ids)]], numpy.int32)]


def asked(ids: list[int], sampling: Sampling) -> list[Any]:
    """The backend's inputs; nothing of the sampling is left to defaults of its own."""
    ends = [] if sampling.ignore_end else list(sampling.end_tokens)
    inputs = [
        *_prompt(ids),
        array("request_output_len", [[sampling.max_tokens]], numpy.int32),
        array("end_id", [[ends[0] if ends else NEVER]], numpy.int32),
        array("runtime_top_k", [[1 if sampling.greedy else sampling.top_k]], numpy.int32),
        array("runtime_top_p", [[sampling.top_p]], numpy.float32),
        array("temperature", [[sampling.temperature]], numpy.float32),
        array("repetition_penalty", [[sampling.repetition_penalty]], numpy.float32),
        array("presence_penalty", [[sampling.presence_penalty]], numpy.float32),
        array("frequency_penalty", [[sampling.frequency_penalty]], numpy.float32),
        array("streaming", [[True]], bool),
        array("exclude_input_in_output", [[True]], bool),
        array("return_log_probs", [[sampling.logprobs]], bool),
    ]
    if ends[1:]:
        # Words as one row of tokens and one of where each ends, padded with -1: here each is one token.
        places = list(range(1, len(ends)))
        inputs.append(array("stop_words_list", [[ends[1:], places]], numpy.int32))
    if sampling.min_tokens:
        inputs.append(array("min_tokens", [[sampling.min_tokens]], numpy.int32))
    if sampling.seed is not None:
        inputs.append(array("seed", [[sampling.seed]], numpy.uint64))
    return inputs
