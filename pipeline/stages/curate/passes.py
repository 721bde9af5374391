"""From the names in ``curate.stages`` to passes over the shards.

Stages that look at one document at a time run together in one pass.  A stage that needs
the whole corpus ends its pass: workers measure every document, the measures are compared
once, and the next pass begins by dropping what was found, through Curator's removal stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.text.deduplication.removal import TextDuplicatesRemovalStage
from nemo_curator.tasks import DocumentBatch

from pipeline import curation
from pipeline.schema import Curate
from pipeline.stages.curate.catalogue import load
from pipeline.stages.curate.duplicates import find, on_gpu
from pipeline.stages.curate.duplicates.embedded import corpus_pairs
from pipeline.stages.curate.duplicates.measures import ContentKeys, Signatures, Standing
from pipeline.stages.curate.language import IdentifyLanguage, check_codes
from pipeline.stages.curate.redact import RedactText
from pipeline.stages.curate.shards import Measure
from pipeline.stages.curate.text_stages import FilterText, ModifyText, Told
from pipeline.stages.step import InputError

# Parameters with which a filter cannot score this, it can score nothing with.
PROBE = "The town council met on Tuesday to talk about the bridge. It was open again in the spring.\n" * 4
REASONS = {
    "exact-duplicates": "exact duplicate",
    "near-duplicates": "near-duplicate",
    "semantic-duplicates": "semantic duplicate",
}


@dataclass
class Pass:
    """Stages that run together, and the whole-corpus stage that ends them, if any."""

    names: list[str] = field(default_factory=list)
    whole: str | None = None


def passes(curate: Curate) -> list[Pass]:
    """The passes of a recipe; the last one ends with no whole-corpus stage."""
    found = [Pass()]
    for name in curation.stage_order(curate):
        if name in curation.WHOLE_CORPUS:
            found[-1].whole = name
            found.append(Pass())
        elif name != "decontaminate":  # after the split: it is the training data that is cleaned
            found[-1].names.append(name)
    return found


def require(curate: Curate) -> None:
    """Raise :class:`InputError` for stages that cannot run on this machine."""
    for name in curation.stage_order(curate):
        entry = curation.entry_of(name)
        if entry is not None and entry["kind"] == "classifier":
            _require_gpu(name)
        if name == "language":
            check_codes(curate.language)
        if name == "near-duplicates" and curate.near_duplicates.engine == "curator-gpu":
            on_gpu.require()


def build(names: list[str], curate: Curate) -> list[ProcessingStage[DocumentBatch, DocumentBatch]]:
    """The stage objects of a pass; neighbouring filters become one stage.

    Raises :class:`InputError` for parameters that Curator refuses.
    """
    stages: list[ProcessingStage[DocumentBatch, DocumentBatch]] = []
    filters: list[tuple[str, Any]] = []
    for name in names:
        entry = curation.entry_of(name)
        if entry is not None and entry["kind"] == "filter":
            filters.append((name, make(name, curate)))
            continue
        if filters:
            stages.append(FilterText(filters))
            filters = []
        stages.append(_own(name, curate) if entry is None else _curators(name, entry["kind"], curate))
    return [*stages, FilterText(filters)] if filters else stages


def make(name: str, curate: Curate) -> Any:
    """An object of a class of Curator with the recipe's parameters."""
    given = curation.parameters(curate, name)
    cls = load(curation.class_of(name))
    if cls.__name__ == "TokenCountFilter":
        return _token_count(cls, given)
    if cls.__name__ == "HistogramFilter" and not (Path(given["cache_dir"]) / "histograms").is_dir():
        raise InputError(
            f"curate.filters.{name}: {given['cache_dir']} holds no folder 'histograms'; Curator would fetch it "
            "from the network, which a step never does"
        )
    try:
        made = cls(**given)
        if entry_kind(name) == "filter" and not any(
            hasattr(made, each) for each in ("load_model", "load_tokenizer")
        ):
            made.score_document(PROBE)
        return made
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"curate.{_section(name)}.{name}: {first}") from None


def entry_kind(name: str) -> str:
    """What a class of Curator is: filter, modifier or classifier."""
    return str(curation.catalogue()[curation.class_of(name)]["kind"])


def _section(name: str) -> str:
    return curation.SECTIONS[entry_kind(name)]


def _token_count(cls: type, given: dict[str, Any]) -> Any:
    folder = Path(given["hf_model_name"])
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"curate.filters.TokenCountFilter.hf_model_name: {folder} is no local folder with a tokenizer.json"
        )
    from transformers import PreTrainedTokenizerFast

    bounds = {
        key: value
        for key, value in given.items()
        if key in ("min_tokens", "max_tokens") and value is not None
    }
    return cls(tokenizer=PreTrainedTokenizerFast.from_pretrained(folder), **bounds)


def _own(name: str, curate: Curate) -> ProcessingStage[DocumentBatch, DocumentBatch]:
    if name == "language":
        return IdentifyLanguage(curate.language)
    if name == "redact":
        return RedactText(curate.redact)
    raise AssertionError(name)


def _curators(name: str, kind: str, curate: Curate) -> ProcessingStage[DocumentBatch, DocumentBatch]:
    if kind == "modifier":
        return ModifyText(name, make(name, curate))
    given = curation.parameters(curate, name)
    # Not executed here: Curator's classifiers need a GPU.
    return Told(name, make(name, curate), f"not in {given.get('filter_by') or 'the wanted classes'}")


def _require_gpu(name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"curate.stages: {name} is a model-based classifier of NeMo Curator and needs an NVIDIA GPU; there is "
            "none here. Leave it out, or run curation on a site with GPUs"
        )


def measures(whole: str | None, curate: Curate) -> list[Measure]:
    """What the workers of a pass measure for the stage that ends it."""
    if whole == "exact-duplicates":
        return [Standing(), ContentKeys(curate.exact_duplicates.fold)]
    if whole == "near-duplicates":
        near = curate.near_duplicates
        if near.engine == "curator-gpu":
            return [Standing()]
        return [Standing(), Signatures("signatures", near.ngram, near.permutations)]
    if whole == "semantic-duplicates":
        return [Standing()]
    return []


def find_duplicates(
    whole: str, shards: list[Path], curate: Curate, target: Path, scratch: Path, progress: Callable[..., None]
) -> find.Found:
    """Run the whole-corpus stage over finished shards; its removals go to the folder ``target``."""
    corpus = find.Corpus(shards)
    if whole == "exact-duplicates":
        return find.exact(corpus, curate.exact_duplicates.which, curate.memory_mb, target)
    if whole == "near-duplicates":
        near = curate.near_duplicates
        if near.engine == "curator-gpu":
            labels = on_gpu.labels(shards, corpus.starts, near, scratch)
            return find.by_labels(corpus, labels, near.which, target)
        return find.near(corpus, near.bands, near.threshold, near.which, curate.memory_mb, target, scratch)
    settings = curate.semantic_duplicates
    pairs = corpus_pairs(corpus, settings, curate.memory_mb, scratch, progress)
    return find.by_pairs(corpus, pairs, settings.which, curate.memory_mb, target)


def removal(whole: str, target: Path) -> ProcessingStage[DocumentBatch, DocumentBatch]:
    """Curator's removal stage for the duplicates listed in ``target``."""
    inner = TextDuplicatesRemovalStage(
        ids_to_remove_path=str(target / find.REMOVALS), id_field="number", duplicate_id_field="id"
    )
    return Told(whole, inner, REASONS[whole])
