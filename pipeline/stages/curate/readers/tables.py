"""Parquet files and Hugging Face datasets saved on disk (Arrow streams), in small batches."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.documents import Unit
from pipeline.schema import Source
from pipeline.stages.curate.readers import Document, Fault, Read
from pipeline.stages.curate.readers.lines import from_record
from pipeline.stages.curate.readers.streams import open_binary, words_of

ROWS = 1024  # a batch


def read_parquet(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The documents of a Parquet file, row group by row group; a broken group costs only itself."""
    with open_binary(unit.path) as handle:
        try:
            file = pq.ParquetFile(handle)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            yield Fault(0, f"not whole Parquet: {words_of(error)}")
            return
        columns = [c for c in _wanted(source) if c in file.schema_arrow.names]
        if source.text_field not in columns:
            yield Fault(0, _no_column(source, file.schema_arrow.names))
            return
        start = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            done = 0
            try:
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns):
                    yield from _rows(batch, start + done, source, max_bytes)
                    done += batch.num_rows
            except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
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
            for batch in stream:
                for offset in range(0, batch.num_rows, ROWS):
                    part = batch.slice(offset, ROWS)
                    yield from _rows(
                        part.select([c for c in _wanted(source) if c in part.schema.names]),
                        start,
                        source,
                        max_bytes,
                    )
                    start += part.num_rows
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            yield Fault(
                start + 1, f"not whole Arrow data: {words_of(error)}; nothing behind this row was read"
            )


def _rows(batch: pa.RecordBatch, start: int, source: Source, max_bytes: int) -> Iterator[Read]:
    for offset, row in enumerate(_as_bytes(batch).to_pylist(), start=start + 1):
        try:
            plain = {
                name: value.decode() if isinstance(value, bytes) else value for name, value in row.items()
            }
        except UnicodeDecodeError:
            yield Fault(offset, "not UTF-8")
            continue
        found = from_record(offset, plain, source)
        if isinstance(found, Document) and len(found.text) > max_bytes:
            found = Fault(offset, f"the text is longer than {max_bytes:,} characters (curate.max_record_mb)")
        yield found


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


def _wanted(source: Source) -> list[str]:
    return [
        name
        for name in (
            source.text_field,
            source.title_field,
            source.id_field,
            source.score_field,
            source.embedding_field,
        )
        if name
    ]


def _no_column(source: Source, names: list[str]) -> str:
    return f"has no column {source.text_field!r}; its columns are {', '.join(names)} (set text_field)"
