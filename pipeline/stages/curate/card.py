"""The data card's figures (``card.json``), as :mod:`pipeline.report.data_card` draws them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import curation
from pipeline.stages.curate.blend import Blend
from pipeline.stages.curate.passes import passes
from pipeline.stages.curate.shards import DOCUMENTS, DROPPED, read_rows
from pipeline.stages.curate.split import SPLITS
from pipeline.stages.curate.text_stages import is_sample
from pipeline.stages.step import Step

if TYPE_CHECKING:
    from pipeline.stages.curate.account import Account

SAMPLES = 8
SHOWN = 20_000  # characters of a sample; the page cuts them further
FAULTS = 20
KINDS = {"filter": "filter", "modifier": "modify", "classifier": "filter"}
OWN = {"language": "annotate", "redact": "modify"}


def data_card(
    step: Step, account: Account, report: dict[str, Any], raw: list[Path], faults: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything that the page shows, as plain JSON."""
    return {
        "recipe": step.recipe,
        "identity": step.identity,
        "documents": {
            "raw": account.raw + account.made,
            "unreadable": report["unreadable_records"],
            "kept": account.kept,
            "dropped": report["fates"],
        },
        "stages": list(_stages(account)),
        "lengths": {
            "before": _histogram(account.lengths["before"], "characters"),
            "after": _histogram(account.lengths["after"], "characters"),
            "tokens": _histogram(account.lengths["tokens"], "tokens"),
        },
        "languages": report["languages"] if account.languages["before"] else {},
        "duplicates": {name.removesuffix("-duplicates"): found for name, found in account.duplicates.items()},
        "redactions": report["redactions"],
        "decontamination": {
            name: {
                "ngrams": about["ngrams"],
                "common": about["common"],
                "too_short": about["too_short_entries"],
                "documents_hit": about["documents"],
            }
            for name, about in report["decontamination"].items()
        },
        "sources": _sources(account),
        "blend": _blend(account),
        "splits": {
            split: {"documents": _documents(report, split), "tokens": _tokens(account, split)}
            for split in SPLITS
        },
        "left_out": {
            name: report[name]
            for name in ("left_out_of_pairs", "cut", "unused_fields", "files_not_read", "links_outside")
            if report[name]
        },
        "instructions": report.get("instructions", {}),
        "preferences": report.get("preferences", {}),
        "samples": list(_samples(account, raw)),
        "quarantine": faults[:FAULTS],
    }


def _stages(account: Account) -> Iterator[dict[str, Any]]:
    """The stages in the order in which documents passed them."""
    order = [name for each in passes(account.curate) for name in [*each.names, each.whole] if name]
    if "decontaminate" in account.curate.stages:
        order.append("decontaminate")
    if account.by_stage()["blend"]:
        order.append("blend")
    dropped, left = account.by_stage(), account.raw + account.made
    if dropped["reading"]:
        order.insert(0, "reading")
    for name in order:
        entry = curation.entry_of(name)
        out = left - dropped[name]
        yield {
            "name": name,
            "kind": KINDS[entry["kind"]] if entry else OWN.get(name, "drop"),
            "in": left,
            "out": out,
            "changed": account.changed[name],
            "settings": curation.parameters(account.curate, name) if entry else {},
        }
        left = out


def _histogram(counts: Counter[str], unit: str) -> dict[str, Any]:
    """Counts by power of two as edges and counts, without empty ends."""
    if not counts:
        return {}
    places = sorted(int(place) for place in counts)
    span = range(places[0], places[-1] + 1)
    # Bucket n holds 2**(n-1) to 2**n - 1; bucket 0 holds zero alone.
    edges = [float(2 ** (place - 1)) if place else 0.5 for place in (*span, span[-1] + 1)]
    return {"edges": edges, "counts": [counts[str(place)] for place in span], "unit": unit}


def _sources(account: Account) -> list[dict[str, Any]]:
    train = account.blend.get("pretrain.train", Blend())
    total = sum(share.tokens for share in train.shares.values())
    found = []
    for index, source in enumerate(account.curate.sources):
        entry: dict[str, Any] = {
            "name": source.name or source.kind,
            "kind": source.kind,
            "licence": source.licence,
            "weight": source.weight,
            "documents": account.origins["before"][index],
            "kept": account.origins["after"][index],
        }
        share = train.shares.get(index)
        if share is not None:
            entry["tokens"] = share.tokens
            entry["share"] = share.tokens / total if total else 0.0
            entry["epochs"] = share.report()["epochs"]
        found.append(entry)
    return found


def _blend(account: Account) -> dict[str, dict[str, int]]:
    """Tokens that the weights ask of each source, and those that it gave; nothing without weights."""
    train = account.blend.get("pretrain.train", Blend())
    named = {
        f"{index}: {source.name or source.kind}": train.shares[index]
        for index, source in enumerate(account.curate.sources)
        if index in train.shares and source.weight is not None
    }
    return {
        "wanted": {name: share.wanted for name, share in named.items()},
        "got": {name: share.tokens for name, share in named.items()},
    }


def _documents(report: dict[str, Any], split: str) -> int:
    return sum(sizes[split] for name, sizes in report["sizes"].items() if name.startswith("pretrain"))


def _tokens(account: Account, split: str) -> int:
    total = 0
    for name, tokens in account.tokens.items():
        blend = account.blend.get(name)
        if name.endswith(f".{split}"):
            total += tokens if blend is None else sum(share.tokens for share in blend.shares.values())
    return total


def sample_places(shards: int) -> list[int]:
    """Which shards the samples come from, spread over the corpus."""
    return list(range(0, shards, max(1, shards // SAMPLES)))[:SAMPLES]


def _samples(account: Account, raw: list[Path]) -> Iterator[dict[str, Any]]:
    """Some documents as they were read and as they left the passes, or why they did not.

    A pass makes its shard ``n`` of shard ``n`` of the one before, so only a few are read.
    """
    places = sample_places(len(raw))
    each = -(-SAMPLES // max(1, len(places)))
    for place in places:
        chosen = [row for row in read_rows(raw[place] / DOCUMENTS) if is_sample(row["id"])][:each]
        kept, gone = _fates(account, place, len(raw), {row["number"] for row in chosen})
        for row in chosen:
            after, why = kept.get(row["number"]), gone.get(row["number"])
            yield {
                "id": row["id"],
                "before": row["text"][:SHOWN],
                "after": None if after is None else after[:SHOWN],
                "fate": f"dropped by {why[0]}: {why[1]}" if why else "kept",
            }


def _fates(
    account: Account, place: int, shards: int, numbers: set[int]
) -> tuple[dict[int, str], dict[int, tuple[str, str]]]:
    """Texts of those that passed, and (stage, reason) of those that were dropped."""
    gone: dict[int, tuple[str, str]] = {}
    kept: dict[int, str] = {}
    for shard in account.shards[place::shards]:  # one of each pass
        for row in read_rows(shard / DROPPED):
            if row["number"] in numbers:
                gone[row["number"]] = row["dropped_by"], row["reason"]
        if (shard / DOCUMENTS).exists():  # the last pass holds records
            rows = read_rows(shard / DOCUMENTS)
            kept = {row["number"]: row["text"] for row in rows if row["number"] in numbers}
    return {number: text for number, text in kept.items() if number not in gone}, gone
