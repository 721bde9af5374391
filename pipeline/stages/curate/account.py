"""The account of a curation: every document's fate, and the figures of the data card.

The counts reconcile exactly, and a run whose counts do not is an error: documents read =
documents kept + documents dropped, each by a stage for a reason.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.report.data_card import render_data_card
from pipeline.schema import Curate
from pipeline.stages.curate.blend import Blend
from pipeline.stages.curate.card import data_card
from pipeline.stages.curate.decontaminate import Grams
from pipeline.stages.curate.fields import told
from pipeline.stages.curate.reading import Reading
from pipeline.stages.curate.shards import DROPPED, nested, read_counts
from pipeline.stages.curate.split import SPLITS
from pipeline.stages.curate.synthetic import Generated
from pipeline.stages.curate.user_data import UserData
from pipeline.stages.step import Step, write_json, write_jsonl
from pipeline.wording import counted

READING = "reading"  # the stage that pages without main text are dropped by
BLEND, BEYOND = "blend", "beyond the weight of its source"
BEYOND_FILE = "beyond.jsonl"  # those documents, on request
SHOWN_FILES = 3
THIN = 0.5  # a source that gives a smaller share of its tokens is worth a warning


class Account:
    """Collects what happened while it happens; :meth:`write` publishes it."""

    def __init__(self, curate: Curate) -> None:
        self.curate = curate
        self.raw = self.made = self.kept = self.pieces = 0
        self.synthesis: dict[str, Any] = {}
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.redacted: Counter[tuple[str, str]] = Counter()
        self.languages: dict[str, Counter[str]] = {"before": Counter(), "after": Counter()}
        self.lengths: dict[str, Counter[str]] = {"before": Counter(), "after": Counter(), "tokens": Counter()}
        self.origins: dict[str, Counter[int]] = {"before": Counter(), "after": Counter()}
        self.tokens: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.flow: dict[str, list[int]] = {}
        self.hits: Counter[str] = Counter()
        self.record_hits: Counter[str] = Counter()
        self.sets: dict[str, dict[str, int]] = {}
        self.duplicates: dict[str, dict[str, Any]] = {}
        self.blend: dict[str, Blend] = {}
        self.left_out: Counter[str] = Counter()
        self.users: list[tuple[UserData, int]] = []
        self.instructions: dict[str, Any] = {}
        self.preferences: dict[str, Any] = {}
        self.prompts: dict[str, dict[str, int]] = {}
        self.not_read: dict[str, dict[str, int]] = {}
        self.links: dict[str, list[str]] = {}
        self.unused: dict[str, dict[str, int]] = {}
        self.cut: Counter[str] = Counter()
        self.records: dict[str, int] = {}
        self.shards: list[Path] = []
        self.sizes: dict[str, dict[str, int]] = {}
        self.preference_kinds: dict[str, dict[str, int]] = {}
        self.shorter: float | None = None

    # -- collecting --------------------------------------------------------------------

    def read(self, raw: Reading) -> None:
        """Take in what reading gave."""
        self.raw = sum(counts["records"] for counts in raw.inputs.values())
        self.lengths["before"], self.origins["before"] = raw.lengths, raw.documents
        for reason, count in raw.dropped.items():
            self.dropped[READING, reason] += count
        self.unused.update({name: dict(counts) for name, counts in raw.unused.items() if counts})

    def passed(self, shards: list[Path]) -> None:
        """Take in the shards of a finished pass."""
        self.shards += shards
        for shard in shards:
            self._take(read_counts(shard))

    def _take(self, counts: dict[str, Any]) -> None:
        for stage, reasons in counts["dropped"].items():
            for reason, count in reasons.items():
                self.dropped[stage, reason] += count
        for name, kinds in counts["found"].items():
            for kind, count in kinds.items():
                if name == "language":
                    self.languages["before"][kind] += count
                elif name == "decontaminate":
                    self.hits[kind] += count
                else:
                    self.redacted[name, kind] += count
        self.changed.update(counts["changed"])
        for stage, come, gone in counts["passed"]:
            sums = self.flow.setdefault(stage, [0, 0])
            sums[0] += come
            sums[1] += gone

    def grams(self, grams: Grams, rare: Grams) -> None:
        """Take in the evaluation data that training was compared with: all, and without the common."""
        count, left = grams.sizes(), rare.sizes()
        self.sets = {
            name: {"ngrams": count[name], "common": count[name] - left[name], "too_short_entries": short}
            for name, short in zip(grams.names, grams.short, strict=True)
        }

    def finished(self, folders: list[Path]) -> None:
        """Take in the last pass."""
        self.shards += folders
        for folder in folders:
            counts = read_counts(folder)
            self._take(counts)
            self.kept += counts["left"]
            self.pieces += counts["pieces"]
            self.cut.update(counts["cut"])
            self.languages["after"].update(counts["languages"])
            self.lengths["after"].update(counts["characters"])
            self.lengths["tokens"].update(counts["token_lengths"])
            self.left_out.update(counts["left_out"])
            self.tokens.update(counts["tokens"])
            self.origins["after"].update({int(origin): n for origin, n in counts["origins"].items()})

    def synthetic(self, made: Generated) -> None:
        """Take in what a model made of the training documents."""
        self.made = len(made.documents)
        self.synthesis = {
            **made.figures,
            "made": self.made,
            "pairs": len(made.instructions),
            "dropped": dict(sorted(made.dropped.items())),
        }

    def passed_over(self, source: int, files: Counter[str], links: list[str]) -> None:
        """Take in the files of a source's folder that it does not read, by what they are, and its links elsewhere."""
        if files:
            self.not_read[str(source)] = dict(sorted(files.items()))
        if links:
            self.links[str(source)] = links

    def blended(self, blends: dict[str, Blend], records: dict[str, int]) -> None:
        """Take in what every source gave; documents that their source's weight leaves out are dropped.

        ``records`` says how many records each split of each data set was to get.
        """
        self.blend, self.records = blends, records
        for made in blends.values():
            for origin, share in made.shares.items():
                if share.left_out:
                    self.dropped[BLEND, BEYOND] += share.left_out
                    self.kept -= share.left_out
                    self.origins["after"][origin] -= share.left_out

    def user_data(self, data: UserData, kept: int) -> None:
        """Take in a user's file, and how many of its records can be used."""
        self.users.append((data, kept))
        if data.unused:
            self.unused[data.role] = dict(sorted(data.unused.items()))

    def pairs(
        self, sft: dict[str, list[dict[str, Any]]], preference: dict[str, list[dict[str, Any]]]
    ) -> None:
        """Take in the finished pairs."""
        for name, records in (("sft", sft), ("preference", preference)):
            self.sizes[name] = {split: len(records[split]) for split in SPLITS}
        self.preference_kinds = {
            split: dict(sorted(Counter(pair["kind"] for pair in preference[split]).items()))
            for split in SPLITS
        }
        style = [pair for pair in preference["train"] if pair["kind"] == "style"]
        if style:
            self.shorter = sum(len(pair["chosen"]) < len(pair["rejected"]) for pair in style) / len(style)

    # -- publishing --------------------------------------------------------------------

    def reasons(self) -> str:
        """The drops in words, the most frequent first."""
        by_stage = self.by_stage()
        return ", ".join(f"{count:,} by {name}" for name, count in by_stage.most_common() if count)

    def by_stage(self) -> Counter[str]:
        """Dropped documents by stage."""
        counts: Counter[str] = Counter()
        for (stage, _), count in self.dropped.items():
            counts[stage] += count
        return counts

    def write(self, step: Step, raw: Reading) -> None:
        """Publish the report, the quarantine and the dropped documents; end the step."""
        if self.raw + self.made != self.kept + self.dropped.total():
            raise AssertionError(
                f"the counts do not reconcile: {self.raw} read, {self.made} made, {self.kept} kept, "
                f"{self.dropped.total()} dropped"
            )
        faults = [*raw.faults(), *(fault for data, _ in self.users for fault in data.faults)]
        public = [{key: value for key, value in fault.items() if key != "file"} for fault in faults]
        write_jsonl(step.output / "quarantine.jsonl", public)
        if self.curate.keep_dropped:
            self._write_dropped(step)
        report = self.report(step, len(faults))
        write_json(step.output / "report.json", report)
        card = data_card(step, self, report, raw.shards, public)
        write_json(step.output / "card.json", card)
        (step.output / "card.html").write_text(render_data_card(card), encoding="utf-8")
        if faults:
            step.warning(f"{len(faults):,} input records could not be read; see quarantine.jsonl")
        for warning in whole_files(faults):
            step.warning(warning)
        if self.cut["documents"]:
            step.warning(
                f"{self.cut['documents']:,} of {self.kept + self.dropped[BLEND, BEYOND]:,} documents are cut to {self.curate.max_characters:,} "
                f"characters: {self.cut['characters'] / self.cut['of_characters']:.0%} of the text is left out (curate.max_characters)"
            )
        for name, counts in self.unused.items():
            step.warning(f"curate.{name}: these fields of its records are not used: {told(counts)}")
        if self.curate.pairs and not self.sizes["sft"]["train"]:
            step.warning(
                "no document gave an instruction pair (no titles or summaries); see the README, 'Your own documents'"
            )
        for message in self._about_drops():
            step.message(message)
        for warning in (*self._about_sources(), *self._about_splits(report)):
            step.warning(warning)
        for warning in self.preferences.get("warnings", ()):
            step.warning(f"curate.preferences: {warning}")
        inputs = {
            **raw.inputs,
            **{data.role: {"records": kept, "unreadable": len(data.faults)} for data, kept in self.users},
        }
        step.finish(
            metrics={**report, "inputs": inputs},
            headline=f"{self.kept:,} of {self.raw:,} documents, {self.sizes['sft']['train']:,} instruction and "
            f"{self.sizes['preference']['train']:,} preference pairs",
        )

    def _about_drops(self) -> Iterator[str]:
        """What was left out by which rule, the most frequent first."""
        rules = Counter({f"{reason} ({stage})": n for (stage, reason), n in self.dropped.items()})
        for what, counts in (("documents", rules), ("pairs", self.left_out)):
            if counts.total():
                parts = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common() if count)
                yield f"left out of the {what}: {parts}"

    def _about_splits(self, report: dict[str, Any]) -> Iterator[str]:
        """Splits that were asked for and hold nothing."""
        shares = {"validation": self.curate.validation_share, "test": self.curate.test_share}
        for name, sizes in report["sizes"].items():
            for split, share in shares.items():
                if share and sizes["train"] and not sizes[split]:
                    yield (
                        f"{name}: nothing is held out for {split}: {sizes['train']:,} records are too few, or too "
                        f"much alike, for curate.{split}_share = {share:g}. Give more data, or measure elsewhere"
                    )

    def _about_sources(self) -> Iterator[str]:
        for index, files in self.not_read.items():
            total = sum(files.values())
            counts = "; ".join(f"{ending}: {count:,}" for ending, count in files.items())
            yield (
                f"curate.sources.{index}: {counted(total, 'file or folder', 'files or folders')} there "
                f"{'is' if total == 1 else 'are'} not read by a source of kind {self.curate.sources[int(index)].kind} "
                f"({counts})"
            )
        for index, links in self.links.items():
            shown = ", ".join(_shown(link) for link in links[:3]) + (" ..." if len(links) > 3 else "")
            yield (
                f"curate.sources.{index}: {counted(len(links), 'link leads', 'links lead')} out of the folder and "
                f"{'is' if len(links) == 1 else 'are'} followed: {shown}"
            )
        for name, made in self.blend.items():
            for origin, share in made.shares.items():
                if share.available and share.tokens < THIN * share.available:
                    source = self.curate.sources[origin]
                    yield (
                        f"curate.sources.{origin} ({source.name or source.kind}) gives "
                        f"{share.tokens / share.available:.0%} of its tokens to {name}: its weight asks for no more"
                    )

    def report(self, step: Step, unreadable: int) -> dict[str, Any]:
        """The figures of the run."""
        train = self.blend.get("pretrain.train", Blend())
        documents = {
            name: {split: _lines(step.output / name / split) for split in SPLITS}
            for name in sorted(
                {each.name for each in step.output.iterdir() if each.name.startswith("pretrain")}
            )
        }
        written = {
            f"{name}.{split}": count for name, sizes in documents.items() for split, count in sizes.items()
        }
        if {name: count for name, count in written.items() if count} != self.records:
            raise AssertionError(f"the records do not reconcile: {self.records} made, {written} written")
        return {
            "documents": {
                "raw": self.raw,
                "kept": self.kept,
                "dropped": dict(sorted(self.by_stage().items())),
            },
            "fates": nested(self.dropped),
            "files_not_read": self.not_read,
            "links_outside": {index: len(links) for index, links in self.links.items()},
            "unused_fields": self.unused,
            "cut": dict(self.cut) if self.cut["documents"] else {},
            **({"synthetic": self.synthesis} if self.synthesis else {}),
            "extra_pieces": self.pieces,
            "unreadable_records": unreadable,
            "redacted": dict(sorted(_by_kind(self.redacted).items())),
            "redactions": nested(self.redacted),
            "languages": {when: dict(sorted(counts.items())) for when, counts in self.languages.items()},
            "duplicates": {
                name: {key: value for key, value in found.items() if key != "examples"}
                for name, found in self.duplicates.items()
            },
            "decontamination": {
                name: {**about, "documents": self.hits[name], "records": self.record_hits[name]}
                for name, about in self.sets.items()
            },
            "instructions": {**self.instructions, **self.prompts.get("instructions", {})},
            "preferences": {**self.preferences, **self.prompts.get("preferences", {})},
            "sources": self._sources(train),
            "left_out_of_pairs": {reason: count for reason, count in sorted(self.left_out.items()) if count},
            "sizes": {**documents, **self.sizes},
            "preference_kinds": self.preference_kinds,
            "chosen_shorter_share": self.shorter,
            "pretrain_train_tokens": sum(share.tokens for share in train.shares.values()),
        }

    def _sources(self, train: Blend) -> list[dict[str, Any]]:
        found = []
        for index, source in enumerate(self.curate.sources):
            share = train.shares.get(index)
            found.append(
                {
                    "name": source.name or source.kind,
                    "kind": source.kind,
                    "licence": source.licence,
                    "weight": source.weight,
                    **({} if share is None else share.report()),
                }
            )
        return found

    def _write_dropped(self, step: Step) -> None:
        folder = step.output / "dropped"
        folder.mkdir()
        with open(folder / "documents.jsonl", "wb") as handle:
            for shard in self.shards:
                with open(shard / DROPPED, "rb") as rows:
                    shutil.copyfileobj(rows, handle)
            if (step.state / BEYOND_FILE).exists():
                with open(step.state / BEYOND_FILE, "rb") as rows:
                    shutil.copyfileobj(rows, handle)


def whole_files(faults: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with files that cannot be read at all, each in a sentence; of many, the first."""
    whole = [fault for fault in faults if fault["line"] == 0 and fault["file"]]
    for fault in whole[:SHOWN_FILES]:
        yield f"{_shown(fault['file'])} is not read: {fault['reason']}"
    if len(whole) > SHOWN_FILES:
        yield f"{len(whole) - SHOWN_FILES:,} more files are not read; see quarantine.jsonl"


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name)


def _by_kind(counts: Counter[tuple[str, str]]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for (kind, _), count in counts.items():
        sums[kind] += count
    return sums


def _lines(folder: Path) -> int:
    count = 0
    for file in folder.glob("*") if folder.is_dir() else ():
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            count += pq.ParquetFile(file).metadata.num_rows
        elif file.suffix == ".jsonl":
            with open(file, "rb") as handle:
                count += sum(chunk.count(b"\n") for chunk in iter(lambda: handle.read(1 << 20), b""))
    return count
