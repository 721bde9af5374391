"""A client for Curator's synthetic stages: retries, rate limits, a cap on spending, a ledger.

Curator's own client retries by looking for words in error messages and knows neither
``Retry-After`` nor budgets; this one takes its place behind the same interface
(``AsyncLLMClient``), so the stages and their prompts are Curator's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nemo_curator.models.client.llm_client import AsyncLLMClient, GenerationConfig

from pipeline.schema import Synthetic
from pipeline.stages.curate.synthetic.ledger import Answer, Ledger, request_key
from pipeline.stages.step import InputError

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
CHARACTERS_A_TOKEN = 3  # few, so that a prompt's estimate is rather too high
NO_KEY = "none"  # local servers want some key, and none in particular


class Bucket:
    """A token bucket: ``rate`` a minute, with a minute's worth at most; 0: no limit."""

    def __init__(self, rate: int) -> None:
        self.rate = rate / 60.0
        self.level = self.most = max(1.0, rate / 60.0)  # a second's worth at once
        self.at = time.monotonic()

    async def take(self, amount: float) -> None:
        """Wait until there is enough, and take it."""
        if not self.rate:
            return
        now = time.monotonic()
        self.level = min(self.most, self.level + (now - self.at) * self.rate) - amount
        self.at = now
        if self.level < 0:
            await asyncio.sleep(-self.level / self.rate)


