"""The plain server: ``python -m benchmarks.servers.transformers_server FOLDER PORT THREADS``.

``model.generate`` with a ``TextIteratorStreamer`` behind FastAPI, as Transformers' documentation and most
tutorials have it: one answer at a time, the others wait their turn.  fp32, as ours.  Of OpenAI's chat completions
it takes what a load generator sends; ``ignore_eos`` is vLLM's name for going on past the end token.
https://huggingface.co/docs/transformers/internal/generation_utils#transformers.TextIteratorStreamer
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer


class Chat(BaseModel):
    """A request."""

    messages: list[dict[str, Any]]
    model: str = ""
    max_tokens: int = 16
    max_completion_tokens: int | None = None
    temperature: float = 0.0
    stream: bool = False
    ignore_eos: bool = False


@dataclass
class Generation:
    """An answer under way: its text as it comes, and then what came out."""

    text: TextIteratorStreamer
    outcome: Any
    prompt_tokens: int
    limit: int

    def finish(self) -> tuple[str, dict[str, int]]:
        """The finish reason and the usage; raises what ``generate`` raised."""
        count = self.outcome.result().shape[1] - self.prompt_tokens
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": count,
            "total_tokens": self.prompt_tokens + count,
        }
        return "length" if count == self.limit else "stop", usage


class Server:
    """The model and the one thread that generates."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.worker = ThreadPoolExecutor(1)

    def start(self, chat: Chat) -> Generation:
        """Queue a request."""
        inputs = self.tokenizer.apply_chat_template(
            chat.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        limit = chat.max_completion_tokens or chat.max_tokens
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling: dict[str, Any] = {"do_sample": chat.temperature > 0, "max_new_tokens": limit}
        if chat.temperature > 0:
            sampling["temperature"] = chat.temperature
        if chat.ignore_eos:
            sampling["min_new_tokens"] = limit

        def work() -> Any:
            try:
                with torch.inference_mode():
                    return self.model.generate(**inputs, **sampling, streamer=streamer)
            finally:
                streamer.end()  # for whoever reads, when generate failed

        return Generation(streamer, self.worker.submit(work), inputs["input_ids"].shape[1], limit)


def application(server: Server) -> FastAPI:
    """The routes."""
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions")
    def chat_completions(chat: Chat) -> Any:
        generation = server.start(chat)
        whole = {"id": "chatcmpl-0", "created": int(time.time()), "model": chat.model}
        if chat.stream:
            return StreamingResponse(_events(generation, whole), media_type="text/event-stream")
        text = "".join(generation.text)
        reason, usage = generation.finish()
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        return whole | {"object": "chat.completion", "choices": [choice], "usage": usage}

    return app


def _events(generation: Generation, whole: dict[str, Any]) -> Iterator[str]:
    whole = whole | {"object": "chat.completion.chunk"}

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps(whole | {'choices': choices} | more)}\n\n"

    for text in generation.text:
        if text:
            yield event([{"index": 0, "delta": {"content": text}, "finish_reason": None}])
    reason, usage = generation.finish()
    yield event([{"index": 0, "delta": {}, "finish_reason": reason}])
    yield event([], usage=usage)
    yield "data: [DONE]\n\n"


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    uvicorn.run(
        application(Server(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning"
    )
