"""A load generator: clients that ask a server, read its answer as it comes, and keep the times.

    python -m benchmarks.load < orders.jsonl       (a process of its own, in the toolchain `gateway`)

One :class:`Order` a line on standard input, the answers of one order a line on standard output, in the order
of their ends, as :class:`Answer`.  Two protocols: OpenAI's chat completions and Triton's ``generate_stream``
(https://platform.openai.com/docs/api-reference/chat,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md).
Closed loop: ``concurrency`` clients, each asking again when it has its answer.  Open loop: ``rate``
requests a second come by a Poisson process whoever is done, and wait counts from when they came.

Times in seconds.  Token counts are the server's own.  An answer is ``ok`` only when it ended as the protocol
ends it, with a finish reason, and has as many tokens as were asked for where the question is ``exact``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import aiohttp

OPENAI, TRITON = "openai", "triton"
OK, FAILED, TRUNCATED, CANCELLED, REFUSED = "ok", "failed", "truncated", "cancelled", "refused"
TIMEOUT_S = 120.0  # of every wait for the server
LEAVE_S = 0.005  # after which a client that leaves at once is gone


@dataclass(frozen=True)
class Target:
    """A server: ``address`` as ``http://host:port``; ``extra`` fields go into every request.

    ``keep_alive``: a connection serves one request after the other.
    """

    protocol: str
    address: str
    model: str
    key: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    keep_alive: bool = True


@dataclass(frozen=True)
class Question:
    """One request.

    ``exact``: the answer must have ``max_tokens`` tokens, as the target's ``extra`` fields make it.
    ``leave_after`` so many parts with text the client hangs up (0: as soon as the request has been sent).
    ``wrong``: fields that make it a bad request, and ``status`` what it is then to be answered with.
    """

    messages: Sequence[dict[str, str]]
    max_tokens: int
    stream: bool = True
    exact: bool = True
    leave_after: int | None = None
    wrong: dict[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True)
class Order:
    """Questions, each of which goes to every target."""

    targets: tuple[Target, ...]
    questions: tuple[Question, ...]
    concurrency: int = 1
    rate: float | None = None
    seed: int = 0

    @classmethod
    def parse(cls, line: str) -> Order:
        """From the JSON of :func:`dataclasses.asdict`."""
        found = json.loads(line)
        found["targets"] = tuple(Target(**target) for target in found["targets"])
        found["questions"] = tuple(Question(**question) for question in found["questions"])
        return cls(**found)


@dataclass
class Answer:
    """What became of one request; ``question`` and ``target`` by their places in the order.

    ``why`` in words where it failed or broke off.  ``first`` until the first part with text, ``between`` the mean time of a further token, ``longest`` the
    longest pause between two parts; None where there is no such thing.
    """

    question: int = 0
    target: int = 0
    outcome: str = FAILED
    seconds: float = 0.0
    first: float | None = None
    between: float | None = None
    longest: float | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    text: str = ""
    why: str = ""


@dataclass(frozen=True)
class Spread:
    """Median and percentiles of a time."""

    median: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [*values] * 99
        return cls(statistics.median(values), cuts[89], cuts[98])


@dataclass(frozen=True)
class Figures:
    """Answers, summed up; ``tokens_per_s`` over the whole of ``seconds``."""

    outcomes: dict[str, int]
    seconds: float
    tokens_per_s: float
    first: Spread | None
    between: Spread | None
    longest: Spread | None
    faults: list[str]

    @classmethod
    def of(cls, answers: Sequence[Answer], seconds: float) -> Figures:
        """``seconds`` passed from the first request to the last answer."""

        def spread(values: Iterable[float | None]) -> Spread | None:
            found = [value for value in values if value is not None]
            return Spread.of(found) if found else None

        good = [answer for answer in answers if answer.outcome == OK]
        return cls(
            outcomes=dict(Counter(answer.outcome for answer in answers)),
            seconds=seconds,
            tokens_per_s=sum(answer.tokens for answer in good) / seconds,
            first=spread(answer.first for answer in good),
            between=spread(answer.between for answer in good),
            longest=spread(answer.longest for answer in good),
            faults=[answer.why for answer in answers if answer.outcome in (FAILED, TRUNCATED)],
        )


@dataclass(frozen=True)
class Part:
    """One event of a stream, or a whole answer."""

    text: str = ""
    finished: bool = False
    tokens: int | None = None
    prompt_tokens: int | None = None


class Broken(Exception):
    """The server said that it failed, or spoke another protocol."""


def url(target: Target, stream: bool) -> str:
    """Where a request goes."""
    if target.protocol == OPENAI:
        return f"{target.address}/v1/chat/completions"
    return f"{target.address}/v2/models/{target.model}/generate{'_stream' if stream else ''}"


def body(target: Target, question: Question) -> dict[str, Any]:
    """The JSON of a request: greedy, and the fields that target and question add."""
    asked: dict[str, Any] = {"max_tokens": question.max_tokens, "temperature": 0.0, "stream": question.stream}
    if target.protocol == OPENAI:
        asked |= {"model": target.model, "messages": list(question.messages)}
        if question.stream:
            asked["stream_options"] = {"include_usage": True}
    else:
        asked["messages"] = json.dumps(question.messages, ensure_ascii=False)
    return asked | (target.extra if question.exact else {}) | question.wrong


def part(target: Target, found: Any) -> Part:
    """What one event says.  Raises :class:`Broken` for an error, and for what is no event of the protocol."""
    if not isinstance(found, dict) or found.get("error"):
        raise Broken(f"the server said {json.dumps(found)[:300]}")
    try:
        if target.protocol == TRITON:
            finished = bool(found["finish_reason"])
            return Part(
                found["text_output"], finished, found["completion_tokens"], found["prompt_tokens"] or None
            )
        usage = found.get("usage") or {}
        counts = usage.get("completion_tokens"), usage.get("prompt_tokens")
        if not found["choices"]:
            return Part("", False, *counts)
        choice = found["choices"][0]
        said = choice.get("delta") or choice.get("message") or {}
        return Part(said.get("content") or "", bool(choice.get("finish_reason")), *counts)
    except (KeyError, TypeError, AttributeError) as error:
        raise Broken(f"an event that is none ({error!r}): {json.dumps(found)[:300]}") from None


async def parts(target: Target, stream: bool, response: aiohttp.ClientResponse) -> AsyncIterator[Part]:
    """The parts of an answer as they come."""
    if not stream:
        yield part(target, await response.json())
        return
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield part(target, json.loads(data))


async def ask(
    session: aiohttp.ClientSession, target: Target, question: Question, began: float | None = None
) -> Answer:
    """Ask one question; ``began`` is when it was due (``time.perf_counter``), now unless given."""
    began = time.perf_counter() if began is None else began
    answer = Answer()
    headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
    headers |= {} if target.keep_alive else {"Connection": "close"}
    asked = session.post(url(target, question.stream), json=body(target, question), headers=headers)
    try:
        if question.leave_after == 0:
            await _leave_at_once(asked, answer)
        else:
            async with asked as response:
                await _read(response, target, question, answer, began)
    except TimeoutError:
        answer.why = f"no answer within {TIMEOUT_S:g} s"
    except (aiohttp.ClientError, OSError, ValueError, Broken) as error:
        answer.why = f"{type(error).__name__}: {error}"
    answer.seconds = time.perf_counter() - began
    return answer


async def _leave_at_once(asked: Any, answer: Answer) -> None:
    """Send the request, and hang up a moment later."""
    waiting = asyncio.ensure_future(asked)
    await asyncio.sleep(LEAVE_S)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        (await waiting).close()
    answer.outcome = CANCELLED


async def _read(
    response: aiohttp.ClientResponse, target: Target, question: Question, answer: Answer, began: float
) -> None:
    """Read an answer to its end, or as far as the question goes."""
    if question.status != 200 or response.status != 200:
        told = (await response.text())[:300]
        expected = response.status == question.status and "error" in told
        answer.outcome = REFUSED if expected else FAILED
        answer.why = "" if expected else f"HTTP status {response.status}, not {question.status}: {told}"
        return
    finished, texts, latest = False, 0, began
    async for found in parts(target, question.stream, response):
        finished = finished or found.finished
        answer.tokens = answer.tokens if found.tokens is None else found.tokens
        answer.prompt_tokens = found.prompt_tokens or answer.prompt_tokens
        if not found.text:
            continue
        now = time.perf_counter()
        answer.text += found.text
        texts += 1
        if not question.stream:
            continue
        if answer.first is None:
            answer.first = now - began
        else:
            answer.longest = max(answer.longest or 0.0, now - latest)
        latest = now
        if question.leave_after is not None and texts >= question.leave_after:
            response.close()
            answer.outcome = CANCELLED
            return
    if answer.first is not None and answer.tokens > 1:
        answer.between = (latest - began - answer.first) / (answer.tokens - 1)
    if not finished:
        answer.outcome, answer.why = TRUNCATED, f"the answer broke off after {len(answer.text)} characters"
    elif not answer.tokens or (question.exact and answer.tokens != question.max_tokens):
        answer.outcome, answer.why = TRUNCATED, f"{answer.tokens} tokens, not {question.max_tokens}"
    else:
        answer.outcome = OK


def client() -> aiohttp.ClientSession:
    """A session of as many connections as there are clients, kept open between requests."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S),
    )


