"""Every kind of source on real files, and every way in which a file can be broken."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.documents import Unit, local_units
from pipeline.schema import Source
from pipeline.stages.curate.readers import Document, Dropped, Fault, Read, read_unit
from pipeline.stages.remote_files import remote_units

PROSE = (
    "The city council met on Tuesday to talk about the new bridge over the river, and most of those who came "
    "were in favour of it. It would take three years to build, the mayor said, and it will be paid for by the "
    "state. "
)


def page(number: int, body: str = PROSE * 4) -> str:
    return (
        f"<html><head><title>Page {number}</title></head><body><nav><a href='/'>Home</a> <a href='/x'>More</a></nav>"
        f"<article><h1>Page {number}</h1><p>{body}</p></article><footer>Imprint</footer></body></html>"
    )


def read(path: Path, kind: str, limit: int = 1 << 20, **settings: object) -> list[Read]:
    return list(read_unit(Unit(path.name, str(path)), Source(kind=kind, **settings), limit))


def summed(found: list[Read]) -> list[tuple[str, int]]:
    return [(type(each).__name__, each.place) for each in found]


def reasons(found: list[Read]) -> list[str]:
    return [each.reason for each in found if isinstance(each, Fault | Dropped)]


def lines(count: int) -> bytes:
    return b"".join(
        json.dumps({"text": f"{PROSE} {n}", "title": f"T{n}"}).encode() + b"\n" for n in range(count)
    )


def packed(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])  # two members
    if suffix == ".zst":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return bz2.compress(data) if suffix == ".bz2" else data


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2"])
def test_json_lines_plain_and_packed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed(lines(20), suffix))
    found = read(path, "jsonl")
    assert [each.place for each in found] == list(range(1, 21))
    assert all(isinstance(each, Document) and each.name == f"T{each.place - 1}" for each in found)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_packed_files_cut_short_or_damaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    whole = packed(lines(4000), suffix)
    path.write_bytes(whole[: len(whole) // 2])
    found = read(path, "jsonl")
    assert isinstance(found[-1], Fault)
    assert "ends in the middle" in found[-1].reason
    path.write_bytes(whole[:200] + b"\xff" * 40 + whole[240:])
    found = read(path, "jsonl")
    assert isinstance(found[-1], Fault)
    path.write_bytes(b"this is not packed at all")
    assert [type(each) for each in read(path, "jsonl")] == [Fault]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not JSON"),
        (b"[1, 2]", "expected an object, found a list"),
        (b'{"text": 5}', "'text' is int, not text"),
        (b'{"body": "x"}', "has no field 'text' (it has body)"),
        (b'{"text": "\xff\xfe"}', "not UTF-8"),
        (b'{"text": "a\\u0000b"}', "NUL"),
        (b'{"text": "a\x00b"}', "not JSON"),
        (b"\x00\x00\x00", "not JSON"),
        (b'{"text": "' + b"x" * 5000 + b'"}', "longer than 4,096 bytes"),
    ],
)
def test_a_bad_line_costs_only_itself(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(3) + line + b"\n\n" + lines(2))
    found = read(path, "jsonl", 4096)
    assert summed(found) == [
        ("Document", 1),
        ("Document", 2),
        ("Document", 3),
        ("Fault", 4),
        ("Document", 6),
        ("Document", 7),
    ]
    assert reason in reasons(found)[0]


def test_a_hundred_megabytes_in_one_line_are_passed_over_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with open(path, "wb") as handle:
        handle.write(lines(2))
        for _ in range(100):
            handle.write(b"x" * (1 << 20))
        handle.write(b"\n" + lines(1))
    tracemalloc.start()
    found = read(path, "jsonl", 20 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summed(found) == [("Document", 1), ("Document", 2), ("Fault", 3), ("Document", 4)]
    assert peak < 45 << 20


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text", "html", "warc", "wet", "wikipedia", "dataset"])
def test_an_empty_file_a_folder_and_a_dead_link_are_told(tmp_path: Path, kind: str) -> None:
    empty, folder, link = tmp_path / "empty", tmp_path / "folder", tmp_path / "link"
    empty.write_bytes(b"")
    folder.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    for path, reason in ((empty, "empty"), (folder, "is a folder"), (link, "is a link to nothing")):
        found = read(path, kind)
        holds_nothing = path == empty and kind in ("jsonl", "text", "html")  # and nothing is missing
        assert [(type(each), each.place) for each in found] == [(Dropped if holds_nothing else Fault, 0)]
        assert reason in reasons(found)[0]


def test_noise_never_breaks_a_reader(tmp_path: Path) -> None:
    import random

    for seed, kind in enumerate(
        ["jsonl", "parquet", "text", "html", "warc", "wet", "wikipedia", "dataset"] * 3
    ):
        path = tmp_path / f"noise{seed}"
        path.write_bytes(random.Random(seed).randbytes(5000))
        found = read(path, kind)
        assert found, kind
        assert not any(isinstance(each, Document) for each in found), kind


def test_a_folder_lists_what_fits_and_what_only_looks_so(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jsonl").write_bytes(lines(1))
    (tmp_path / "part.jsonl").mkdir()
    (tmp_path / "part.jsonl" / "0000.jsonl").write_bytes(lines(1))  # as Spark writes
    (tmp_path / "none.jsonl").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    names = [unit.name for unit in local_units(Source(path=str(tmp_path)))]
    assert names == ["none.jsonl", "part.jsonl/0000.jsonl", "sub/b.jsonl"]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    texts = [f"{PROSE} {n}" for n in range(5000)]
    pq.write_table(pa.table({"body": texts, "title": ["t"] * 5000}), path, row_group_size=1000)
    found = read(path, "parquet", text_field="body")
    assert [each.text for each in found if isinstance(each, Document)] == texts
    assert "has no column 'text'; its columns are body, title" in reasons(read(path, "parquet"))[0]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "not whole Parquet" in reasons(read(path, "parquet", text_field="body"))[0]
    middle = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(2).column(0).data_page_offset
    path.write_bytes(data[: middle + 2] + b"\xff" * 60 + data[middle + 62 :])
    found = read(path, "parquet", text_field="body")
    good = [each for each in found if isinstance(each, Document)]
    assert len(good) >= 4000
    assert any("rows cannot be read" in reason for reason in reasons(found))
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert reasons(read(path, "parquet")) == ["field 'text' is int, not text"] * 2


def test_a_dataset_saved_on_disk(tmp_path: Path) -> None:
    from datasets import Dataset

    texts = [f"{PROSE} {n}" for n in range(3000)]
    Dataset.from_dict({"text": texts, "title": [f"t{n}" for n in range(3000)]}).save_to_disk(
        tmp_path / "saved", num_shards=2
    )
    units = local_units(Source(kind="dataset", path=str(tmp_path / "saved")))
    assert len(units) == 2
    found = [each for unit in units for each in read_unit(unit, Source(kind="dataset"), 1 << 20)]
    assert [each.text for each in found if isinstance(each, Document)] == texts
    file = Path(units[0].path)
    file.write_bytes(file.read_bytes()[:-200_000])
    found = read(file, "dataset")
    assert isinstance(found[-1], Fault)
    assert "not whole Arrow data" in found[-1].reason


def test_text_and_markdown(tmp_path: Path) -> None:
    path = tmp_path / "note.md"
    path.write_text("\ufeff# A heading\n\nSome text.\n")
    (found,) = read(path, "text")
    assert isinstance(found, Document)
    assert (found.name, found.text[:3]) == ("A heading", "# A")
    path.write_bytes(b"good line\nbad \xff line\n")
    assert read(path, "text") == [Fault(2, "not UTF-8 (byte 14; set the source's encoding)")]
    path.write_text("x" * 5000)
    assert "longer than 4,096 bytes" in reasons(read(path, "text", 4096))[0]


@pytest.mark.parametrize("extractor", ["justext", "resiliparse", "trafilatura"])
def test_html_main_text(tmp_path: Path, extractor: str) -> None:
    path = tmp_path / "a.html"
    path.write_text(page(7))
    (found,) = read(path, "html", extractor=extractor)
    assert isinstance(found, Document)
    assert "The city council met" in found.text
    assert "Imprint" not in found.text
    assert found.name == "Page 7"
    path.write_text("<html><body><a href='/'>Home</a></body></html>")
    (found,) = read(path, "html", extractor=extractor)
    assert isinstance(found, Dropped)


def warc(pages: list[tuple[str, str, bytes]], packed: bool) -> bytes:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=packed)
    for number, (status, kind, body) in enumerate(pages):
        headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(
                f"https://example.org/{number}", "response", payload=io.BytesIO(body), http_headers=headers
            )
        )
    return out.getvalue()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_warc(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"crawl.warc{suffix}"
    pages = [
        ("200 OK", "text/html; charset=utf-8", page(1).encode()),
        ("404 Not Found", "text/html", page(2).encode()),
        ("200 OK", "image/png", b"\x89PNG"),
        ("200 OK", "text/html", page(3).encode("latin-1")),
    ]
    whole = warc(pages, bool(suffix))
    path.write_bytes(whole)
    found = read(path, "warc")
    assert summed(found) == [("Document", 1), ("Dropped", 2), ("Dropped", 3), ("Document", 4)]
    assert reasons(found) == ["HTTP status 404", "not a text page"]
    for cut in (3, 40, 300):
        path.write_bytes(whole[:-cut])
        found = read(path, "warc")
        assert isinstance(found[-1], Fault), cut
        assert "ends in the middle" in found[-1].reason
        assert summed(found)[0] == ("Document", 1)
    path.write_bytes(warc([("200 OK", "text/html", b"x" * 9000)], bool(suffix)))
    assert "longer than 4,096" in reasons(read(path, "warc", 4096))[0]


def raw_record(kind: str, head: bytes, body: bytes) -> bytes:
    """A WARC record put together by hand, with whatever HTTP head."""
    content = head + b"\r\n\r\n" + body if head else body
    lines = [
        b"WARC/1.0",
        *([b"WARC-Type: " + kind.encode()] if kind else []),
        b"WARC-Target-URI: http://e.org/",
    ]
    lines += [b"Content-Type: " + (b"application/http" if head else b"text/html")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(content), b"", content, b"", b""])


def test_content_encodings_of_web_pages(tmp_path: Path) -> None:
    import brotli
    import zstandard

    body = page(5).encode()
    plain = b"HTTP/1.1 200 OK\r\nContent-Type: text/html"
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    deflated = zlib.compressobj(wbits=-15)
    records = [
        raw_record("response", plain, body),
        *(
            raw_record("response", plain + b"\r\nContent-Encoding: " + name, data)
            for name, data in (
                (b"br", brotli.compress(body)),
                (b"gzip", gzip.compress(body)),
                (b"deflate", zlib.compress(body)),
                (b"deflate", deflated.compress(body) + deflated.flush()),
                (b"zstd", zstandard.ZstdCompressor().compress(body)),
                (b"gzip", body),  # the header was kept, the encoding was not
                (b"gzip, br", brotli.compress(gzip.compress(body))),
                (b"br", b"no brotli at all"),
                (b"rot13", b"what?"),
                (b"gzip", gzip.compress(body)[:-40]),
                (b"gzip", gzip.compress(b"x" * (1 << 26))),
            )
        ),
        raw_record("response", plain + b"\r\nTransfer-Encoding: chunked", chunks),
        raw_record("response", plain, body),
    ]
    path = tmp_path / "crawl.warc"
    path.write_bytes(b"".join(records))
    found = read(path, "warc", 1 << 20)
    documents = [each.place for each in found if isinstance(each, Document)]
    assert documents == [1, 2, 3, 4, 5, 6, 7, 8, 13, 14]
    assert len({each.text for each in found if isinstance(each, Document)}) == 1
    faults = {each.place: each.reason for each in found if isinstance(each, Fault)}
    assert set(faults) == {9, 10, 11, 12}
    assert "'rot13' is not known" in faults[10]
    assert "longer than" in faults[12]


def test_every_record_of_a_warc_is_told_of(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html"
    path = tmp_path / "crawl.warc"
    path.write_bytes(
        raw_record("warcinfo", b"", b"software: test")
        + raw_record("resource", b"", page(1).encode())
        + raw_record("revisit", head, b"")
        + raw_record("", head, page(2).encode())
        + raw_record("response", head, page(3).encode())
    )
    found = read(path, "warc")
    assert summed(found) == [("Document", 2), ("Dropped", 3), ("Fault", 4), ("Document", 5)]
    path.write_bytes(lines(50))
    assert reasons(read(path, "warc")) == ["not a WARC file"]
    path.write_bytes(b"filedesc://x.arc 0.0.0.0 20200101000000 text/plain 76\n1 0 x\n")
    assert "ARC" in reasons(read(path, "warc"))[0]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
def test_a_small_file_that_unpacks_to_a_huge_one_takes_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    part = packed(b'{"text": "' + b"a" * (300 << 20) + b'"}\n', suffix) + packed(lines(3), suffix)
    path.write_bytes(part)
    assert len(part) < 1 << 20
    tracemalloc.start()
    found = read(path, "jsonl", 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 120 << 20
    assert summed(found) == [("Fault", 1), ("Document", 2), ("Document", 3), ("Document", 4)]


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_texts_in_tables_that_are_no_utf8(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"good text", b"bad \xff\xfe text", b"more good text"], pa.binary())
    texts = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    table = pa.table({"text": texts, "title": pa.array(["a", "b", "c"]).dictionary_encode()})
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    found = read(path, kind)
    assert summed(found) == [("Document", 1), ("Fault", 2), ("Document", 3)]
    assert reasons(found) == ["not UTF-8"]


def test_a_long_dump_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_bytes(dump(article("T", "x", 1) * 60_000))
    source = Source(kind="wikipedia", path=str(path))
    tracemalloc.start()
    sizes = []
    for number, _ in enumerate(read_unit(Unit(path.name, str(path)), source, 1 << 20)):
        if number in (5_000, 59_000):
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] < sizes[0] + (1 << 20)


def test_wet(tmp_path: Path) -> None:
    from warcio.warcwriter import WARCWriter

    path = tmp_path / "crawl.warc.wet.gz"
    with open(path, "wb") as handle:
        writer = WARCWriter(handle, gzip=True)
        writer.write_record(writer.create_warcinfo_record("x.wet.gz", {"software": "test"}))
        for body in (PROSE.encode(), b"\xff\xfe bad"):
            writer.write_record(
                writer.create_warc_record("https://e.org", "conversion", payload=io.BytesIO(body))
            )
    found = read(path, "wet")
    assert summed(found) == [("Document", 2), ("Fault", 3)]


def dump(pages: str) -> bytes:
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">'
    return f"{head}{pages}</mediawiki>".encode()


def article(title: str, text: str, space: int = 0, redirect: str = "") -> str:
    return (
        f"<page><title>{title}</title><ns>{space}</ns><id>1</id>{redirect}"
        f"<revision><text xml:space='preserve'>{text}</text></revision></page>"
    )


def test_wikipedia(tmp_path: Path) -> None:
    path = tmp_path / "enwiki-pages-articles.xml.bz2"
    markup = (
        "'''Ada''' was a [[mathematician|writer on numbers]].&lt;ref&gt;A book&lt;/ref&gt; {{infobox|x=1}} "
        + PROSE
    )
    pages = (
        article("Ada", markup)
        + article("Talk:Ada", "chatter", 1)
        + article("Countess", "#REDIRECT [[Ada]]", redirect="<redirect title='Ada'/>")
        + article("Bob", PROSE)
    )
    path.write_bytes(bz2.compress(dump(pages)))
    found = read(path, "wikipedia")
    assert summed(found) == [("Document", 1), ("Dropped", 2), ("Dropped", 3), ("Document", 4)]
    assert isinstance(found[0], Document)
    assert found[0].name == "Ada"
    assert "writer on numbers" in found[0].text
    assert "[[" not in found[0].text
    assert "infobox" not in found[0].text
    whole = path.read_bytes()
    path.write_bytes(whole[:-60])
    assert isinstance(read(path, "wikipedia")[-1], Fault)
    path.write_bytes(bz2.compress(dump(pages).replace(b"</mediawiki>", b"<page><title>")))
    found = read(path, "wikipedia")
    assert summed(found)[-1] == ("Fault", 5)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()


def test_a_source_at_an_address(web: tuple[str, Path]) -> None:
    address, folder = web
    (folder / "a.jsonl.gz").write_bytes(packed(lines(30), ".gz"))
    source = Source(path=f"{address}/a.jsonl.gz")
    ((unit, size, _),) = remote_units(source)
    assert (unit.name, size) == ("a.jsonl.gz", (folder / "a.jsonl.gz").stat().st_size)
    assert len(list(read_unit(unit, source, 1 << 20))) == 30
    with pytest.raises(FileNotFoundError):
        remote_units(Source(path=f"{address}/nothing.jsonl"))


def test_max_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{bad\n" + lines(10))
    assert summed(read(path, "jsonl", max_documents=2)) == [("Fault", 1), ("Document", 2), ("Document", 3)]
