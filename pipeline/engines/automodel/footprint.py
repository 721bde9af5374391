"""What the processes of a training hold in memory, item by item, measured while it trains.

    with footprint.measured(step, recipe):
        recipe.run_train_validation_loop()

Asked for by ``"extra": {"footprint": true}`` in the job file (``lifecycle plan --calibrate``, the tests); each process
leaves ``work/footprint-RANK.json``.  Nothing of what is trained changes, only its speed.

What stays (weights, adapters, a frozen reference, optimiser states, gradients, DDP's buckets) is found by walking over
the model and the optimiser, and every storage is counted once: tied weights are one, a shard of FSDP2 counts as what
this process holds.  What comes and goes is followed by a ``TorchDispatchMode`` around each micro batch: every storage
that an operation returns is held by a weak reference until it dies, as PyTorch's own
``torch.distributed._tools.mem_tracker`` does.  ``saved_tensors_hooks`` would see what the forward pass keeps, but neither
the working memory of the backward pass nor what checkpointing computes again, and those make the peak of a
recomputed layer.  Scratch memory inside a kernel is not seen; ``rss``, the process's largest resident set, has it, with
Python, the libraries and all else.

Items of what comes and goes, each at its own highest moment of a micro batch:

- ``logits``: tensors as wide as the vocabulary: logits, log-softmax, their gradients, and gradients of the output
  layer and of the embeddings on their way to ``.grad``;
- ``buffers``: weights that FSDP2 has gathered and gradients that it is scattering, and bf16 copies of weights;
- ``activations``: everything else;
- ``unsharded``: whole gradients that FSDP2 keeps between the micro batches of a step.

``peak`` is the highest moment of all of these and of new gradients together.
"""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.engines.automodel.examples import IGNORED
from pipeline.stages.step import Step, write_json

