"""Ask the deployed model over HTTP and gRPC and hold the answers against Hugging Face.

Run by the end-to-end test inside the serving toolchain:
    python ask.py BUNDLE HTTP_PORT GRPC_PORT QUESTION
Prints one JSON object with the three answers.
"""

from __future__ import annotations

import json
import queue
import sys
import urllib.request

import numpy as np
import torch
import tritonclient.grpc as grpc
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TOKENS = 16


def by_hugging_face(bundle: str, question: str) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundle)
    model = AutoModelForCausalLM.from_pretrained(bundle, torch_dtype=torch.float32)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=TOKENS, do_sample=False
    )
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def by_http(port: str, question: str) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/assistant/generate",
        data=json.dumps({"text_input": question, "max_tokens": TOKENS, "temperature": 0.0}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["text_output"]


def by_grpc(port: str, question: str) -> tuple[str, int]:
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    inputs = []
    for name, value, kind, dtype in (
        ("text_input", question.encode(), "BYTES", np.object_),
        ("stream", True, "BOOL", np.bool_),
        ("max_tokens", TOKENS, "INT32", np.int32),
    ):
        tensor = grpc.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(np.array([value], dtype=dtype))
        inputs.append(tensor)
    parts = []
    with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        client.async_stream_infer("assistant", inputs, enable_empty_final_response=True)
        while True:
            result, error = answers.get(timeout=60)
            if error is not None:
                raise error
            response = result.get_response()
            output = result.as_numpy("text_output")
            if output is not None and output.size:
                parts.append(output.ravel()[0].decode())
            if response.parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
    return "".join(parts), len(parts)


if __name__ == "__main__":
    bundle, http_port, grpc_port, asked = sys.argv[1:]
    streamed, pieces = by_grpc(grpc_port, asked)
    print(
        json.dumps(
            {
                "hugging_face": by_hugging_face(bundle, asked),
                "http": by_http(http_port, asked),
                "grpc": streamed,
                "pieces": pieces,
            }
        )
    )
