"""The load generator against a small server that fails in many ways, and the arithmetic of the serving benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks import aiperf, load, overhead, plots, serving, soak
from benchmarks.load import OPENAI, TRITON, Answer, Figures, Order, Question, Spread, Target
from benchmarks.servers.contender import Contender, Round
from pipeline import recipe
from pipeline.toolchains import ROOT

PAUSE_S = 0.03
USER = ({"role": "user", "content": "?"},)


def event(text: str = "", reason: str | None = None, tokens: int | None = None) -> bytes:
    choices = [] if tokens is not None else [{"delta": {"content": text}, "finish_reason": reason}]
    usage = {"completion_tokens": tokens, "prompt_tokens": 7} if tokens is not None else None
    return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"


def triton_event(text: str, reason: str, tokens: int) -> bytes:
    found = {"text_output": text, "finish_reason": reason, "completion_tokens": tokens, "prompt_tokens": 7}
    return b"data: " + json.dumps(found).encode() + b"\n\n"


class Server:
    """Answers as the request's ``user`` field (or ``stop_words``) says."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.under_way = self.most = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.asked.append({**asked, "authorization": request.headers.get("Authorization")})
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self.answer(request, asked, asked.get("user", ""))
        finally:
            self.under_way -= 1

    async def answer(self, request: web.Request, asked: dict[str, Any], how: str) -> web.StreamResponse:
        if how == "refuse":
            return web.json_response({"error": {"message": "no"}}, status=400)
        count = asked["max_tokens"] - (how == "short")
        if not asked["stream"]:
            choice = {"message": {"content": "abc"}, "finish_reason": "length"}
            usage = {"completion_tokens": count, "prompt_tokens": 7}
            return web.json_response({"choices": [choice], "usage": usage})
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionResetError):
            for number in range(count):
                await asyncio.sleep(PAUSE_S)
                await response.write(event(f"{number} "))
                if how == "break" and number == 1:
                    request.transport.abort()  # type: ignore[union-attr]
                if how == "end" and number == 1:
                    return response
                if how == "error" and number == 1:
                    await response.write(b'data: {"error": {"message": "the model failed"}}\n\n')
            await response.write(event(reason="length") + event(tokens=count) + b"data: [DONE]\n\n")
        return response

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.asked.append(asked)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(triton_event("", "", 0))
        await response.write(triton_event("a", "", 1) + triton_event("b", "length", asked["max_tokens"]))
        return response


def ask(*questions: Question, protocol: str = OPENAI, **settings: Any) -> tuple[Server, list[Answer], float]:
    """The answers of an order that has been through JSON, as between two processes."""
    server = Server()

    async def go() -> dict[str, Any]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.chat)
        app.router.add_post("/v2/models/m/generate_stream", server.generate)
        async with TestServer(app) as running, load.client() as session:
            target = Target(
                protocol, str(running.make_url("")).rstrip("/"), "m", "secret", {"ignore_eos": True}
            )
            order = Order((target,), questions, **settings)
            return await load.carry_out(session, Order.parse(json.dumps(asdict(order))))

    found = json.loads(json.dumps(asyncio.run(go())))
    return server, [Answer(**answer) for answer in found["answers"]], found["seconds"]


def test_times_are_those_of_the_first_and_of_every_further_token() -> None:
    server, (answer,), seconds = ask(Question(USER, 5))
    assert (answer.outcome, answer.tokens, answer.prompt_tokens, answer.text) == ("ok", 5, 7, "0 1 2 3 4 ")
    assert answer.first is not None
    assert answer.between is not None
    assert answer.longest is not None
    assert PAUSE_S <= answer.first < 3 * PAUSE_S
    assert answer.between == pytest.approx(PAUSE_S, rel=0.5)
    assert answer.between <= answer.longest < 3 * PAUSE_S
    assert answer.first + 4 * answer.between <= answer.seconds <= seconds
    (asked,) = server.asked
    assert asked["authorization"] == "Bearer secret"
    assert (asked["temperature"], asked["ignore_eos"], asked["stream_options"]) == (
        0.0,
        True,
        {"include_usage": True},
    )