ITEMS = ("activations", "logits", "buffers", "unsharded", "gradients")
SHARDING = "fsdp/_fully_shard"  # in the path of FSDP2's code, which allocates nothing but buffers
REBUILDING = ("nn/parallel/distributed.py", "_pre_forward")  # where DDP makes its buckets anew, once


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass: its size, and the highest bytes of each item."""

    step: int
    sequences: int  # rows of a padded batch, sequences of a packed one
    length: int  # of the longest
    tokens: int  # padding included
    labels: int
    bytes: dict[str, int]


@dataclass
class Held:
    """Bytes of what stays, in this process."""

    weights: int = 0  # without the adapters'
    adapters: int = 0
    trained: int = 0
    constants: int = 0  # the model's buffers
    reference: int = 0
    gradients: int = 0
    optimiser: int = 0
    buckets: int = 0


class Follower(TorchDispatchMode):
    """Follows the storages that operations make, from one micro batch to the next, until they die."""

    def __init__(self, model: Any, vocabulary: int) -> None:
        super().__init__()
        self._model, self._vocabulary = model, vocabulary
        self._known: dict[int, Any] = {}
        self._weights: set[int] = set()
        self._live: dict[int, tuple[Any, str, int]] = {}
        self._resized: dict[int, Any] = {}  # FSDP2 empties and fills the same storages
        self.now = dict.fromkeys(ITEMS, 0)
        self.begin((), ())

    def begin(self, standing: Iterable[Any], weights: Iterable[Any], gathered: Iterable[Any] = ()) -> None:
        """Start a micro batch: ``standing`` tensors are counted elsewhere, copies of ``weights`` are buffers.

        ``gathered`` are whole weights that FSDP2 made before this began.
        """
        self._weights = {storage._cdata for storage in storages(weights)}
        self._known = {}
        for storage in storages([*standing, *weights]):
            self._leave(storage)
        for storage in storages(gathered):
            if storage._cdata not in self._live:
                self._follow(storage, "buffers")
        self._adopt()
        self.highest, self.peak = dict(self.now), sum(self.now.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        fresh = False
        for tensor in tree_leaves(made):
            for storage in storages([tensor]):
                fresh |= self._meet(storage, tensor, func, args)
        if fresh or self._resized:
            self._look()
        return made

    def _meet(self, storage: Any, tensor: Any, func: Any, args: Any) -> bool:
        key = storage._cdata
        if key in self._known or key in self._live:
            return False
        kind = self._kind(tensor, func, args)
        if kind is None:
            self._leave(storage)
            return False
        self._follow(storage, kind)
        return True

    def _follow(self, storage: Any, kind: str) -> None:
        key = storage._cdata
        reference = weakref.ref(storage, lambda _: self._drop(key))
        self._live[key] = (reference, kind, storage.nbytes())
        self.now[kind] += storage.nbytes()
        if kind == "buffers":
            self._resized[key] = reference

    def _leave(self, storage: Any) -> None:
        """Count a storage elsewhere, for as long as it lives: its address may be another's afterwards."""
        key = storage._cdata
        self._known[key] = weakref.ref(storage, lambda _: self._known.pop(key, None))

    def _kind(self, tensor: Any, func: Any, args: Any) -> str | None:
        """The item that a new storage belongs to, by who made it; None where it is counted with what stays."""
        frame: Any = sys._getframe(3)
        while frame is not None:
            path = frame.f_code.co_filename
            if SHARDING in path:
                return "buffers"
            if frame.f_code.co_name == REBUILDING[1] and path.endswith(REBUILDING[0]):
                return None
            frame = frame.f_back
        if func._schema.is_mutable:
            return None  # written into, not made: a bucket of DDP's
        if func is torch.ops.aten._to_copy.default and any(
            s._cdata in self._weights for s in storages(args[:1])
        ):
            return "buffers"
        return "logits" if self._vocabulary in tensor.shape else "activations"

    def _drop(self, key: int) -> None:
        _, kind, bytes_ = self._live.pop(key)
        self._resized.pop(key, None)
        self.now[kind] -= bytes_

    def _change(self, key: int, kind: str, bytes_: int) -> None:
        reference, before, old = self._live[key]
        self._live[key] = (reference, kind, bytes_)
        self.now[before] -= old
        self.now[kind] += bytes_

    def _adopt(self) -> None:
        """Call gradients what has become one."""
        kept = [(p.grad, "gradients") for p in self._model.parameters()]
        for parameter in sharded_parameters(self._model):
            kept.append((parameter.unsharded_accumulated_grad, "unsharded"))
            # In the precision that is added up it is kept as it is, else converted at the end of its unit.
            whole = getattr(getattr(parameter, "_unsharded_param", None), "grad", None)
            kept.append((whole, "gradients" if getattr(parameter, "reduce_dtype", None) else "unsharded"))
        for tensor, kind in kept:
            for storage in storages([tensor]):
                key = storage._cdata
                if key in self._live and self._live[key][1] != kind:
                    self._change(key, kind, storage.nbytes())
                    self._resized.pop(key, None)

    def _look(self) -> None:
        """Compare this moment with the highest."""
        for key, reference in list(self._resized.items()):
            storage = reference()
            if storage is not None and storage.nbytes() != self._live[key][2]:
                self._change(key, "buffers", storage.nbytes())
        if sum(self.now.values()) <= self.peak and all(
            self.now[kind] <= self.highest[kind] for kind in ITEMS
        ):
            return
        self._adopt()
        for kind, bytes_ in self.now.items():
            if bytes_ > self.highest[kind]:
                self.highest[kind] = bytes_
        self.peak = max(self.peak, sum(self.now.values()))


