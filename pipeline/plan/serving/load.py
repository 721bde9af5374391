"""A replica under load: what its users wait for the first token and between tokens, and the most that it can take.

A step decodes one token for each of ``b`` running requests in the time ``d(b)``; each new prompt makes one step longer by
``e(b)``, the time of a step with it less the time of one without (a prompt is not spread over steps to fill idle units,
as chunked prefill would, except where it is longer than a step may be).  With ``r`` requests a second that come at
random, a step meets the prompts that came during the one before: its mean and second moment follow from
``S' = d + e x Poisson(r S)``, with ``u = r e``::

    mean S = d / (1 - u),      L = mean S^2 / mean S = d / (1 - u) + e u / (1 - u^2)

``L`` is the mean length of the step that a newcomer finds under way.  Time to the first token: half of it, and the next
step, ``d + e (1 + r L)``, with the newcomer's prompt and those of all who came during the same step.  Inter-token latency:
the mean of the ``output - 1`` steps after that one, which forget it by a factor of ``u`` each::

    mean S + (first - mean S) u (1 - u^(output-1)) / ((1 - u) (output - 1)),   first = d + e (1 + r L)

How many run at once follows from Little's law, ``b = r x output x mean S``: one equation in one unknown, with a solution
below the largest batch ``B`` or none: then ``r`` is above the limit ``1 / (e(B) + output x d(B) / B)``.

All are means; tails need a measurement.  A simulation of the same steps, one by one, agrees (tests/unit/plan/test_fleet.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.plan.serving.engine import CHUNK, Engine, Step

HEADROOM = 0.8  # utilisation that is planned for: beyond it a queue's mean grows without bound


@dataclass(frozen=True)
class Load:
    """A replica's steady state at a rate.

    Seconds, but for requests a second, the utilisation (rate / limit) and the requests that run at once.  ``decode`` is a
    step without a prompt, ``prompt`` what one prompt adds to a step.
    """

    rate: float
    utilisation: float
    running: float
    output: int
    decode: Step
    prompt: float

    @property
    def prompts(self) -> float:
        """Share of the time that prompts take."""
        return self.rate * self.prompt

    @property
    def mean_step(self) -> float:
        """Seconds of a step, prompts included."""
        return self.decode.total / (1 - self.prompts)

    @property
    def under_way(self) -> float:
        """Mean length of the step that a newcomer finds under way."""
        return self.mean_step + self.prompt * self.prompts / (1 - self.prompts**2)

    @property
    def first_step(self) -> float:
        """Seconds of the step that reads a newcomer's prompt, with those of others who came as it did."""
        return self.decode.total + self.prompt * (1 + self.rate * self.under_way)

    @property
    def first_token(self) -> float:
        """Seconds to the first token."""
        return self.under_way / 2 + self.first_step

    @property
    def between(self) -> float:
        """Seconds between tokens."""
        left = max(1, self.output - 1)
        remembered = self.prompts * (1 - self.prompts**left) / ((1 - self.prompts) * left)
        return self.mean_step + (self.first_step - self.mean_step) * remembered


def prompt_seconds(engine: Engine, running: float, input: int, output: int) -> float:
    """What a prompt adds to a step, or to several where it is longer than one may be."""
    context, chunks = input + output // 2, math.ceil(input / CHUNK)
    without = engine.step(running, 0, context, input).total
    return chunks * (engine.step(running, input / chunks, context, input).total - without)


def most(engine: Engine, input: int, output: int) -> float:
    """Requests a second at the largest batch; 0 where none fits."""
    batch = engine.largest_batch(input + output)
    if not batch:
        return 0.0
    decode = engine.step(batch, 0, input + output // 2, input).total
    return 1 / (prompt_seconds(engine, batch, input, output) + output * decode / batch)


def under(engine: Engine, rate: float, input: int, output: int) -> Load | None:
    """The steady state at ``rate`` requests a second, or None where the replica cannot keep up."""
    from scipy.optimize import brentq

    limit = most(engine, input, output)
    if rate >= limit:
        return None

    def idle(running: float) -> float:
        """Share of time that is left beside prompts and the decoding steps of so many requests; zero in balance."""
        steps = rate * output / running  # a second
        decode = engine.step(running, 0, input + output // 2, input).total
        return 1 - rate * prompt_seconds(engine, running, input, output) - steps * decode

    # Below the rate itself times a step's least time the decoding steps would take more than there is.
    least = rate * output * engine.step(0, 0, 1, input).total * 0.5
    running = brentq(idle, least, engine.largest_batch(input + output), rtol=1e-10)
    decode = engine.step(running, 0, input + output // 2, input)
    prompt = prompt_seconds(engine, running, input, output)
    return Load(rate, rate / limit, running, output, decode, prompt)


def highest_rate(
    engine: Engine, input: int, output: int, first_token: float, between: float, utilisation: float
) -> float:
    """The highest rate that keeps both latencies and the utilisation within bounds; 0 where none does.

    All three only grow with the rate, so halving finds it.
    """

    def keeps(rate: float) -> bool:
        found = under(engine, rate, input, output)
        return found is not None and found.first_token <= first_token and found.between <= between

    high = utilisation * most(engine, input, output)
    if not high or keeps(high):
        return high
    low = high * 1e-6
    if not keeps(low):
        return 0.0
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low
