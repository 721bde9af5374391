"""The stages that documents pass one by one: Curator stages over a batch of documents.

Each is a ``ProcessingStage[DocumentBatch, DocumentBatch]`` like Curator's own, runs under
any of its executors, and keeps in the batch's metadata what Curator's do not: which
document was dropped by what and why, and how many were changed (:class:`Ledger`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from nemo_curator.backends.base import WorkerMetadata
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch

from pipeline.stages.curate.quick import Text, modify_function, score_function
from pipeline.stages.step import InputError

LEDGER = "ledger"
SAMPLED = 16  # one document in so many


@dataclass
class Ledger:
    """What happened to the documents of one batch.

    ``dropped`` counts by (stage, reason); ``rows`` are the dropped documents themselves,
    kept on request; ``changed`` and ``found`` count changed documents by stage and finds
    by (stage, kind); ``passed`` how many documents each stage got and let through.
    """

    keep_rows: bool = False
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    passed: list[tuple[str, int, int]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def drop(self, stage: str, reason: str, row: dict[str, Any]) -> None:
        """Put a document down as dropped; samples of the data card are kept in any case."""
        self.dropped[stage, reason] += 1
        if self.keep_rows or is_sample(row.get("id")):
            self.rows.append({**row, "dropped_by": stage, "reason": reason})


def is_sample(identifier: Any) -> bool:
    """Whether a document's way may be shown in the data card: one in ``SAMPLED``, by its id."""
    return hashlib.sha256(f"sample\0{identifier}".encode("utf-8", "replace")).digest()[0] < 256 // SAMPLED


def ledger_of(batch: DocumentBatch) -> Ledger:
    """The batch's ledger; a batch of someone else's pipeline gets one."""
    found = batch._metadata.setdefault(LEDGER, Ledger())
    assert isinstance(found, Ledger)
    return found


def with_rows(batch: DocumentBatch, frame: pd.DataFrame) -> DocumentBatch:
    """The batch with other documents and the same metadata."""
    return DocumentBatch(
        dataset_name=batch.dataset_name,
        data=frame,
        _metadata=batch._metadata,
        _stage_perf=batch._stage_perf,
    )


class TextStage(ProcessingStage[DocumentBatch, DocumentBatch]):
    """A stage over the texts of a batch; subclasses say what becomes of one document.

    With ``titles`` the documents' names pass it too: they stand above the texts in the
    training data, and in the questions of instruction pairs.
    """

    _is_abstract_root = True
    titles = False

    def __init__(self, name: str) -> None:
        self.name = name

    def inputs(self) -> tuple[list[str], list[str]]:
        """Needs the text."""
        return ["data"], ["text"]

    def outputs(self) -> tuple[list[str], list[str]]:
        """Leaves the text."""
        return ["data"], ["text"]

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        """Pass every document through :meth:`one`."""
        frame, ledger = batch.to_pandas(), ledger_of(batch)
        texts = frame["text"].tolist()
        names = frame["name"].tolist() if self.titles and "name" in frame else None
        kept: list[int] = []
        for place, text in enumerate(texts):
            outcome, reason = self.one(text, ledger)
            title, fault = self.title(names[place], ledger) if names and names[place] else (None, "")
            if outcome is None or fault:
                ledger.drop(self.name, reason or fault, _row(frame, place))
                continue
            if outcome != text or (title is not None and names and title != names[place]):
                ledger.changed[self.name] += 1
                texts[place] = outcome
            if title is not None and names:
                names[place] = title
            kept.append(place)
        ledger.passed.append((self.name, len(texts), len(kept)))
        if len(kept) < len(texts):
            frame = frame.iloc[kept]
        columns = {"text": texts, **({} if names is None else {"name": names})}
        series = {
            column: pd.Series([values[p] for p in kept], index=frame.index, dtype=object)
            for column, values in columns.items()
        }
        return with_rows(batch, frame.assign(**series))

    def one(self, text: str, ledger: Ledger) -> tuple[str | None, str]:
        """The document's new text, or None and why it is dropped."""
        raise NotImplementedError

    def title(self, name: str, ledger: Ledger) -> tuple[str, str]:
        """The document's new name, and why the document is dropped for it, if it is."""
        outcome, reason = self.one(name, ledger)
        return outcome or "", reason


