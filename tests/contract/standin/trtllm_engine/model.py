"""A stand-in for Triton's TensorRT-LLM backend: the inputs that it takes, a Llama put together from all ranks.

It knows the inputs of release 1.x by name and shape, and drops a request when one with its id says ``stop``.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy
import torch
import triton_python_backend_utils as triton
from engine_checkpoint import rebuild
from transformers import AutoConfig, AutoModelForCausalLM

FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        version = Path(args["model_repository"]) / args["model_version"]
        config = AutoConfig.from_pretrained(version / "tokenizer")
        self.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        weights = {name: tensor.float() for name, tensor in rebuild(version / "checkpoint").items()}
        self.model.load_state_dict(weights, strict=False)
        self.running: dict[str, threading.Event] = {}

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            # Copies: the request's own memory is gone when this returns.
            values = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            sender, name = request.get_response_sender(), request.request_id()
            wrong = [key for key, value in values.items() if value.shape[0] != 1]
            if wrong or not name:
                error = triton.TritonError(f"shape of {wrong}, or no request id")
                sender.send(triton.InferenceResponse(error=error), flags=FINAL)
            elif "stop" in values:
                self.running[name].set()
                sender.send(flags=FINAL)
            else:
                self.running[name] = threading.Event()
                threading.Thread(target=self._answer, args=(values, sender, name), daemon=True).start()

    @torch.inference_mode()
    def _answer(self, values: dict[str, Any], sender: Any, name: str) -> None:
        chosen = {key: value.reshape(-1)[0] for key, value in values.items() if value.size == 1}
        prompt = values["input_ids"][0].tolist()
        ends = {int(chosen["end_id"])}
        if "stop_words_list" in values:
            words, places = values["stop_words_list"][0]
            assert places.tolist() == list(range(1, len(words) + 1)), places
            ends |= set(words.tolist())
        generator = torch.Generator().manual_seed(int(chosen.get("seed", 0)))
        ids, past, counted, cumulative = torch.tensor([prompt]), None, 0, []
        while True:
            found = self.model(ids, past_key_values=past, use_cache=True)
            past, logits = found.past_key_values, found.logits[0, -1]
            logs = torch.log_softmax(logits, -1)
            if counted < chosen.get("min_tokens", 0):
                logits[[end for end in ends if end >= 0]] = -torch.inf
            if chosen["runtime_top_k"]:
                logits[logits < logits.topk(int(chosen["runtime_top_k"])).values[-1]] = -torch.inf
            shares = torch.softmax(logits / float(chosen["temperature"]), -1)
            token = int(torch.multinomial(shares, 1, generator=generator))
            if token in ends:  # which the engine keeps to itself
                sender.send(flags=FINAL)
                return
            counted += 1
            cumulative.append(float(logs[token]))
            last = counted >= chosen["request_output_len"] or self.running[name].is_set()
            outputs = [
                triton.Tensor("output_ids", numpy.array([[[token]]], dtype=numpy.int32)),
                triton.Tensor("sequence_length", numpy.array([[1]], dtype=numpy.int32)),
                triton.Tensor("output_log_probs", numpy.array([[cumulative]], dtype=numpy.float32)),
            ]
            sender.send(triton.InferenceResponse(outputs), flags=FINAL if last else 0)
            if last:
                return
            ids = torch.tensor([[token]])
