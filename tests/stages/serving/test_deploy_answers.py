"""A real Triton server's answers over HTTP and gRPC, beside Hugging Face's."""

from __future__ import annotations

import io
import json
import queue
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import tritonclient.grpc as grpc

from pipeline.serving.chat import chat_loop
from pipeline.serving.client import ServingError, events, generate_stream
from pipeline.serving.server import ServerRecord

QUESTION = "What does `socket.bind` do?"


def shown(text: str) -> str:
    """Text with each run of replacement characters as one.

    A random model makes byte sequences that are no text; Hugging Face shows several replacement
    characters for some of them where OpenVINO's detokenizer shows one.
    """
    return re.sub("\ufffd+", "\ufffd", text)


def ask(record: ServerRecord, **body: Any) -> dict[str, Any]:
    """One answer of the generate endpoint; the error's text under "error" where refused."""
    url = f"http://{record.address}/v2/models/{record.model_name}/generate"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode()), timeout=30
        ) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))


@pytest.fixture(scope="module")
def reference(exported: Path) -> Any:
    """Hugging Face's greedy answer, as text, for a question and a number of tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exported / "bundle")
    tokenizer = AutoTokenizer.from_pretrained(exported / "bundle")

    def answer(question: str, tokens: int) -> str:
        turns = [{"role": "user", "content": question}]
        ids = torch.tensor([tokenizer.apply_chat_template(turns, add_generation_prompt=True)])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
        return shown(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))

    return answer


def test_generate_equals_hugging_face(deployed: ServerRecord, reference: Any) -> None:
    answer = ask(deployed, text_input=QUESTION, max_tokens=24)
    assert shown(answer["text_output"]) == reference(QUESTION, 24)
    assert answer["finish_reason"] in ("stop", "length")
    assert 0 < answer["completion_tokens"] <= 24


def test_stream_is_in_pieces_and_the_same(deployed: ServerRecord, reference: Any) -> None:
    pieces = list(generate_stream(deployed.address, deployed.model_name, text=QUESTION, max_tokens=24))
    assert len(pieces) > 3
    assert shown("".join(pieces)) == reference(QUESTION, 24)


def test_grpc_stream_is_the_same(deployed: ServerRecord, reference: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    text = grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(numpy.array([QUESTION.encode()], dtype=object))
    stream = grpc.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(numpy.array([True]))
    tokens = grpc.InferInput("max_tokens", [1], "INT32")
    tokens.set_data_from_numpy(numpy.array([24], dtype=numpy.int32))
    got, reason = "", b""
    with grpc.InferenceServerClient(f"127.0.0.1:{deployed.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(deployed.model_name, [text, stream, tokens])
        while not reason:
            result, error = answers.get(timeout=30)
            assert error is None
            got += result.as_numpy("text_output")[0].decode()
            reason = result.as_numpy("finish_reason")[0]
        client.stop_stream()
    assert shown(got) == reference(QUESTION, 24)


def test_eight_at_once_are_all_right(deployed: ServerRecord, reference: Any) -> None:
    questions = [f"What is `socket.x{number}`?" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda q: ask(deployed, text_input=q, max_tokens=32)["text_output"], questions)
        )
    assert [shown(text) for text in together] == [reference(question, 32) for question in questions]


def test_a_seed_gives_the_same_sample_alone_and_in_company(deployed: ServerRecord) -> None:
    def sample(seed: int) -> str:
        return str(
            ask(deployed, text_input=QUESTION, max_tokens=60, temperature=1.0, seed=seed)["text_output"]
        )

    alone = [sample(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(sample, range(8)))
    assert together == alone
    assert len(set(alone)) > 1


def test_top_k_of_one_is_greedy(deployed: ServerRecord, reference: Any) -> None:
    answer = ask(deployed, text_input=QUESTION, max_tokens=16, temperature=2.0, top_k=1)
    assert shown(answer["text_output"]) == reference(QUESTION, 16)


def test_a_stop_word_ends_the_answer_before_it(deployed: ServerRecord) -> None:
    whole = ask(deployed, text_input=QUESTION, max_tokens=24)["text_output"]
    word = whole[6:9]  # most likely across a token's border
    answer = ask(deployed, text_input=QUESTION, max_tokens=24, stop_words=["never met", word])
    assert answer["text_output"] == whole[: whole.index(word)]
    assert answer["finish_reason"] == "stop"
    streamed = generate_stream(
        deployed.address, deployed.model_name, text=QUESTION, max_tokens=24, stop_words=[word]
    )
    assert "".join(streamed) == answer["text_output"]


def test_a_conversation_is_read_whole(deployed: ServerRecord) -> None:
    turns = [{"role": "user", "content": QUESTION}]
    single = ask(deployed, messages=json.dumps(turns), max_tokens=12)
    assert single["text_output"] == ask(deployed, text_input=QUESTION, max_tokens=12)["text_output"]
    turns += [{"role": "assistant", "content": "Bind."}, {"role": "user", "content": "And `listen`?"}]
    assert (
        ask(deployed, messages=json.dumps(turns), max_tokens=1)["prompt_tokens"] > single["prompt_tokens"] + 5
    )


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"max_tokens": 5}, "text_input"),
        ({"text_input": "a", "messages": "[]"}, "not both"),
        ({"text_input": "  "}, "empty"),
        ({"text_input": "a", "temprature": 1.0}, "unknown parameter 'temprature'"),
        ({"text_input": "a", "temperature": -0.5}, "temperature is -0.5"),
        ({"text_input": "a", "top_p": 1.5}, "top_p is 1.5"),
        ({"text_input": "a", "top_k": 0}, "top_k is 0"),
        ({"text_input": "a", "repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"text_input": "a", "seed": -1}, "seed is -1"),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"text_input": "a", "max_tokens": 9999}, "context of 256"),
        ({"text_input": "a " * 400}, "the model reads at most"),
        ({"text_input": "a", "stop_words": [""]}, "empty word"),
        ({"text_input": "a", "max_tokens": "many"}, "max_tokens"),
        ({"messages": "{"}, "not JSON"),
        ({"messages": '[{"role": "robot", "content": "a"}]'}, "messages[0]"),
        ({"messages": '[{"role": "assistant", "content": "a"}]'}, "the user's"),
    ],
)
def test_what_cannot_be_served_is_told(deployed: ServerRecord, body: dict[str, Any], told: str) -> None:
    answer = ask(deployed, **body)
    # Triton itself refuses a wrong JSON type, in its own words.
    assert told in answer["error"] or (body.get("max_tokens") == "many" and "JSON" in answer["error"])


def test_a_client_that_leaves_does_not_disturb_the_others(deployed: ServerRecord, reference: Any) -> None:
    for _ in range(4):
        leaving = events(deployed.address, deployed.model_name, text=QUESTION, max_tokens=200)
        next(leaving)
        leaving.close()
    assert shown(ask(deployed, text_input=QUESTION, max_tokens=24)["text_output"]) == reference(QUESTION, 24)


def test_chat_streams_and_speaks_plainly(deployed: ServerRecord, reference: Any) -> None:
    sink = io.StringIO()
    assert chat_loop(deployed, io.StringIO(f"{QUESTION}\n/what\n/quit\n"), sink) == 0
    assert reference(QUESTION, 64) in shown(sink.getvalue())
    assert "there are only /new and /quit" in sink.getvalue()
    assert chat_loop(deployed, io.StringIO(), sink, "a " * 400) == 1
    assert "error: the prompt has" in sink.getvalue()


def test_an_unknown_model_and_a_silent_port_are_told(deployed: ServerRecord) -> None:
    with pytest.raises(ServingError, match="unknown model"):
        list(generate_stream(deployed.address, "nobody", text="a"))
    started = time.monotonic()
    with pytest.raises(ServingError, match="cannot be reached"):
        list(generate_stream("127.0.0.1:1", deployed.model_name, text="a"))
    assert time.monotonic() - started < 5
