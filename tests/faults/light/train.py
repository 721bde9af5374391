"""Gradient descent on a line through the documents' lengths, with checkpoints.

Bit-identical only if a resumed run goes on exactly where the checkpoint was: weights,
momentum, data order and step all have to come back.  LIGHT_PACE_S slows a step down;
LIGHT_STUBBORN makes it deaf to SIGTERM.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import time

from pipeline.schema import Train
from pipeline.stages.step import Step, read_jsonl

STEPS, EVERY = 40, 8


def run(step: Step) -> None:
    """Go on from the last sealed checkpoint."""
    texts = [record["text"] for record in read_jsonl(step.inputs["data"] / "data.jsonl")]
    points = [(len(text) / 50, sum(map(ord, text)) / 5000) for text in texts]
    random_state = random.Random(step.section(Train).seed)
    weights, momentum, done, loss = [0.0, 0.0], [0.0, 0.0], 0, 0.0
    folder = step.state / "checkpoints"
    folder.mkdir(exist_ok=True)
    complete = sorted(path for path in folder.glob("step_*") if path.suffix != ".part")
    if complete:
        kept = json.loads((complete[-1] / "state.json").read_text())
        weights, momentum, done = kept["weights"], kept["momentum"], kept["done"]
        loss = kept["loss"]
        random_state.setstate((kept["random"][0], tuple(kept["random"][1]), kept["random"][2]))
        step.message(f"went on from step {done}")
    if os.environ.get("LIGHT_STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while done < STEPS:
        time.sleep(float(os.environ.get("LIGHT_PACE_S", "0")))
        x, y = points[random_state.randrange(len(points))]
        error = weights[0] + weights[1] * x - y
        for place, gradient in enumerate((error, error * x)):
            momentum[place] = 0.9 * momentum[place] - 0.01 * gradient
            weights[place] += momentum[place]
        done += 1
        loss = error * error
        step.metric(done, loss=loss)
        step.progress(done, STEPS, "steps")
        if done % EVERY == 0:
            part = folder / f"step_{done:03d}.part"
            part.mkdir(exist_ok=True)
            state = {
                "weights": weights,
                "momentum": momentum,
                "done": done,
                "loss": loss,
                "random": random_state.getstate(),
            }
            (part / "state.json").write_text(json.dumps(state))
            part.rename(folder / f"step_{done:03d}")
            step.seal(folder / f"step_{done:03d}")
    (step.output / "model").mkdir()
    (step.output / "model" / "weights").write_bytes(struct.pack("<2d", *weights))
    step.finish(metrics={"loss": loss}, headline=f"loss {loss:.3f}")