class MeteredClient(AsyncLLMClient):
    """See the module's docstring.

    A request that fails for good gets an empty answer, counted in ``failures``; what makes
    all further requests pointless (a wrong key, an unknown model, the cap) is raised as
    :class:`InputError`.
    """

    def __init__(self, settings: Synthetic, ledger: Ledger) -> None:
        super().__init__(settings.concurrency, settings.max_retries)
        self.settings, self.ledger = settings, ledger
        self.failures: Counter[str] = Counter()
        self.requests = self.reused = 0
        self.reserved = 0.0  # worst case of the requests under way
        self._requests = Bucket(settings.requests_per_minute)
        self._tokens = Bucket(settings.tokens_per_minute)
        self._loop: Any = None
        self._refusal: InputError | None = None
        self._lock = threading.Lock()
        # Curator's stages start an event loop for every batch; threads and their connections outlive it.
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="request")
        self._client: Any = None

    def close(self) -> None:
        """Wait for the requests under way: their answers are paid for and go to the ledger."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    def setup(self) -> None:
        """Nothing before the first request."""

    def spent(self) -> float:
        """Money spent so far, in the unit of the recipe's prices."""
        return self._price(*self.ledger.tokens())

    async def query_model(
        self,
        *,
        messages: Iterable[dict[str, str]],
        model: str,
        conversation_formatter: Any = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        """The answer, from the ledger where it stands there; [""] when there is none to be had."""
        config = generation_config if isinstance(generation_config, GenerationConfig) else GenerationConfig()
        request = {
            "model": model,
            "messages": list(messages),
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "seed": config.seed,
        }
        key = request_key(request)
        known = self.ledger.get(key)
        if known is not None:
            self.reused += 1
            return [known.text]
        self._bind()
        async with self._slots:
            answer = await self._ask(key, request)
        return [answer.text] if answer is not None else [""]

    async def _query_model_impl(self, **_: Any) -> list[str]:
        raise AssertionError("query_model does not go through Curator's retries")

    def _bind(self) -> None:
        """A semaphore belongs to one event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._slots = loop, asyncio.Semaphore(self.settings.concurrency)
        if self._client is None:
            from openai import OpenAI

            name = self.settings.api_key_env
            self._client = OpenAI(
                base_url=self.settings.address,
                api_key=os.environ.get(name, NO_KEY) if name else NO_KEY,
                timeout=self.settings.timeout_s,
                max_retries=0,
            )

    async def _ask(self, key: str, request: dict[str, Any]) -> Answer | None:
        prompt = sum(len(message["content"]) for message in request["messages"]) // CHARACTERS_A_TOKEN
        worst = self._price(prompt, request["max_tokens"])
        if self._refusal is not None:
            raise self._refusal
        self._reserve(worst)
        try:
            for attempt in range(self.settings.max_retries + 1):
                await self._requests.take(1)
                await self._tokens.take(prompt + request["max_tokens"])
                found, wait = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._try, key, request, attempt
                )
                if isinstance(found, Answer):
                    return found
                if attempt == self.settings.max_retries:
                    self.failures[f"{found}, {attempt + 1} times"] += 1
                    return None
                await asyncio.sleep(wait + _jitter(key, attempt))
        finally:
            self.reserved -= worst
        return None

    def _try(self, key: str, request: dict[str, Any], attempt: int) -> tuple[Answer | str, float]:
        """An answer, written down, or what went wrong and how long to wait before the next try."""
        found, wait = self._request(request, attempt)
        if isinstance(found, Answer):
            with self._lock:
                self.ledger.put(key, found)
        return found, wait

    def _request(self, request: dict[str, Any], attempt: int) -> tuple[Answer | str, float]:
        import openai

        with self._lock:
            self.requests += 1
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
        try:
            made = self._client.chat.completions.create(**request)
            choice = made.choices[0].message.content or ""
            usage = made.usage
        except openai.APITimeoutError:
            return "no answer in time", wait
        except openai.APIConnectionError:
            return "no connection", wait
        except openai.APIStatusError as error:
            if error.status_code in RETRIED:
                return f"status {error.status_code}", max(wait, _retry_after(error)) if _retry_after(
                    error
                ) else wait
            self._refusal = self._refused(error.status_code)
            raise self._refusal from None
        except (openai.OpenAIError, ValueError, AttributeError, IndexError, TypeError):
            return "an answer that is not of the protocol", wait
        if usage is None:
            return Answer(
                choice, len(str(request)) // CHARACTERS_A_TOKEN, len(choice) // CHARACTERS_A_TOKEN
            ), 0.0
        return Answer(choice, usage.prompt_tokens, usage.completion_tokens), 0.0

    def _reserve(self, worst: float) -> None:
        """Refuse a request that could pass the cap, those under way included."""
        cap = self.settings.max_spend
        if cap and self.spent() + self.reserved + worst > cap:
            self._refusal = InputError(
                f"curate.synthetic.max_spend: {self.spent():.4f} of {cap:g} are spent ({len(self.ledger):,} answers), "
                "and the next request could pass the cap. Nothing is lost: raise it, and the same command goes on "
                "from the answers that are there"
            )
            raise self._refusal
        self.reserved += worst

    def _price(self, prompt: int, completion: int) -> float:
        per_million = self.settings
        return (
            prompt * per_million.price_per_million_prompt_tokens
            + completion * per_million.price_per_million_completion_tokens
        ) / 1e6

    def _refused(self, status: int) -> InputError:
        """What a status that no retry mends means; the key itself never stands in a message."""
        key = (
            f"environment variable {self.settings.api_key_env}"
            if self.settings.api_key_env
            else "no key was given"
        )
        hint = {
            400: "the request is not one that this model takes (curate.synthetic.max_tokens?)",
            401: f"the key is missing or wrong ({key})",
            403: f"the key may not use this model ({key})",
            404: f"there is no model {self.settings.model!r} or no such address",
        }.get(status, "it will not do better when asked again")
        return InputError(
            f"curate.synthetic.address: {self.settings.address} answered with status {status}: {hint}"
        )


def _retry_after(error: Any) -> float:
    try:
        return max(0.0, float(error.response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0  # a date, which few servers send


def _jitter(key: str, attempt: int) -> float:
    """Up to a quarter of a second that depends on the request alone, so that not all come at once."""
    return hashlib.sha256(f"{key}{attempt}".encode()).digest()[0] / 1024