async def closed(
    session: aiohttp.ClientSession,
    targets: Sequence[Target],
    questions: Iterable[Question],
    concurrency: int,
) -> list[Answer]:
    """Answers in the order of their ends, of ``concurrency`` clients.

    A client asks its question of one target after the other, and the next question in another order:
    whatever else the machine does falls on all targets.
    """
    answers = []
    numbered = enumerate(questions)

    async def work() -> None:
        for number, question in numbered:
            for turn in range(len(targets)):
                place = (number + turn) % len(targets)
                answer = await ask(session, targets[place], question)
                answers.append(replace(answer, question=number, target=place))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return answers


async def opened(
    session: aiohttp.ClientSession, target: Target, questions: Iterable[Question], rate: float, seed: int
) -> list[Answer]:
    """Answers to questions that come ``rate`` times a second by a Poisson process."""
    chance = random.Random(seed)
    due = time.perf_counter()
    tasks = []
    for question in questions:
        due += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(ask(session, target, question, due)))
    return [replace(await task, question=number) for number, task in enumerate(tasks)]


def with_cancels(questions: Iterable[Question], share: float, seed: int) -> Iterator[Question]:
    """The questions, a random ``share`` of which is given up at a random point of its answer."""
    chance = random.Random(seed)
    for question in questions:
        leaves = question.stream and chance.random() < share
        yield replace(question, leave_after=chance.randrange(question.max_tokens)) if leaves else question


async def carry_out(session: aiohttp.ClientSession, order: Order) -> dict[str, Any]:
    """The answers of an order, and how long all of them took together."""
    began = time.perf_counter()
    if order.rate is not None:
        answers = await opened(session, order.targets[0], order.questions, order.rate, order.seed)
    else:
        answers = await closed(session, order.targets, order.questions, order.concurrency)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "answers": [asdict(answer) for answer in answers]}


def go_first() -> None:
    """Run before everything else on this machine, where that is allowed.

    On the server's own cores the client would else wait for one, for 20 ms and more at a time
    while two threads of a server hand each other the work, and that would count as the server's time.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


async def main() -> None:
    loop = asyncio.get_running_loop()
    async with client() as session:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await carry_out(session, Order.parse(line))), flush=True)


if __name__ == "__main__":
    import uvloop

    go_first()
    uvloop.run(main())