def test_tritons_stream_and_a_whole_answer() -> None:
    server, (answer,), _ = ask(Question(USER, 2), protocol=TRITON)
    assert (answer.outcome, answer.tokens, answer.text) == ("ok", 2, "ab")
    assert json.loads(server.asked[0]["messages"]) == [dict(USER[0])]
    _, (answer,), _ = ask(Question(USER, 3, stream=False))
    assert (answer.outcome, answer.tokens, answer.text, answer.first) == ("ok", 3, "abc", None)


@pytest.mark.parametrize(
    ("how", "outcome", "why"),
    [
        ("break", "failed", "Client"),
        ("end", "truncated", "broke off"),
        ("error", "failed", "the model failed"),
        ("short", "truncated", "4 tokens, not 5"),
        ("refuse", "failed", "HTTP status 400, not 200"),
    ],
)
def test_an_answer_that_is_not_whole_is_told(how: str, outcome: str, why: str) -> None:
    _, (answer,), seconds = ask(Question(USER, 5, wrong={"user": how}))
    assert answer.outcome == outcome
    assert why in answer.why
    figures = Figures.of([answer], seconds)
    assert figures.faults == [answer.why]
    assert figures.tokens_per_s == 0


def test_a_refusal_that_was_asked_for_is_none() -> None:
    _, (answer,), _ = ask(Question(USER, 5, wrong={"user": "refuse"}, status=400))
    assert (answer.outcome, answer.why) == ("refused", "")
    _, (answer,), _ = ask(Question(USER, 5, status=400))
    assert answer.outcome == "failed"


def test_a_client_that_leaves_reads_no_further() -> None:
    server, answers, _ = ask(Question(USER, 50, leave_after=2), Question(USER, 50, leave_after=0))
    assert [answer.outcome for answer in answers] == ["cancelled", "cancelled"]
    assert answers[0].text == "0 1 "
    assert answers[0].seconds < 50 * PAUSE_S / 2
    assert len(server.asked) == 2


def test_as_many_requests_are_under_way_as_there_are_clients() -> None:
    server, answers, _ = ask(*[Question(USER, 2)] * 9, concurrency=3)
    assert server.most == 3
    assert sorted(answer.question for answer in answers) == list(range(9))


def test_requests_by_rate_wait_for_nobody_and_their_time_counts_from_when_they_were_due() -> None:
    server, answers, seconds = ask(*[Question(USER, 3)] * 20, rate=100.0, seed=1)
    assert server.most > 4
    assert seconds < 20 * 3 * PAUSE_S
    assert [answer.question for answer in answers] == list(range(20))
    assert {answer.outcome for answer in answers} == {"ok"}


