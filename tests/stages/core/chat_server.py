"""A small server that speaks ``POST /v1/chat/completions``, answers by rule and can misbehave."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789abcdef0123456789abcdef"


class ChatServer:
    """Answers are made of the prompt alone; ``trouble`` is a list of what happens to the next requests.

    An entry is an HTTP status, ``"hang"``, ``"cut"`` (the connection), ``"nonsense"`` (no JSON)
    or ``"fine"``.  ``asked`` counts the requests by the digest of their messages.
    """

    def __init__(self, delay: float = 0.0, port: int = 0) -> None:
        self.trouble: list[int | str] = []
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.most = self.now = 0
        self.delay, self.lock = delay, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    outer.handle(self, body)
                finally:
                    with outer.lock:
                        outer.now -= 1

        class Quiet(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a client that went away is part of the tests

        self.server = Quiet(("127.0.0.1", port), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def handle(self, request: Any, body: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        with self.lock:
            self.times.append(time.monotonic())
            trouble = self.trouble.pop(0) if self.trouble else "fine"
        if request.headers.get("Authorization") == "Bearer wrong":
            trouble = 401
        time.sleep(self.delay)
        if trouble == "hang":
            time.sleep(3)
        if trouble == "cut":
            request.connection.close()
            return
        if isinstance(trouble, int):
            headers = {"Retry-After": "1"} if trouble == 429 else {}
            self.send(request, trouble, b'{"error": {"message": "no"}}', headers)
            return
        if trouble == "nonsense":
            self.send(request, 200, b"this is no JSON", {})
            return
        with self.lock:
            self.asked[digest] += 1
        text = answer(body["messages"][-1]["content"])
        usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        made = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }
        self.send(request, 200, json.dumps(made).encode(), {})

    def send(self, request: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in {
            **headers,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def answer(prompt: str) -> str:
    """What a model might say; some documents get answers that cannot be used."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    if "paraphrase it in high-quality" in prompt:
        return f"Paraphrased Text: A short form of it, {digest[:8]}."
    if "Score two answers" in prompt:
        first_is_good = "Answer A: Yes" in prompt
        good = 5 if int(digest[0], 16) < 12 else 3
        return (
            "```json\n"
            + json.dumps({"a": good if first_is_good else 2, "b": 2 if first_is_good else good})
            + "\n```"
        )
    if "worse_answer" in prompt:
        if digest[1] == "0":
            return "I cannot do that."
        return json.dumps(
            {
                "question": f"What is {digest[:6]}?",
                "answer": f"Yes, it is {digest[:6]}.",
                "worse_answer": "No idea.",
            }
        )
    if "ask questions and answer them" in prompt:
        return "Here are the questions and answers based on the provided text:\n" + "\n".join(
            f"- Question: What of {digest[n]}{n}? Answer: That is {n}." for n in range(6)
        )
    if "concise and organized list" in prompt:
        return f"- A fact, {digest[:6]}\n- Another fact"
    return f"Knowledge of {digest[:8]} in plain words."


if __name__ == "__main__":
    served = ChatServer(delay=float(sys.argv[1]))
    print(served.address, flush=True)
    threading.Event().wait()