class Meter:
    """Measures one recipe, which has been set up, while it trains."""

    def __init__(self, recipe: Any) -> None:
        self._recipe, self._model = recipe, recipe.model_parts[0]
        self._held, self._micro_batches = Held(), list[MicroBatch]()
        config = getattr(self._model, "module", self._model).config
        self._follower = Follower(self._model, config.vocab_size)

    def _reference(self) -> list[Any]:
        copies = getattr(self._recipe, "_frozen", {}).values()
        return [tensor for model in copies for tensor in (*own_parameters(model), *model.buffers())]

    def _states(self) -> list[Any]:
        return [
            leaf for o in self._recipe.optimizer for s in o.state.values() for leaf in tree_leaves(dict(s))
        ]

    def micro_batch(
        self, pass_: Callable[..., None], index: int, batch: dict[str, Any], **named: Any
    ) -> None:
        """Run ``pass_``, a forward and backward pass, and note what it held."""
        weights = [*own_parameters(self._model), *self._reference()]
        gradients = [p.grad for p in weights if p.grad is not None]
        constants = list(self._model.buffers())
        standing = [*constants, *gradients, *self._states(), *tree_leaves(batch)]
        models = [self._model, *getattr(self._recipe, "_frozen", {}).values()]
        gathered = [t for m in models for record in sharded_parameters(m) for t in record.all_gather_outputs]
        self._follower.begin(standing, weights, gathered)
        with self._follower:
            pass_(index, batch, **named)
        rows, longest = batch["labels"].shape
        ends = batch.get("cu_seq_lens_q")
        self._micro_batches.append(
            MicroBatch(
                step=self._recipe.step_scheduler.step,
                sequences=rows if ends is None else len(ends) - 1,
                length=longest if ends is None else batch["max_length_q"],
                tokens=rows * longest,
                labels=int((batch["labels"] != IGNORED).sum()),
                bytes={**self._follower.highest, "peak": self._follower.peak},
            )
        )

    def before_update(self, *_: Any) -> None:
        """Gradients are whole now; called by the optimiser."""
        self._held.gradients = size(p.grad for p in self._model.parameters())

    def result(self) -> dict[str, Any]:
        """Everything that was measured, as JSON values."""
        held, named = self._held, dict(self._model.named_parameters())
        held.adapters = size(p for name, p in named.items() if "lora_" in name)
        held.weights = size(named.values()) - held.adapters
        held.trained = size(p for p in named.values() if p.requires_grad)
        held.constants = size(self._model.buffers())
        held.reference = size(self._reference())
        held.optimiser = size(self._states())
        if isinstance(self._model, DistributedDataParallel):
            told = self._model._get_ddp_logging_data()
            sizes = told.get("rebuilt_bucket_sizes") or told["bucket_sizes"]
            held.buckets = sum(map(int, sizes.split(",")))
        return {
            "held": asdict(held),
            "micro_batches": [asdict(each) for each in self._micro_batches],
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


@contextmanager
def measured(step: Step, recipe: Any) -> Iterator[None]:
    """Measure what ``recipe`` trains in this context, and leave it in the step's work folder."""
    meter, plain = Meter(recipe), recipe._forward_backward_step
    recipe._forward_backward_step = lambda index, batch, **named: meter.micro_batch(
        plain, index, batch, **named
    )
    hooks = [optimiser.register_step_pre_hook(meter.before_update) for optimiser in recipe.optimizer]
    try:
        yield
    finally:
        del recipe._forward_backward_step
        for hook in hooks:
            hook.remove()
    write_json(step.work / f"footprint-{recipe.dist_env.rank}.json", meter.result())


def sharded_parameters(model: Any) -> Iterator[Any]:
    """FSDP2's own records of the parameters that it shards; none of any other model."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            group = module._get_fsdp_state()._fsdp_param_group
            yield from group.fsdp_params if group else ()


def own_parameters(model: Any) -> list[Any]:
    """What this process holds of a model: FSDP2's shards, whether or not they are gathered at the moment."""
    return [record.sharded_param for record in sharded_parameters(model)] or list(model.parameters())


def storages(values: Iterable[Any]) -> Iterator[Any]:
    """The storages of the tensors among ``values``; of a sharded one what this process holds."""
    for value in values:
        if isinstance(value, DTensor):
            value = value._local_tensor
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            yield value.untyped_storage()


def size(values: Iterable[Any]) -> int:
    """Bytes of tensors in this process, shared storage counted once."""
    return sum({storage._cdata: storage.nbytes() for storage in storages(values)}.values())
