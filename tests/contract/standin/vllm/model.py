"""A stand-in for Triton's vLLM backend: its inputs and outputs, its refusals, a Hugging Face model behind them.

The arguments of ``model.json`` are checked against the catalogue of the released vLLM, the sampling parameters against
the names that it knows, and the text is tokenised as vLLM does it, special tokens added.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy
import torch
import triton_python_backend_utils as triton
from engines import VLLM, faults
from transformers import AutoModelForCausalLM, AutoTokenizer

FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
SAMPLING = {
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "ignore_eos", "stop_token_ids", "seed", "logprobs", "lora_name",
}  # fmt: skip


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        version = Path(args["model_repository"]) / args["model_version"]
        arguments = json.loads((version / "model.json").read_text())
        said = [f"{path}: {why}" for path, why in faults(VLLM, "AsyncEngineArgs", arguments)]
        if said or arguments["trust_remote_code"]:
            raise ValueError(f"AsyncEngineArgs: {said}")
        if not arguments["model"].endswith(f"{args['model_name']}/1/checkpoint"):
            raise ValueError(arguments["model"])
        folder = version / "checkpoint"
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            values = {tensor.name(): tensor.as_numpy()[0] for tensor in request.inputs()}
            sender = request.get_response_sender()
            threading.Thread(target=self._answer, args=(values, sender), daemon=True).start()

    @torch.inference_mode()
    def _answer(self, values: dict[str, Any], sender: Any) -> None:
        chosen = json.loads(values["sampling_parameters"])
        unknown = set(chosen) - SAMPLING
        if unknown or not values["stream"] or not values["exclude_input_in_output"]:
            error = triton.TritonError(f"unknown sampling parameters: {unknown}")
            sender.send(triton.InferenceResponse(error=error), flags=FINAL)
            return
        prompt = self.tokenizer(values["text_input"].decode())["input_ids"]
        ids, past, tokens, shown = torch.tensor([prompt]), None, [], 0
        generator = torch.Generator().manual_seed(chosen.get("seed", 0))
        reason = "None"
        while reason == "None":
            found = self.model(ids, past_key_values=past, use_cache=True)
            past, logits = found.past_key_values, found.logits[0, -1]
            logs = torch.log_softmax(logits, -1)
            if len(tokens) < chosen["min_tokens"]:
                logits[chosen["stop_token_ids"]] = -torch.inf
            if chosen["top_k"]:
                logits[logits < logits.topk(chosen["top_k"]).values[-1]] = -torch.inf
            if chosen["temperature"]:
                shares = torch.softmax(logits / chosen["temperature"], -1)
                token = int(torch.multinomial(shares, 1, generator=generator))
            else:
                token = int(logits.argmax())
            tokens.append(token)
            if token in chosen["stop_token_ids"]:
                reason = "stop"
            elif len(tokens) >= chosen["max_tokens"]:
                reason = "length"
            kept = tokens[:-1] if reason == "stop" else tokens
            text = self.tokenizer.decode(kept, skip_special_tokens=True)
            held = 4 * text.endswith("\ufffd")  # what may still change is held back
            end = len(text) if reason != "None" else max(shown, len(text) - held)
            outputs = {
                "text_output": numpy.array([text[shown:end].encode()], dtype=object),
                "finish_reason": numpy.array([reason.encode()], dtype=object),
                "num_input_tokens": numpy.array(len(prompt), dtype=numpy.uint32),
                "num_output_tokens": numpy.array([1], dtype=numpy.uint32),
            }
            shown = end
            if values.get("return_logprobs"):
                entry = {
                    token: {"logprob": float(logs[token]), "decoded_token": self.tokenizer.decode([token])}
                }
                outputs["logprobs"] = numpy.array([json.dumps([entry]).encode()], dtype=object)
            response = triton.InferenceResponse([triton.Tensor(*each) for each in outputs.items()])
            if sender.is_cancelled():
                sender.send(flags=FINAL)
                return
            sender.send(response, flags=FINAL if reason != "None" else 0)
            ids = torch.tensor([[token]])
