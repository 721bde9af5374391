"""Parquet files and Hugging Face datasets saved on disk (Arrow streams), in small batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.documents import Unit
from pipeline.schema import Source
from pipeline.stages.curate.readers import Document, Fault, Read
from pipeline.stages.curate.readers.lines import Record, from_record, used_fields
from pipeline.stages.curate.readers.streams import open_binary, words_of

ROWS = 1024  # a batch at most
BATCH_BYTES = 16 << 20  # of texts, about
UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)


def read_parquet(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The documents of a Parquet file, row group by row group; a broken group costs only itself."""
    with open_binary(unit.path) as handle:
        try:
            file = pq.ParquetFile(handle)
        except UNREADABLE as error:
            yield Fault(0, f"not whole Parquet: {words_of(error)}")
            return
        columns = [c for c in used_fields(source) if c in file.schema_arrow.names]
        unused = _unused(source, file.schema_arrow.names)
        if source.text_field not in columns:
            yield Fault(0, _no_column(source, file.schema_arrow.names))
            return
        start = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            done = 0
            try:
                for batch in file.iter_batches(_batch(file, group), row_groups=[group], columns=columns):
                    yield from _rows(batch, start + done, source, max_bytes, unused)
                    done += batch.num_rows
            except UNREADABLE as error:
                yield Fault(start + done + 1, f"{rows - done} rows cannot be read: {words_of(error)}")
            start += rows


def read_arrow(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The documents of one ``*.arrow`` file of a dataset that ``save_to_disk`` wrote."""
    start = 0
    with open_binary(unit.path) as handle:
        try:
            stream = pa.ipc.open_stream(handle)
            if source.text_field not in stream.schema.names:
                yield Fault(0, _no_column(source, stream.schema.names))
                return
            columns = [c for c in used_fields(source) if c in stream.schema.names]
            unused = _unused(source, stream.schema.names)
            for batch in stream:
                for offset in range(0, batch.num_rows, ROWS):
                    part = batch.slice(offset, ROWS).select(columns)
                    yield from _rows(part, start, source, max_bytes, unused)
                    start += part.num_rows
        except UNREADABLE as error:
            yield Fault(
                start + 1, f"not whole Arrow data: {words_of(error)}; nothing behind this row was read"
            )


def read_nested(path: str) -> Iterator[Record | Fault]:
    """The (row, fields) pairs of a Parquet file of chats or pairs, nested columns and all."""
    start = 0
    with open_binary(path) as handle:
        try:
            file = pq.ParquetFile(handle)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_batch(file, group), row_groups=[group]):
                    for offset in range(batch.num_rows):
                        try:
                            yield start + offset + 1, batch.slice(offset, 1).to_pylist()[0]
                        except UnicodeDecodeError:
                            yield Fault(start + offset + 1, "not UTF-8")
                    start += batch.num_rows
        except UNREADABLE as error:
            yield Fault(start + 1, f"not whole Parquet: {words_of(error)}; nothing behind this row was read")


def _batch(file: pq.ParquetFile, group: int) -> int:
    """Rows that are read at a time: fewer of long ones."""
    about = file.metadata.row_group(group)
    rows = BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)
    return max(1, min(ROWS, int(rows)))


def _rows(
    batch: pa.RecordBatch, start: int, source: Source, max_bytes: int, unused: tuple[str, ...]
) -> Iterator[Read]:
    plain = _as_bytes(batch)
    for offset in range(batch.num_rows):
        place = start + offset + 1
        try:
            row = {name: _value(plain.column(name)[offset]) for name in plain.schema.names}
        except UnicodeDecodeError:
            yield Fault(place, "not UTF-8")
            continue
        found = from_record(place, row, source)
        if isinstance(found, Document):
            if len(found.text) > max_bytes:
                found = Fault(
                    place, f"the text is longer than {max_bytes:,} characters (curate.max_record_mb)"
                )
            else:
                found = replace(found, unused=found.unused + unused)
        yield found


def _value(scalar: Any) -> Any:
    value = scalar.as_py()
    return value.decode() if isinstance(value, bytes) else value


def _as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its texts as bytes: a writer may have put down what is no UTF-8, row by row."""
    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type) or pa.types.is_string_view(column.type):
            column = column.cast(pa.binary())
        elif pa.types.is_large_string(column.type):
            column = column.cast(pa.large_binary())
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _unused(source: Source, names: list[str]) -> tuple[str, ...]:
    used = used_fields(source)
    return tuple(name for name in names if name not in used)


def _no_column(source: Source, names: list[str]) -> str:
    return f"has no column {source.text_field!r}; its columns are {', '.join(names)} (set text_field)"
