"""The CPU target: OpenVINO IR made by Optimum Intel, its weights compressed by NNCF, and how it is asked.

fp32 and bf16 are the model's weights as they are and rounded; int8 is asymmetric with a scale for each
output, int4 asymmetric with a scale for each 32 inputs (embeddings and output layer stay int8), both
by ``nncf.compress_weights``.  The scales of int4 are those that keep each layer's output on texts of the training data
(NNCF's AWQ and scale estimation): half the divergence of scales that look at the weights alone (README, "Serving").
Arithmetic is fp32 whatever the weights.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stages.export.reference import padded, positions
from pipeline.stages.export.served import served_module
from pipeline.stages.step import InputError

GROUP = 32  # inputs that share an int4 scale; layers of another width get one scale an output
SAMPLES = 128  # texts at most that scales are estimated on, NNCF's own number


def convert(
    model: Any, tokenizer: Any, folder: Path, weights: str, samples: Sequence[list[int]] = ()
) -> None:
    """Write the OpenVINO IR of a causal language model (in bf16 for bf16 weights), and its tokenizer as it is.

    ``samples`` are token ids of texts like those that the model will read, for int4 weights.
    The model is stateful with a ``beam_idx`` input, which is what OpenVINO GenAI turns
    into paged attention.  Its tokenizer is not converted: OpenVINO's makes control tokens of what messages spell, and
    cleans up what it decodes.  Raises :class:`InputError` for an architecture that cannot be converted.
    """
    from optimum.exporters.openvino.convert import export_from_model

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's tracer, about branches that Optimum handles
        try:
            export_from_model(
                model=model,
                output=folder,
                task="text-generation-with-past",
                stateful=True,
                preprocessors=[tokenizer],
                patch_16bit_model=weights == "bf16",
            )
        except ValueError as error:
            raise InputError(f"OpenVINO cannot convert this model: {error}") from error
    tokenizer.save_pretrained(folder)
    if weights in ("int8", "int4"):
        _compress(folder, weights, samples)


def _compress(folder: Path, weights: str, samples: Sequence[list[int]]) -> None:
    import nncf
    import openvino

    path, small = folder / "openvino_model.xml", folder / "small.xml"
    model = openvino.Core().read_model(path)
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_ASYM}
    if weights == "int4":
        names = _inputs(model)
        texts = [_values([ids], names) for ids in samples]
        options = {
            "mode": nncf.CompressWeightsMode.INT4_ASYM,
            "group_size": GROUP,
            "dataset": nncf.Dataset(texts),
            "subset_size": len(texts),
            "awq": True,
            "scale_estimation": True,
            "advanced_parameters": nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
            ),
        }
    compressed = nncf.compress_weights(model, **options)
    openvino.save_model(compressed, small, compress_to_fp16=False)
    del compressed
    small.with_suffix(".bin").replace(path.with_suffix(".bin"))
    small.replace(path)


class Exported:
    """The exported model at work: answers by the server's own engine, logits by OpenVINO's runtime."""

    def __init__(self, version: Path, *, kv_cache_gb: int, threads: int) -> None:
        module = served_module(version, "engine")
        self.folder = version / "openvino"
        self.engine = module.Engine(self.folder, kv_cache_gb=kv_cache_gb, threads=threads, max_new_tokens=1)
        self._sampling = module.Sampling
        self._properties = module.properties(threads)
        self._request: Any = None

    def close(self) -> None:
        self.engine.close()

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """Greedy continuations of all prompts, generated together; end tokens included."""
        answers: list[list[int]] = [[] for _ in prompts]
        errors: list[str] = []
        ended = threading.Semaphore(0)

        def receiver(place: int) -> Any:
            def take(piece: Any) -> bool:
                answers[place].extend(piece.tokens)
                if piece.end_token is not None:
                    answers[place].append(piece.end_token)
                if piece.error:
                    errors.append(piece.error)
                if piece.last:
                    ended.release()
                return True

            return take

        ends = self.engine.limits.defaults["eos_token_id"]
        for place, prompt in enumerate(prompts):
            greedy = self._sampling(max_tokens=tokens, end_tokens=tuple(ends))
            self.engine.submit_tokens(prompt, greedy, receiver(place))
        for _ in prompts:
            ended.acquire()
        if errors:
            raise RuntimeError(f"the exported model does not answer: {errors[0]}")
        return answers

    def logits(self, sequences: list[list[int]], last: list[int]) -> list[np.ndarray]:
        """The distributions after each of the ``last`` tokens of each sequence of a batch: (tokens, vocabulary)."""
        import openvino

        if self._request is None:
            model = openvino.Core().compile_model(self.folder / "openvino_model.xml", "CPU", self._properties)
            self._request = model.create_infer_request()
            self._names = _inputs(model)
        self._request.reset_state()
        found = self._request.infer(_values(sequences, self._names))
        wide = found["logits"]
        return [np.array(wide[row, wide.shape[1] - count :]) for row, count in enumerate(last)]


def _inputs(model: Any) -> set[str]:
    return {name for port in model.inputs for name in port.get_names()}


def _values(sequences: list[list[int]], names: set[str]) -> dict[str, np.ndarray]:
    """A batch of whole sequences as the model's inputs, of those that it has."""
    ids, mask = padded(sequences, pad=0)
    values = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions(mask),
        "beam_idx": np.arange(len(sequences), dtype=np.int32),
    }
    return {name: value for name, value in values.items() if name in names}