class ModifyText(TextStage):
    """One of Curator's modifiers."""

    def __init__(self, name: str, modifier: Any) -> None:
        super().__init__(name)
        self.modifier = modifier
        self.titles = type(modifier).__name__ == "UnicodeReformatter"  # the others are for running text

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Choose the quicker way where there is one."""
        self._modify = modify_function(self.modifier)

    def one(self, text: str, ledger: Ledger) -> tuple[str | None, str]:
        """The modified text; dropped when nothing is left of it."""
        changed = self._modify(text)
        return (changed, "") if changed and not changed.isspace() else (None, "nothing is left of the text")

    def title(self, name: str, ledger: Ledger) -> tuple[str, str]:
        """A name of which nothing is left costs the document its name only."""
        return self._modify(name), ""


class FilterText(TextStage):
    """A run of Curator's filters; words and lines of a document are made once for all of them."""

    def __init__(self, filters: list[tuple[str, Any]]) -> None:
        super().__init__("+".join(name for name, _ in filters))
        self.filters = filters

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the models and tokenizers of the filters that have some."""
        for name, found in self.filters:
            for prepare in ("model_check_or_download", "load_model", "load_tokenizer"):
                # A tokenizer is a local folder here: there is nothing to download.
                if hasattr(found, prepare) and not (
                    prepare == "model_check_or_download" and hasattr(found, "_hf_model_name")
                ):
                    _prepare(name, found, prepare)
        self._scores = [(name, found, score_function(found)) for name, found in self.filters]

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        """Drop the documents that a filter does not keep, naming the filter and the score."""
        frame, ledger = batch.to_pandas(), ledger_of(batch)
        left = len(frame)
        lost: Counter[str] = Counter()
        kept = []
        for place, text in enumerate(frame["text"].tolist()):
            fault = self._fault(text)
            if fault is None:
                kept.append(place)
            else:
                lost[fault[0]] += 1
                ledger.drop(*fault, _row(frame, place))
        for name, _ in self.filters:
            ledger.passed.append((name, left, left - lost[name]))
            left -= lost[name]
        return with_rows(batch, frame.iloc[kept])

    def _fault(self, text: str) -> tuple[str, str] | None:
        parts = Text(text)
        for name, found, score_of in self._scores:
            try:
                score = score_of(parts)
                keep = _draw(found, score, text) if hasattr(found, "_alpha") else found.keep_document(score)
            except (ZeroDivisionError, ValueError, TypeError, IndexError) as error:
                # Curator's filters divide by what a strange text may not have: words, lines.
                return name, f"cannot be scored ({type(error).__name__})"
            if not keep:
                return name, _side(found, score)
        return None


def _prepare(name: str, found: Any, method: str) -> None:
    """Call a filter's own preparation; whatever it cannot load is the recipe's to mend."""
    try:
        getattr(found, method)()
    except Exception as error:  # fastText, tokenizers and others raise classes of their own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"curate.filters.{name}: it cannot load what it needs: {first}") from None


def _side(found: Any, score: Any) -> str:
    """On which side of the filter's bounds a score lies, in words that can be counted."""
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return "not kept"
    bounds = [
        (name.strip("_").replace("cutoff", "bound"), value)
        for name, value in sorted(vars(found).items())
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and ("min" in name or "max" in name or "cutoff" in name or "threshold" in name)
    ]
    low = [f"below {name} {value:g}" for name, value in bounds if score < value and "max" not in name]
    high = [f"above {name} {value:g}" for name, value in bounds if score > value and "min" not in name]
    return (low or high or ["not kept"])[0] if not (low and high) else low[0]


def _draw(found: Any, score: float, text: str) -> bool:
    """FastTextQualityFilter's chance of keeping a poor document, drawn by the text itself.

    Curator draws from NumPy's global generator, so the outcome would change with the order
    of documents and the number of workers.
    """
    digest = hashlib.sha256(f"{found._alpha}\0{text}".encode("utf-8", "replace")).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
    return bool((1.0 - uniform) ** (-1.0 / found._alpha) - 1.0 > 1 - score)  # Pareto II by inversion


def _row(frame: pd.DataFrame, place: int) -> dict[str, Any]:
    return dict(frame.iloc[place].to_dict())


class Told(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Any stage of Curator that only drops documents, with the drops put down.

    ``column`` identifies a document in the batch.
    """

    def __init__(
        self,
        name: str,
        inner: ProcessingStage[DocumentBatch, DocumentBatch],
        reason: str,
        column: str = "number",
    ) -> None:
        self.name, self.inner, self.reason, self.column = name, inner, reason, column
        self.resources = inner.resources

    def inputs(self) -> tuple[list[str], list[str]]:
        """What the inner stage needs."""
        return tuple(self.inner.inputs())

    def outputs(self) -> tuple[list[str], list[str]]:
        """What the inner stage leaves."""
        return tuple(self.inner.outputs())

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Set the inner stage up."""
        self.inner.setup(worker_metadata)

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        """Process the batch and put down which documents are missing afterwards."""
        frame, ledger = batch.to_pandas(), ledger_of(batch)
        if frame.empty:
            return batch
        after = self.inner.process(batch)
        left = after.to_pandas() if isinstance(after, DocumentBatch) else frame.iloc[:0]
        alive = set(left[self.column])
        for place, value in enumerate(frame[self.column].tolist()):
            if value not in alive:
                ledger.drop(self.name, self.reason, _row(frame, place))
        ledger.passed.append((self.name, len(frame), len(left)))
        batch._metadata[LEDGER] = ledger
        return with_rows(batch, left)
