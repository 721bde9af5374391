"""Targets whose engine is a Triton backend of its own, asked through the model beside it (BLS): many short answers at once."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import tritonclient.grpc as grpc

from pipeline.serving.client import ServingError, events
from tests.contract.conftest import Served

QUESTION = "What does `socket.bind` do?"
ANSWERS, AT_ONCE = 400, 16


@pytest.mark.parametrize("target", ["vllm", "trtllm-engine"])
def test_many_short_answers_at_once_leave_the_models_process_alive(
    deploy: Callable[..., Served], target: str
) -> None:
    """It ended with a segmentation fault, in one of a few thousand answers: a thread of Triton's freed Python's arrays."""
    served = deploy(target)

    def ask(number: int) -> str:
        answer = events(served.address, served.model_name, text=QUESTION, max_tokens=1 + number % 3)
        try:
            if number % 4 == 0:  # leaves in the middle
                return str(next(answer)["finish_reason"])
            return "".join(event["text_output"] for event in answer)
        except ServingError as error:
            return f"error: {error}"
        finally:
            answer.close()  # type: ignore[attr-defined]  # a generator: ends the connection

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(ask, range(ANSWERS)))
    assert not [answer for answer in answers if answer.startswith("error")]


def test_outputs_that_nobody_named_are_dropped_without_harm(deploy: Callable[..., Served]) -> None:
    """Triton's stub drops them while it does not hold Python's lock."""
    served = deploy("vllm")
    answers: queue.Queue[tuple[grpc.InferResult | None, Exception | None]] = queue.Queue()
    text = grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(numpy.array([QUESTION.encode()], dtype=object))
    tokens = grpc.InferInput("max_tokens", [1], "INT32")
    tokens.set_data_from_numpy(numpy.array([2], dtype=numpy.int32))
    with grpc.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for _ in range(100):
            client.async_stream_infer(
                served.model_name, [text, tokens], outputs=[grpc.InferRequestedOutput("finish_reason")]
            )
        for _ in range(100):
            result, error = answers.get(timeout=30)
            assert error is None
            assert result is not None
            assert [each.name for each in result.get_response().outputs] == ["finish_reason"]
        client.stop_stream()
