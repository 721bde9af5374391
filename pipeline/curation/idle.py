"""Settings of curation that would change nothing, because what they belong to is not done.

A recipe that sets ``redact.email: drop`` and does not list ``redact`` says something that it does not
get, so it is refused.  There is one exception: a list of stages replaces that of the layer below
(a preset's, by the recipe's), and what the layer below set for stages that are no longer listed goes
with its list (:func:`take_out`).  Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

from pipeline import curation, schema

STAGES = "curate.stages"
CONFIGS = 1  # the rank of a preset
# Sections of stages of our own.
SECTIONS = {
    "language": "language",
    "redact": "redact",
    "decontaminate": "decontaminate",
    "exact_duplicates": "exact-duplicates",
    "near_duplicates": "near-duplicates",
    "semantic_duplicates": "semantic-duplicates",
}
# The split compares documents by these, too, whether near-duplicates are dropped or not.
USED_ANYWAY = {"near_duplicates.ngram", "near_duplicates.permutations", "near_duplicates.bands"}
RECORDS = ("jsonl", "json", "csv", "parquet", "dataset")  # sources whose documents have fields
OF_KINDS = {
    "packages": ("python-docs",),
    "text_field": RECORDS,
    "title_field": RECORDS,
    "id_field": RECORDS,
    "score_field": RECORDS,
    "embedding_field": RECORDS,
    "extractor": ("html", "warc"),
    "language": ("wikipedia",),
}

Ranks = Mapping[
    str, int
]  # of every setting that a layer set: how strong the layer is (:data:`pipeline.inert.RANKS`)


def take_out(curate: schema.Curate, ranks: Ranks) -> None:
    """Put back what weaker layers than that of ``curate.stages`` set for stages that are not listed."""
    own = ranks.get(STAGES, 0)
    order = set(curation.stage_order(curate))
    for section in curation.SECTIONS.values():
        given = getattr(curate, section)
        for name in [name for name in given if given[name] is not None and name not in order]:
            if _rank(f"curate.{section}.{name}", ranks) < own:
                del given[name]
    for section, stage in SECTIONS.items():
        if stage not in curate.stages:
            held, plain = getattr(curate, section), getattr(schema.Curate(), section)
            for each in fields(held):
                path = f"{section}.{each.name}"
                if path not in USED_ANYWAY and ranks.get(f"curate.{path}", own) < own:
                    setattr(held, each.name, getattr(plain, each.name))


def faults(curate: schema.Curate, ranks: Ranks) -> Iterator[tuple[str, str]]:
    """Settings that change nothing, as (setting, message)."""
    yield from _stages(curate, ranks)
    plain = schema.Curate()
    for section, settings in _needed(curate).items():
        holder, default = (getattr(each, section) if section else each for each in (curate, plain))
        for name, (needed, reason) in settings.items():
            if not needed and getattr(holder, name) != getattr(default, name):
                yield (
                    ".".join(part for part in ("curate", section, name) if part),
                    f"changes nothing: {reason}",
                )
    for index, source in enumerate(curate.sources):
        yield from _source(curate, index, source)


def _stages(curate: schema.Curate, ranks: Ranks) -> Iterator[tuple[str, str]]:
    """Settings of stages that are not listed."""
    order = set(curation.stage_order(curate))
    for kind, section in curation.SECTIONS.items():
        for name, given in getattr(curate, section).items():
            if given is not None and name not in order:
                how = f"{name!r} or 'filters'" if kind == "filter" else repr(name)
                path = f"curate.{section}.{name}"
                yield (
                    next((each for each in ranks if each.startswith(f"{path}.")), path),  # it has a line
                    f"changes nothing: curate.stages does not list the {kind} {name}; add {how} to it, or take this out",
                )
    for section, stage in SECTIONS.items():
        if stage in curate.stages:
            continue
        held, plain = getattr(curate, section), getattr(schema.Curate(), section)
        names = [each.name for each in fields(held) if f"{section}.{each.name}" not in USED_ANYWAY]
        own = ranks.get(STAGES, 0)
        said = [name for name in names if ranks.get(f"curate.{section}.{name}", -1) >= own]
        changed = [name for name in names if getattr(held, name) != getattr(plain, name)]
        # A file that says all of a section's defaults is a whole recipe written down.
        for name in changed or (said if len(said) < len(names) else ()):
            yield (
                f"curate.{section}.{name}",
                f"means nothing without the stage {stage!r}: add it to curate.stages, or take this out",
            )
    written = ranks.get(STAGES, 0) > CONFIGS and "filters" in curate.stages
    if written and not any(given is not None for given in curate.filters.values()):
        yield STAGES, "lists 'filters', and curate.filters gives none: give some, or take it out of the list"


def _needed(curate: schema.Curate) -> dict[str, dict[str, tuple[bool, str]]]:
    """By section: settings, whether what they are for is done, and what is missing where it is not."""
    given = any((curate.instructions, curate.preferences, curate.scored.path))
    made = given or curate.pairs or "pairs" in curate.synthetic.tasks
    near, semantic = curate.near_duplicates, curate.semantic_duplicates
    listed = "near-duplicates" in curate.stages
    theirs = "neither curate.instructions nor curate.preferences nor curate.scored.path is given"
    nothing = "there are no pairs: curate.pairs is false and no file of chats or pairs is given"
    tasks = "curate.synthetic.tasks names none"
    sections: dict[str, dict[str, tuple[bool, str]]] = {
        "": {
            "max_epochs": (curate.tokens > 0, "no source is repeated without a budget (curate.tokens)"),
            "content_share": (curate.pairs, "curate.pairs is false"),
            "chat_tokens": (given or "pairs" in curate.synthetic.tasks, theirs),
            "max_pairs": (made, nothing),
            "attributes": (made, nothing),
        },
        "prompts": {
            **dict.fromkeys(("ngram", "permutations", "bands", "threshold"), (given, theirs)),
            "repeats": (made, nothing),
        },
        "scored": dict.fromkeys(("policy", "min_margin", "pairs_per_prompt"), (curate.scored.path is not None, "curate.scored.path is not given")),
        "synthetic": {
            each.name: (bool(curate.synthetic.tasks), tasks)
            for each in fields(schema.Synthetic)
            if each.name != "tasks"
        },
        "near_duplicates": {
            "char_ngrams": (
                not listed or near.engine == "curator-gpu",
                "it is for the engine curator-gpu; that of rensa is curate.near_duplicates.ngram",
            ),
            "threshold": (
                not listed or near.engine == "rensa",
                "with the engine curator-gpu the bands alone decide (curate.near_duplicates.bands)",
            ),
        },
        "semantic_duplicates": {
            "max_tokens": (
                "semantic-duplicates" not in curate.stages or semantic.model is not None,
                "the embeddings come with the data; no model makes any",
            ),
        },
        "redact": {
            "phone_regions": (
                "redact" not in curate.stages or curate.redact.phone != "keep",
                "curate.redact.phone is keep",
            ),
        },
    }  # fmt: skip
    if curate.synthetic.tasks and "pairs" not in curate.synthetic.tasks:
        sections["synthetic"]["min_critique_score"] = (False, "'pairs' is not among curate.synthetic.tasks")
    return sections


def _source(curate: schema.Curate, index: int, source: schema.Source) -> Iterator[tuple[str, str]]:
    """Settings of one source that are for other kinds, or for stages that are not listed."""
    path, plain = f"curate.sources.{index}", schema.Source()
    for name, kinds in OF_KINDS.items():
        if source.kind not in kinds and getattr(source, name) != getattr(plain, name):
            yield f"{path}.{name}", f"changes nothing: it is for sources of kind {', '.join(kinds)}"
    if source.score_field and not any(
        stage in curate.stages and getattr(curate, section).which == "best-score"
        for section, stage in SECTIONS.items()
        if stage in curation.WHOLE_CORPUS
    ):
        yield f"{path}.score_field", "changes nothing: no listed stage keeps the best-score of its duplicates"
    if source.embedding_field and (
        "semantic-duplicates" not in curate.stages or curate.semantic_duplicates.model is not None
    ):
        yield (
            f"{path}.embedding_field",
            "changes nothing: semantic-duplicates is not listed, or curate.semantic_duplicates.model embeds",
        )
    if source.weight is not None and len(curate.sources) == 1 and not curate.tokens:
        yield f"{path}.weight", "changes nothing: there is no other source to weigh it against"


def _rank(path: str, ranks: Ranks) -> int:
    """The strongest layer that set something at a path or below it."""
    found = [rank for name, rank in ranks.items() if name == path or name.startswith(f"{path}.")]
    return max(found, default=0)
