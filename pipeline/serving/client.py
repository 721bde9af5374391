"""A streaming client of the served model, over HTTP, with the standard library alone.

    for text in generate_stream("127.0.0.1:8000", "assistant", text="What does numpy.sum do?"):
        print(text, end="", flush=True)

The server's side of this is ``deploy/triton``; the protocol is Triton's generate extension
(server-sent events), https://github.com/triton-inference-server/server.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pipeline import strict_json
from pipeline.gateway.addresses import host_of
from pipeline.gateway.settings import is_loopback

KEY = "LIFECYCLE_API_KEY"  # the environment's name of the key for servers that want one


class ServingError(Exception):
    """The server refused, failed or could not be reached; the text is meant for people."""


@dataclass(frozen=True)
class Endpoint:
    """Whom to ask: host and port, a model's name, and the file with the server's certificate where it speaks TLS."""

    address: str
    model: str
    certificate: str | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://{self.address}"


def generate_stream(
    address: str,
    model: str,
    *,
    text: str | None = None,
    messages: list[dict[str, str]] | None = None,
    timeout: float = 60.0,
    **sampling: Any,
) -> Iterator[str]:
    """Yield the answer's text as it is generated.

    Either ``text`` (one question) or ``messages`` (a conversation); ``sampling`` are the
    model's other inputs (max_tokens, temperature, top_p, top_k, repetition_penalty, seed,
    stop_words).  ``timeout`` in seconds bounds every wait for the server.  Closing the
    iterator ends the connection.  Raises :class:`ServingError`.
    """
    for event in events(address, model, text=text, messages=messages, timeout=timeout, **sampling):
        if event["text_output"]:
            yield event["text_output"]


def events(
    address: str,
    model: str,
    *,
    text: str | None = None,
    messages: list[dict[str, str]] | None = None,
    timeout: float = 60.0,
    certificate: str | None = None,
    **sampling: Any,
) -> Iterator[dict[str, Any]]:
    """As :func:`generate_stream`, with all outputs of each event (finish_reason, token counts).

    ``certificate``: the file with the server's certificate, where it speaks TLS.
    """
    body: dict[str, Any] = {**sampling, "stream": True}
    if text is not None:
        body["text_input"] = text
    if messages is not None:
        body["messages"] = strict_json.dumps(messages, ensure_ascii=False)
    if certificate is None:
        connection = http.client.HTTPConnection(address, timeout=timeout)
    else:
        trusted = trusting(certificate, address)
        connection = http.client.HTTPSConnection(address, timeout=timeout, context=trusted)
    try:
        connection.request(
            "POST",
            f"/v2/models/{quote(model)}/generate_stream",
            strict_json.dumps(body, ensure_ascii=False).encode("utf-8"),
            headers(),
        )
        response = connection.getresponse()
        if response.status != 200:
            raise ServingError(_refusal(response.read(), response.status))
        for line in response:
            if line.startswith(b"data:"):
                event = json.loads(line[len(b"data:") :])
                if "error" in event:
                    raise ServingError(str(event["error"]))
                yield event
                if event["finish_reason"]:
                    return
        raise ServingError(f"the server at {address} ended in the middle of its answer")
    except TimeoutError:
        raise ServingError(f"the server at {address} did not answer within {timeout:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ServingError(f"the server at {address} cannot be reached or broke off: {error}") from None
    finally:
        connection.close()


def trusting(certificate: str, address: str) -> ssl.SSLContext:
    """For TLS with the server at ``address`` (host:port) that shows this certificate, or one that it has signed.

    The server's own certificate is what is trusted, whoever signed it and, on loopback, whatever name it is for: those who
    deployed it ask it there.  Raises ``OSError`` for a file that cannot be read or is no certificate.
    """
    trusted = ssl.create_default_context(cafile=certificate)
    trusted.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusted.check_hostname = not is_loopback(host_of(address))
    return trusted


def headers() -> dict[str, str]:
    """Of a request: what it holds, and the environment's key."""
    key = os.environ.get(KEY)
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


def _refusal(body: bytes, status: int) -> str:
    try:
        # generate_stream sends even a refusal as an event.
        return str(json.loads(body.strip().removeprefix(b"data:"))["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {status}"
