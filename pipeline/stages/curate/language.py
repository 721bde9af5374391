"""Language identification: Curator's fastText filter with a model file, CLD2 without one."""

from __future__ import annotations

import ast
from typing import Any

import pandas as pd
from nemo_curator.backends.base import WorkerMetadata
from nemo_curator.tasks import DocumentBatch

from pipeline.schema import Language
from pipeline.stages.curate.text_stages import TextStage, _row, ledger_of, with_rows
from pipeline.stages.step import InputError

UNKNOWN = "un"  # ISO 639-2's "und" is CLD2's "un"


class IdentifyLanguage(TextStage):
    """Writes ``language`` beside every document and drops those in unwanted languages."""

    def __init__(self, settings: Language) -> None:
        super().__init__("language")
        self.settings = settings

    def outputs(self) -> tuple[list[str], list[str]]:
        """Adds the language."""
        return ["data"], ["text", "language"]

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the fastText model, if one is given."""
        self._filter: Any = None
        if self.settings.model is not None:
            from nemo_curator.stages.text.filters.fasttext.fasttext_filters import FastTextLangId

            self._filter = FastTextLangId(model_path=self.settings.model, min_langid_score=0.0)
            try:
                self._filter.model_check_or_download()
                self._filter.load_model()
            except (ValueError, OSError, RuntimeError) as error:
                raise InputError(f"curate.language.model: {error}") from None

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        """Tell the languages of a batch."""
        frame, ledger = batch.to_pandas(), ledger_of(batch)
        kept, codes = [], []
        for place, text in enumerate(frame["text"].tolist()):
            code = self.tell(text)
            ledger.found["language", code] += 1
            reason = self._fault(code)
            if reason is None:
                kept.append(place)
                codes.append(code)
            else:
                ledger.drop(self.name, reason, {**_row(frame, place), "language": code})
        ledger.passed.append((self.name, len(frame), len(kept)))
        frame = frame.iloc[kept]
        return with_rows(batch, frame.assign(language=pd.Series(codes, index=frame.index, dtype=object)))

    def tell(self, text: str) -> str:
        """The language's code; ``un`` below the recipe's confidence."""
        code, confidence = self._fasttext(text) if self._filter is not None else cld2(text)
        return code if confidence >= self.settings.min_confidence else UNKNOWN

    def _fasttext(self, text: str) -> tuple[str, float]:
        score, label = ast.literal_eval(self._filter.score_document(text))
        return _code(str(label).split("_")[0]), float(score)

    def _fault(self, code: str) -> str | None:
        if code == UNKNOWN:
            return None if self.settings.keep_unknown else "language unknown"
        wanted = (*self.settings.keep, *self.settings.route)
        if self.settings.keep and code not in wanted:
            return f"language {code} not kept"
        return f"language {code} dropped" if code in self.settings.drop else None


def cld2(text: str) -> tuple[str, float]:
    """CLD2's best language and its share of the text; no share where CLD2 is not sure."""
    import pycld2

    try:
        reliable, _, details = pycld2.detect(text.encode("utf-8", "replace"))
    except pycld2.error:  # control characters and non-characters, which it refuses
        clean = "".join(c for c in text if c.isprintable() or c.isspace())
        try:
            reliable, _, details = pycld2.detect(clean.encode("utf-8", "replace"))
        except pycld2.error:
            return UNKNOWN, 0.0
    return _code(str(details[0][1])), details[0][2] / 100 if reliable else 0.0


# Codes that ISO 639-1 withdrew and CLD2 still gives.
WITHDRAWN = {"iw": "he", "jw": "jv", "in": "id", "ji": "yi", "mo": "ro"}


def _code(told: str) -> str:
    """A language's ISO code, without region and script."""
    code = told.split("-")[0].lower()
    return WITHDRAWN.get(code, code)


def check_codes(settings: Language) -> None:
    """Raise :class:`InputError` for a code in keep, drop or route that CLD2 never gives.

    A fastText model has its own list, and codes are taken as they are.
    """
    if settings.model is not None:
        return
    import pycld2

    # CLD2's "xx-..." names a script alone.
    known = {_code(code) for _, code in pycld2.LANGUAGES if not code.startswith("xx")} | {UNKNOWN}
    for name in ("keep", "drop", "route"):
        for code in getattr(settings, name):
            if code not in known:
                raise InputError(
                    f"curate.language.{name}: CLD2 tells no language {code!r}; give codes of ISO 639 in small "
                    "letters: en, de, zh"
                )
