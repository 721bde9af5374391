"""Curation: raw documents to pre-training, instruction and preference data.

    read        files of all sources -> shards of raw documents        (reading, readers/)
    pass        the recipe's stages over every shard                   (passes, text_stages)
    duplicates  compare all documents, drop what is found, next pass   (duplicates/, semantic)
    split       groups of alike documents stay on one side             (split)
    synthetic   on request, what a model makes of training documents   (synthetic/)
    finish      evaluation data out, records, tokens, pairs            (decontaminate, finish)
    blend       sources by weight; shuffle into output shards          (blend)
    pairs       instruction and preference data                        (pair_data)
    account     every document's fate; the data card                   (account)

Work on shards is done by one of two drivers over the same stage objects (drivers).  A
finished shard is sealed, so an interrupted run does only the unfinished ones again.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import orjson
from nemo_curator.tasks import FileGroupTask

from pipeline.documents import is_remote, passed_over
from pipeline.schema import Curate, Model
from pipeline.stages import trial
from pipeline.stages.curate import blend, passes, reading, tokens
from pipeline.stages.curate.account import BEYOND, BEYOND_FILE, BLEND, Account
from pipeline.stages.curate.card import sample_places
from pipeline.stages.curate.decontaminate import Grams
from pipeline.stages.curate.drivers import Driver, driver
from pipeline.stages.curate.duplicates.find import Corpus, Found
from pipeline.stages.curate.duplicates.measures import Signatures, Standing
from pipeline.stages.curate.finish import Finish, GramCount, cut
from pipeline.stages.curate.learn_tokenizer import learn_tokenizer
from pipeline.stages.curate.megatron import WriteMegatron
from pipeline.stages.curate.pair_data import make_pairs
from pipeline.stages.curate.readers.records import read_records
from pipeline.stages.curate.redact import redact_rows
from pipeline.stages.curate.shards import (
    DOCUMENTS,
    FolderWork,
    Gone,
    Measure,
    ShardWork,
    read_counts,
    write_rows,
    write_shard,
)
from pipeline.stages.curate.shuffle import Shuffle
from pipeline.stages.curate.split import (
    SPLITS,
    TRAIN,
    assign,
    content_hash,
    distinct,
    drawn,
    keys_file,
    texts_of,
)
from pipeline.stages.curate.synthetic import Generated
from pipeline.stages.curate.text_stages import Ledger
from pipeline.stages.pool import worker_pool
from pipeline.stages.step import InputError, Step

GRAMS = "grams.npz"  # those of evaluation data, without the common ones


def run(step: Step) -> None:
    """Curate the recipe's sources; see the module's docstring for the order of the work."""
    try:
        _run(step)
    except Gone as missing:
        # Interrupted work was damaged in between, and its own sources were already released.
        step.warning(f"{missing} is needed again and was released: curation begins anew")
        shutil.rmtree(step.state)  # the step makes both anew
        shutil.rmtree(step.output)
        _run(step)


def _run(step: Step) -> None:
    curation = Curation(step)
    raw = curation.read()
    shards = curation.pass_through(raw)
    folders = curation.finish(shards)
    curation.write(folders)
    curation.report(raw)


class Curation:
    """One run of the stage: its settings, its driver, and the account of what happened."""

    def __init__(self, step: Step) -> None:
        self.step, self.curate, self.model = step, step.section(Curate), step.section(Model)
        self.workers = self.curate.workers or step.threads
        self.driver: Driver = driver(self.workers, step.extra.get("ray"))
        self.account = Account(self.curate)
        self.generated = Generated()

    # -- documents ---------------------------------------------------------------------

    def read(self) -> reading.Reading:
        """Read all sources into raw shards."""
        passes.require(self.curate)
        if self.step.base_model:
            with worker_pool(1) as alone:  # what transformers takes of memory would stay with this process
                alone.submit(trial.check, self.step.base_model).result()
        self.step.phase("read sources")
        plan = reading.groups(self.curate)
        path = self.step.state / "groups.json"
        if not path.exists():
            reading.write_plan(plan, path)
            self.step.seal(path)
        work = reading.ReadGroup(path, self.curate.sources, self.curate.max_record_mb << 20)
        folders = self._map(work, "raw", [[str(number)] for number in range(len(plan))], "files")
        for index, source in enumerate(self.curate.sources):
            if source.path and not is_remote(source.path):
                self.account.passed_over(index, *passed_over(source))
        raw = reading.account(folders)
        raw.check(self.curate.max_bad_share)
        if not raw.shards:
            where = ", ".join(
                source.path or f"packages {', '.join(source.packages)}" for source in self.curate.sources
            )
            why = ", ".join(f"{reason} ({count:,} times)" for reason, count in raw.dropped.most_common(5))
            raise InputError(f"curate.sources: no document was found in {where}{': ' * bool(why)}{why}")
        if any(source.id_field for source in self.curate.sources):
            reading.check_unique(raw.shards, self.curate.memory_mb)
        self.account.read(raw)
        return raw

    def pass_through(self, raw: reading.Reading) -> list[Path]:
        """All passes of the recipe; returns the shards of what is left, measured for the split."""
        shards, removal = raw.shards, None
        plan = passes.passes(self.curate)
        near = self.curate.near_duplicates
        view = Signatures(
            "view",
            near.ngram,
            near.permutations,
            partial(cut, max_characters=self.curate.max_characters),
            marks=False,  # what differs in punctuation alone gives a held-out document away
        )
        for number, each in enumerate(plan):
            last = number == len(plan) - 1
            stages = passes.build(each.names, self.curate)
            if removal is not None:
                stages.insert(0, removal)
            measured: list[Measure] = [Standing(), view] if last else passes.measures(each.whole, self.curate)
            self.step.phase("clean and filter" if number == 0 else f"after {plan[number - 1].whole}")
            work = ShardWork(stages, measured, self.curate.keep_dropped)
            before, shards = shards, self._map(work, f"pass-{number}", [[str(s)] for s in shards], "shards")
            self._release(before)
            self.account.passed(shards)
            if each.whole is not None:
                removal = passes.removal(each.whole, self._duplicates(each.whole, number, shards))
        if not any(read_counts(shard)["left"] for shard in shards):
            raise InputError(f"curate: no document is left of {self.account.raw:,}: {self.account.reasons()}")
        return shards

    def _duplicates(self, whole: str, number: int, shards: list[Path]) -> Path:
        self.step.phase(f"find {whole}")
        target = self.step.state / f"found-{number}"
        report = target / "report.json"
        if not target.exists():
            self._require(shard / "numbers.npy" for shard in shards)
            part, scratch = target.with_suffix(".part"), self.step.state / f"scratch-{number}"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            found: Found = passes.find_duplicates(
                whole, shards, self.curate, part, scratch, self.step.progress
            )
            (part / report.name).write_bytes(orjson.dumps(found.report(), option=orjson.OPT_SORT_KEYS))
            shutil.rmtree(scratch, ignore_errors=True)
            part.rename(target)
            self.step.seal(target)
        self.account.duplicates[whole] = orjson.loads(report.read_bytes())
        return target

    # -- data sets ---------------------------------------------------------------------

    def finish(self, shards: list[Path]) -> list[Path]:
        """Split, train the tokenizer, and make every shard's records."""
        self.step.phase("split")
        splits = self.step.state / "splits.npy"
        if not splits.exists():
            self._require(shard / "view.npy" for shard in shards)
            scratch = self.step.state / "scratch-split"
            found, keys = assign(shards, self.curate, scratch)
            if not keys_file(splits).exists():
                np.save(keys_file(splits), keys, allow_pickle=False)
                self.step.seal(keys_file(splits))
            np.save(splits, found, allow_pickle=False)
            shutil.rmtree(scratch, ignore_errors=True)
            self.step.seal(splits)
        if self.curate.synthetic.tasks:
            shards, splits = self._synthetic(shards, splits)
        starts = [str(int(start)) for start in Corpus(shards).starts[:-1]]
        tasks = [[str(shard), start] for shard, start in zip(shards, starts, strict=True)]
        grams = self._evaluation_data(shards, splits, tasks)
        self.step.phase("train the tokenizer")
        tokenizer = self._tokenizer(shards, splits)
        self.step.phase("make records")
        finish = Finish(self.curate, splits, tokenizer, grams, own_tokenizer=not self.step.base_model)
        folders = self._map(finish, "finished", tasks, "shards")
        self.account.finished(folders)
        if not self.curate.synthetic.tasks:  # they are asked for, out of the ledger, in every attempt
            self._release(shards, DOCUMENTS)
        return folders

    def _synthetic(self, shards: list[Path], splits: Path) -> tuple[list[Path], Path]:
        """The shards and splits with one shard more: what a model makes of the training documents."""
        from pipeline.stages.curate.synthetic.tasks import generate  # brings transformers

        settings = self.curate.synthetic
        self.step.phase("make synthetic data")
        assigned = np.load(splits, mmap_mode="r", allow_pickle=False)
        documents = int((assigned == TRAIN).sum())
        wanted = min(documents, settings.max_documents or documents)
        chosen = drawn(shards, splits, settings.max_documents)
        # The ledger lies beside state/: it is whole line by line, and outlives an interruption.
        made = generate(
            chosen, settings, self.step.work, lambda done: self.step.progress(done, wanted, "documents")
        )
        if "redact" in self.curate.stages:  # a model may make an address up, or know one
            ledger = Ledger()
            made.documents, dropped = redact_rows(made.documents, self.curate.redact, ledger)
            made.dropped.update({f"redact: {reason}": count for reason, count in dropped.items()})
            self.account.redacted.update(ledger.found)
        self.generated = made
        rows = [{"number": (1 << 62) + place, **row} for place, row in enumerate(made.documents)]
        folder = self.step.state / "synthetic"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_shard(folder, rows, {"left": len(rows)}, [Standing()])
        every = self.step.state / "splits-all.npy"
        np.save(
            every, np.concatenate([assigned, np.full(len(rows), TRAIN, dtype=np.uint8)]), allow_pickle=False
        )
        keys = np.load(keys_file(splits), mmap_mode="r", allow_pickle=False)
        own = np.array([content_hash(row["name"], row["text"]) for row in rows], dtype=np.uint64)
        np.save(keys_file(every), distinct(np.concatenate([keys, own])), allow_pickle=False)
        self.account.synthetic(made)
        return [*shards, folder], every

    def _evaluation_data(self, shards: list[Path], splits: Path, tasks: list[list[str]]) -> Path | None:
        if "decontaminate" not in self.curate.stages:
            return None
        self.step.phase("find evaluation data")
        target, every = self.step.state / GRAMS, self.step.state / "grams-all.npz"
        if not target.exists():
            self._find_evaluation_data(shards, splits, tasks, every, target)
        self.account.grams(Grams.load(every), Grams.load(target))
        return target

    def _find_evaluation_data(
        self, shards: list[Path], splits: Path, tasks: list[list[str]], every: Path, target: Path
    ) -> None:
        settings = self.curate.decontaminate
        sets: list[tuple[str, Iterator[str]]] = [
            (Path(path).name, self._texts_of(path, settings.fields)) for path in settings.sets
        ]
        if settings.own_test:
            sets.append(("held-out test documents", texts_of(shards, splits, SPLITS.index("test"))))
        if not every.exists():
            self._require(shard / DOCUMENTS for shard in shards)
            Grams.of(sets, settings).save(every)
            self.step.seal(every)
        counts: Counter[int] = Counter()
        for folder in self._map(GramCount(every, splits), "hits", tasks, "shards"):
            with np.load(folder / "hits.npz", allow_pickle=False) as hits:
                counts.update(dict(zip(hits["hashes"].tolist(), hits["counts"].tolist(), strict=True)))
        common = np.array(
            [gram for gram, count in counts.items() if count > settings.max_frequency], dtype=np.uint64
        )
        Grams.load(every).without(common).save(target)
        self.step.seal(target)

    def _texts_of(self, path: str, fields: list[str]) -> Iterator[str]:
        found = False
        for read in read_records(path, self.curate.max_record_mb << 20):
            if not isinstance(read, tuple):
                raise InputError(f"{path}:{read.place}: {read.reason}; an evaluation set must be whole")
            for name in fields:
                if isinstance(read[1].get(name), str):
                    found = True
                    yield read[1][name]
        if not found:
            raise InputError(
                f"curate.decontaminate.sets: no record of {path} has one of the fields {', '.join(fields)} "
                "(curate.decontaminate.fields)"
            )

    def _tokenizer(self, shards: list[Path], splits: Path) -> Path:
        folder = self.step.output / "tokenizer"
        if self.step.base_model:
            template = self.model.chat_template
            day = date.fromisoformat(self.model.template_date) if self.model.template_date else None
            passed = tokens.copy_tokenizer(
                self.step.base_model, folder, Path(template) if template else None, day
            )
            if passed:
                self.step.message(
                    f"the chat template marks turns by text: what a user writes can pass for {' and for '.join(passed)}"
                )
            return folder
        kept = self.step.state / "tokenizer"
        if not kept.exists():
            self._require(shard / DOCUMENTS for shard in shards)
            part = kept.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            # In a process of its own: what training takes would stay with this one, and with all that it forks.
            with worker_pool(1) as alone:
                alone.submit(
                    learn_tokenizer, shards, splits, self.curate, self.model, self.step.threads, part
                ).result()
            part.rename(kept)
            self.step.seal(kept)
        shutil.copytree(kept, folder)
        return folder

    def write(self, folders: list[Path]) -> None:
        """Blend, shuffle and write the pre-training data; make the pairs."""
        self.step.phase("write data sets")
        names = blend.data_sets(folders)
        blends: dict[str, blend.Blend] = {}
        try:
            for name in names:
                if name.endswith(".train"):
                    blends[name] = blend.weigh(folders, name.removesuffix(".train"), self.curate)
        except ValueError as error:
            raise InputError(str(error)) from None
        tasks, wanted = [], []
        for name in names:
            size = blend.bytes_of(folders, name, blends.get(name))
            count = max(1, -(-size // (self.curate.shard_mb << 20)))
            tasks += [[name, str(number), str(count)] for number in range(count)]
            wanted += [(name, number) for number in range(count)]
        written = self._map(Shuffle(folders, blends, self.curate.format), "written", tasks, "shards")
        self.account.blended(blends, {name: blend.records(folders, name, blends.get(name)) for name in names})
        beyond = self.step.state / BEYOND_FILE
        if self.curate.keep_dropped and not beyond.exists():
            fate = {"dropped_by": BLEND, "reason": BEYOND}
            lines = blend.left_out(folders, blends)
            write_rows(beyond, ({**orjson.loads(line), "origin": origin, **fate} for origin, line in lines))
            self.step.seal(beyond)
        self.step.release(path for each in folders for name in names for path in each.glob(f"{name}.jsonl"))
        for (name, number), folder in zip(wanted, written, strict=True):
            data_set, split = name.rsplit(".", 1)
            for file in folder.iterdir():
                target = self.step.output / data_set / split / f"{number:05d}{file.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(file, target)
        for split in SPLITS:  # a split without a document is an empty shard, not a missing one
            folder = self.step.output / "pretrain" / split
            if not folder.exists():
                folder.mkdir(parents=True)
                (folder / "00000.jsonl").write_bytes(b"")
        if self.curate.format.endswith("+megatron"):
            self._write_megatron(wanted, written)
        self.step.phase("make pairs")
        grams = self.step.state / GRAMS
        make_pairs(
            self.step,
            self.curate,
            folders,
            self.generated,
            grams if grams.exists() else None,
            self.account,
        )

    def _write_megatron(self, wanted: list[tuple[str, int]], written: list[Path]) -> None:
        self.step.phase("tokenise for Megatron")
        shards = [file for folder in written for file in sorted(folder.iterdir())]
        work = WriteMegatron(self.step.output / "tokenizer")
        made = self._map(work, "megatron", [[str(shard)] for shard in shards], "shards")
        for (name, number), folder in zip(wanted, made, strict=True):
            data_set, split = name.rsplit(".", 1)
            target = self.step.output / "megatron" / data_set / split
            target.mkdir(parents=True, exist_ok=True)
            for file in folder.iterdir():
                _link(file, target / f"{number:05d}{file.suffix}")

    def report(self, raw: reading.Reading) -> None:
        """Write the account and end the step."""
        self.account.write(self.step, raw)

    # -- the driver --------------------------------------------------------------------

    def _map(self, work: FolderWork, name: str, tasks: list[list[str]], unit: str) -> list[Path]:
        """Do a piece of work for every task; returns the folders ``state/NAME/00000`` ... in order."""
        folder = self.step.state / name
        folder.mkdir(exist_ok=True)
        work.workers = self.workers
        targets = [folder / f"{number:05d}" for number in range(len(tasks))]
        waiting = [
            FileGroupTask(dataset_name="documents", data=[*task, str(target)])
            for task, target in zip(tasks, targets, strict=True)
            if not target.exists()
        ]
        for task in waiting:
            self._require(work.needs(task.data))
        done = len(tasks) - len(waiting)
        for finished in self.driver.run(work, waiting):
            self.step.seal(finished)
            done += 1
            self.step.progress(done, len(tasks), unit)
        return targets

    def _require(self, files: Iterable[Path]) -> None:
        for file in files:
            if not file.exists():
                raise Gone(str(file.relative_to(self.step.state)))

    def _release(self, shards: list[Path], *patterns: str) -> None:
        """Free the disk of documents and measures that later passes have taken over.

        Counts and dropped documents stay, and the shards that the data card's samples come from.
        """
        spared = {shards[place] for place in sample_places(len(shards))}
        self.step.release(
            path
            for shard in shards
            for pattern in patterns or (DOCUMENTS, "*.npy")
            for path in shard.glob(pattern)
            if shard not in spared
        )


def _link(file: Path, target: Path) -> None:
    """Give a finished file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