def test_cancels_are_the_same_for_the_same_seed() -> None:
    questions = [Question(USER, 8)] * 400
    one, again, other = (list(load.with_cancels(questions, 0.25, seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert sum(question.leave_after is not None for question in one) == pytest.approx(100, abs=30)


def test_spreads_are_percentiles() -> None:
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0)
    assert Spread.of([float(n) for n in range(101)]) == Spread(50.0, 90.0, 99.0)


def samples(rate: float, step: float = 0.0) -> list[tuple[float, float]]:
    return [(float(at), 100 + rate * at + (step if at % 7 == 0 else 0)) for at in range(0, 120, 2)]


def test_growth_is_by_a_slope_that_spikes_do_not_move() -> None:
    assert soak.slope([]) == soak.slope([(1.0, 2.0)]) == 0
    assert soak.slope(samples(0.5)) == pytest.approx(0.5)
    assert soak.slope(samples(0.0, step=80.0)) == 0
    report = soak.Report(
        120.0, {}, [Answer(outcome="ok")], memory={"steady": samples(0.0, 80.0), "leak": samples(0.2)}
    )
    assert [fault.split(";")[0] for fault in report.faults()] == ["leak grew by 17.6 MB after the warm-up"]
    report.filling = {"leak": 10.0}
    assert report.faults() == []
    report = soak.Report(
        1.0, {}, [Answer(outcome="truncated", why="broke off")], ["'b', before 'a'"], gone=["model"]
    )
    assert [fault.split(":")[0] for fault in report.faults()] == [
        "model ended", "1 failed or broken answers", "1 changed answers", "not one answer",
    ]  # fmt: skip


def test_the_mixture_holds_every_kind_and_fits_the_tiny_models_context() -> None:
    chance, pool = random.Random(0), soak.prompts(["one two three four five six"] * soak.POOL)
    asked = [soak.question(OPENAI, pool, chance) for _ in range(1000)]
    kinds = [
        sum(q.status != 200 for q in asked), sum(q.leave_after is not None for q in asked),
        sum(not q.stream for q in asked), sum(not q.exact for q in asked), sum(q.leave_after == 0 for q in asked),
    ]  # fmt: skip
    assert min(kinds) > 20
    assert {len(q.messages[0]["content"].split()) for q in asked} == {6, 30}


def rounds(*rates: float, first: float, target: int = 0) -> list[Round]:
    return [
        Round(
            1.0,
            [asdict(Answer(outcome="ok", tokens=int(rate), first=first, target=target))],
            {"server": 0.5},
            0.1,
        )
        for rate in rates
    ]


def test_the_targets_are_judged_by_medians_over_rounds() -> None:
    sides = [Contender(name, {}, "fp32") for name in (serving.GATEWAY, serving.PLAIN)]
    sides[0].rounds = {8: rounds(500, 600, 90, first=0.1), 4: rounds(1, first=0.05)}
    sides[1].rounds = {8: rounds(100, 100, 100, first=0.1), 4: rounds(1, first=0.1)}
    assert serving.verdicts(sides, {1: 0.05}) == []
    sides[0].rounds = {8: rounds(499, 499, first=0.1), 4: rounds(1, first=0.051)}
    sides[1].rounds[8] = rounds(100, 100, first=0.1)
    assert [fault.split(" of ")[0] for fault in serving.verdicts(sides, {4: 0.06})] == [
        "4.99 times the tokens/s", "51%", "the gateway adds 6.0% to the time to first token at concurrency 4, not 5%",
    ]  # fmt: skip


def test_the_gateways_time_is_paired_by_question() -> None:
    answers = [
        asdict(Answer(question=number, target=target, first=0.01 * number + 0.001 * target))
        for target in (1, 0)
        for number in range(5)
    ]
    assert serving.paired(Round(1.0, answers, {}, 0.0), 1) == pytest.approx([0.001] * 5)


def test_aiperfs_export_is_read_and_a_failed_request_is_an_error(tmp_path: Path) -> None:
    times = {"unit": "ms", "p50": 5.0, "p99": 9.0}
    found: dict[str, Any] = dict.fromkeys(
        ("time_to_first_token", "inter_token_latency", "request_latency"), times
    )
    found |= {
        name: {"avg": 40.0} for name in ("request_count", "output_token_throughput", "request_throughput")
    }
    found |= {
        "request_error_rate": {"avg": 0.0},
        "osl_mismatch_count": {"avg": 0.0},
        "is_complete": True,
        "error_summary": [],
    }
    file = tmp_path / "profile_export_aiperf.json"
    file.write_text(json.dumps(found))
    level = aiperf.Level.read(4, file)
    assert aiperf.table([level])[-1] == "| 4 | 40 | 5.0 | 9.0 | 5.00 | 9.00 | 5 | 9 | 40 | 40.0 |"
    file.write_text(json.dumps(found | {"request_error_rate": {"avg": 2.5}}))
    with pytest.raises(RuntimeError, match=r"2\.5% of the requests failed"):
        aiperf.Level.read(4, file)


def test_a_plot_is_one_picture_of_its_charts() -> None:
    drawn = plots.side_by_side(
        {"one": {"a": [(1, 2), (3, 4)]}, "two": {"a": [(1, 2), (3, 5)], "b": [(1, 3)]}}, "x"
    )
    assert drawn.count("<polyline") == 3
    assert drawn.count("<svg") == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.side_by_side({"none": {"a": []}}, "x")


def test_parameters_are_counted_from_the_files_header(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "embed": {"dtype": "F32", "shape": [800, 250], "data_offsets": [0, 800_000]},
            "norm": {"dtype": "F32", "shape": [250], "data_offsets": [800_000, 801_000]},
        }
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert overhead.parameters(tmp_path) == pytest.approx(0.20025)


@pytest.mark.parametrize("size", overhead.SIZES)
def test_the_larger_models_are_settings_of_the_recipe(size: tuple[int, int, int, int]) -> None:
    model = recipe.load(overhead.RECIPE, ROOT, overhead.settings(size)).settings.model
    assert (model.hidden_size, model.intermediate_size, model.layers, model.heads) == size
