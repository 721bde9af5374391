"""Files as people have them: arrays, tables, byte order marks, character sets; and files made to break a reader."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_readers import PROSE, page, raw_record, read, reasons, summed

from pipeline.stages.curate.readers import Document, Dropped, Fault, Read
from pipeline.stages.curate.readers.charset import page_text
from pipeline.stages.curate.readers.lines import elements
from pipeline.stages.curate.readers.records import read_records


def texts(found: list[Read]) -> list[str]:
    return [each.text for each in found if isinstance(each, Document)]


ROWS = [{"text": f"text {n} with ünï\u2028code", "title": f"T{n}"} for n in range(4)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_windows_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    """The case "jsonl-bom"."""
    plain = end.join(json.dumps(row, ensure_ascii=False) for row in ROWS) + end
    path = tmp_path / "a.jsonl.gz"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(gzip.compress(mark + plain.encode(encoding)))
    assert texts(read(path, "jsonl")) == [row["text"] for row in ROWS]
    path = tmp_path / "a.txt"
    path.write_bytes(mark + plain.encode(encoding))
    assert texts(read(path, "text")) == [plain]


def test_empty_texts_are_dropped_as_empty_and_counted(tmp_path: Path) -> None:
    """The case "parquet-empty-rows": null and white space are no damage."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = ["one", "", None, " \n", "five"]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text('text,n\none,1\n"",2\n,3\n" ",4\nfive,5\n')
    for kind in ("parquet", "jsonl", "csv"):
        found = read(tmp_path / f"a.{kind}", kind)
        assert [type(each) for each in found] == [Document, Dropped, Dropped, Dropped, Document]
        assert set(reasons(found)) == {"the text is empty"}


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_arrays_in_one_line_or_many(tmp_path: Path, indent: int | str | None) -> None:
    """The case "instructions-json-array", as a source and as a file of chats."""
    nested = [{**row, "meta": {"a": ["x]", {"b": '}"'}]}} for row in ROWS]
    path = tmp_path / "alpaca_data.json"
    path.write_bytes(b"\xef\xbb\xbf " + json.dumps(nested, indent=indent).encode())
    assert texts(read(path, "json")) == [row["text"] for row in ROWS]
    assert [found[1] for found in read_records(str(path), 1 << 20) if isinstance(found, tuple)] == nested
    packed = tmp_path / "a.json.bz2"
    packed.write_bytes(bz2.compress(path.read_bytes()))
    assert texts(read(packed, "json")) == [row["text"] for row in ROWS]


def test_objects_over_several_lines_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))
    found = read(path, "json")
    assert texts(found) == [row["text"] for row in ROWS]
    assert [each.place for each in found] == [1, 5, 9, 13]


def test_a_bad_element_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    good = '{"text": "good"}'
    path.write_text(
        f'[\n{good},\n7, "x",\n{{"text": "a "quoted" word"}},\n{good},\n{{"text": NaN}},\n{good}\n]'
    )
    found = read(path, "json")
    assert [each.place for each in found if isinstance(each, Document)] == [2, 5, 7]
    assert [each.place for each in found if isinstance(each, Fault)] == [3, 3, 4, 6]
    path.write_text(f"[{good},\n{good}")
    assert "ends in the middle" in reasons(read(path, "json"))[-1]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_elements_do_not_depend_on_how_the_bytes_come(size: int) -> None:
    data = json.dumps([{"a": 'q"\\\\', "b": [{"c": "]}"}]}, 1, [2], "s", {"d": None}], indent=1).encode()
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    values = [json.loads(piece) for _, piece in elements(pieces, 1 << 20) if piece and piece[:1] in b"{["]
    assert values == [{"a": 'q"\\\\', "b": [{"c": "]}"}]}, [2], {"d": None}]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"name,age\nAnna,3\n" * 200, "is not JSON: no line begins with { or ["),
        (b"PAR1" + bytes(500), "is not JSON but Parquet"),
        (gzip.compress(b"{}\n"), "gzip data (name it *.gz)"),
        (b"<html>\n<body>\n" * 50, "is not JSON but XML or HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid x\n", "Git LFS pointer"),
        (bytes([0, 5, 22, 7]) + b"Mac OS X\n" * 20, "is not JSON: no line begins"),
    ],
)
def test_another_format_is_told_in_one_sentence(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    (found,) = read(path, "jsonl")
    assert isinstance(found, Fault)
    assert found.place == 0
    assert said in found.reason


@pytest.mark.parametrize("name", ["a.csv", "b.TSV", "semicolon.csv", "sep.csv", "excel.csv.gz"])
def test_tables(tmp_path: Path, name: str) -> None:
    separator = {"b.TSV": "\t", "semicolon.csv": ";", "sep.csv": "|"}.get(name, ",")
    rows = [["text", "title", "extra"], ['"several\r\nlines, ""quoted"""', "T", "x"], ["plain", "U", ""]]
    plain = "\r\n".join(separator.join(row) for row in rows) + "\r\n\r\n"
    data = (f"sep={separator}\r\n" if name == "sep.csv" else "") + plain
    packed = data.encode("utf-16" if "excel" in name else "utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(packed) if name.endswith(".gz") else packed)
    found = read(tmp_path / name, "csv")
    assert [text.replace("\r", "") for text in texts(found)] == ['several\nlines, "quoted"', "plain"]
    assert [each.unused for each in found if isinstance(each, Document)] == [("extra",), ()]
    assert [each.name for each in found if isinstance(each, Document)] == ["T", "U"]


def test_a_bad_row_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,n\ngood,1\nragged\ngood,2,3\nb\xffd,4\n"open,5\ngood,6\n"x"y,7\ngood,8\n')
    found = read(path, "csv")
    assert summed(found) == [
        ("Document", 2),
        *(("Fault", line) for line in (3, 4, 5, 6)),
        ("Document", 7),
        ("Fault", 8),
        ("Document", 9),
    ]
    assert "has 1 fields, and the first row names 2" in reasons(found)[0]
    path.write_text("a,b\n1,2\n")
    assert reasons(read(path, "csv")) == ["has no column 'text'; its first row names a, b (set text_field)"]
    path.write_text("text,text\n1,2\n")
    assert reasons(read(path, "csv")) == ["has the column 'text' more than once"]
    path.write_text('text,n\n"never closed,\n' + "word,1\n" * 3000)
    found = read(path, "csv", 4096)
    assert len(texts(found)) == 3000


def test_chats_in_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"role": "user", "content": "Hi,\nyou"}, {"role": "assistant", "content": "Hello"}]
    quoted = json.dumps(turns).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages,id\n"{quoted}",7\n')
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "id": "7"}]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        found = list(read_records(str(tmp_path / name), 1 << 20))
        assert [each[1] for each in found if isinstance(each, tuple)] == [{"messages": turns, "id": "7"}]


def test_json_in_a_table_is_text_where_it_is_no_turns(tmp_path: Path) -> None:
    """Answers of function calling and structured output are JSON for its own sake."""
    rows = {"prompt": "[1, 2, 3]", "chosen": '{"a": 1}', "rejected": '[{"a": 2}]', "scores": "[2, 1]"}
    turns = [{"role": "user", "content": "Hi"}]
    with open(tmp_path / "a.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, rows)
        writer.writeheader()
        writer.writerow(rows)
        writer.writerow({**rows, "prompt": json.dumps(turns)})
    found = [each[1] for each in read_records(str(tmp_path / "a.csv"), 1 << 20) if isinstance(each, tuple)]
    assert found == [{**rows, "scores": [2, 1]}, {**rows, "prompt": turns, "scores": [2, 1]}]


JAPANESE = "市議会は火曜日に川に架かる新しい橋について話し合いました。" * 8
RUSSIAN = "Городской совет во вторник обсудил новый мост через реку, и большинство было за. " * 8
KOREAN = "시의회는 화요일에 강을 가로지르는 새로운 다리에 대해 논의했습니다. " * 8
CHINESE = "市议会星期二讨论了横跨河流的新桥，大多数到场的人都表示赞成。" * 8
WESTERN = "Le conseil a débattu “du pont” mardi – l’été, c’est près de 3 € à l’œuvre. " * 8
SETS = [
    ("shift_jis", JAPANESE, "cp932"),
    ("windows-1251", RUSSIAN, "cp1251"),
    ("euc-kr", KOREAN, "cp949"),
    ("gb2312", CHINESE, "gb18030"),
    ("iso-8859-1", WESTERN, "cp1252"),  # as browsers read it
]


@pytest.mark.parametrize(("name", "text", "codec"), SETS)
@pytest.mark.parametrize("where", ["header", "meta", "http-equiv", "xml", "mark", "utf-8"])
def test_pages_are_read_in_their_own_character_set(name: str, text: str, codec: str, where: str) -> None:
    head = {
        "meta": f"<meta charset='{name}'>",
        "http-equiv": f'<META http-equiv=Content-Type content="text/html; charset={name}">',
        "utf-8": f"<meta charset={name}>",  # a declaration that the bytes belie
    }.get(where, "")
    html = f"<html><head><!-- <meta charset=koi8-r> -->{head}<title>{text[:20]}</title></head><p>{text}</p></html>"
    if where == "xml":
        html = f'<?xml version="1.0" encoding="{name}"?>\n{html}'
    if where == "utf-8" and codec not in ("cp1251", "cp1252"):
        pytest.skip("text of several bytes a character is taken at its word")
    data = html.encode({"mark": "utf-16", "utf-8": "utf-8"}.get(where, codec))
    read_as = page_text(data, f'text/html; charset="{name.upper()}"' if where == "header" else "text/html")
    assert text in read_as
    assert "<?xml" not in read_as


@pytest.mark.parametrize(("name", "text", "codec"), SETS)
def test_a_crawled_page_in_its_own_character_set(tmp_path: Path, name: str, text: str, codec: str) -> None:
    body = page(1, text).replace("Page 1", text[:12]).encode(codec)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={name}".encode()
    (tmp_path / "a.warc").write_bytes(raw_record("response", head, body))
    (found,) = read(tmp_path / "a.warc", "warc", extractor="resiliparse")
    if isinstance(found, Document):  # without stop words of its language a text may have none
        assert found.name == text[:12].strip()
        assert found.text[:8] in f"{text[:12]} {text}"
    else:
        assert found == Dropped(1, "no main text in the page")


# -- files made to break a reader ------------------------------------------------------


def head_of(length: str) -> bytes:
    return b"WARC/1.0\r\nWARC-Type: resource\r\nContent-Type: text/html\r\nContent-Length: %s\r\n\r\n" % (
        length.encode()
    )


@pytest.mark.parametrize(
    "absurd",
    [
        head_of("99999999999999999") + b"x" * 50,
        head_of("9" * 5000) + b"x",
        head_of("-1") + b"x",
        head_of("many") + b"x",
        head_of("600000") + b"x" * 50,  # reaches into the records behind it
        head_of("10") + b"x" * 500,
        b"WARC/1.0\r\nX-Long: " + b"h" * (3 << 20) + b"\r\n\r\nx",
        b"WARC/1.0\r\n" + b"h: 1\r\n" * (1 << 19) + b"\r\nx",
        head_of(str(3 << 20)) + b"y" * (3 << 20),
    ],
)
def test_an_absurd_warc_record_costs_only_itself(tmp_path: Path, absurd: bytes) -> None:
    path = tmp_path / "a.warc"
    good = raw_record("resource", b"", page(1).encode())
    path.write_bytes(good + absurd + b"\r\n\r\n" + good * 3)
    tracemalloc.start()
    found = read(path, "warc")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summed(found) == [("Document", 1), ("Fault", 2), *(("Document", n) for n in (3, 4, 5))]
    assert peak < 24 << 20


def test_a_warc_whose_lengths_all_lie_takes_linear_time(tmp_path: Path) -> None:
    record = head_of("900000") + b"short\r\n\r\n"
    for count in (500, 2000):
        (tmp_path / "a.warc").write_bytes(record * count)
        started = time.process_time()
        found = read(tmp_path / "a.warc", "warc")
        spent = time.process_time() - started
        assert len([each for each in found if isinstance(each, Fault)]) == count
    assert spent < 10  # reading a length's worth for each record would be 1.8 GB


def dump(body: Iterator[bytes], path: Path) -> None:
    with open(path, "wb") as handle:
        handle.write(b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">')
        for part in body:
            handle.write(part)
        handle.write(b"</mediawiki>")


def small(title: str) -> bytes:
    return f"<page><title>{title}</title><ns>0</ns><revision><text>{PROSE}</text></revision></page>".encode()


@pytest.mark.parametrize("inside", ["text", "comment"])
def test_one_giant_page_of_a_dump_is_let_go_while_it_is_read(tmp_path: Path, inside: str) -> None:
    def body() -> Iterator[bytes]:
        yield small("A")
        yield b"<page><title>B</title><ns>0</ns><revision><text>" + b"<!--" * (inside == "comment")
        for _ in range(16):
            yield b"word " * (1 << 18)
        yield b"-->" * (inside == "comment") + b"</text></revision></page>"
        yield small("C")

    dump(body(), tmp_path / "d.xml")
    tracemalloc.start()
    found = read(tmp_path / "d.xml", "wikipedia")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
    assert summed(found)[:2] == [("Document", 1), ("Fault", 2)]
    if inside == "text":
        assert summed(found)[2:] == [("Document", 3)]


FORMS = {  # kind, beginning, what is repeated, end
    "line": ("jsonl", b'{"text": "', b"x" * (1 << 20), b'"}\n{"text": "end"}\n'),
    "element": ("json", b'[{"text": "', b"x" * (1 << 20), b'"}, {"text": "end"}]'),
    "row": ("csv", b'text,n\n"', b"x" * (1 << 19) + b"\n", b'"\nend,1\n'),
    "bomb": ("text", b"", b"x" * (1 << 20), b""),
}


@pytest.mark.parametrize("form", FORMS)
def test_giant_records_are_let_go_while_they_are_read(tmp_path: Path, form: str) -> None:
    kind, head, piece, end = FORMS[form]
    path = tmp_path / ("a.gz" if form == "bomb" else "a")
    data = head + piece * 40 + end
    path.write_bytes(gzip.compress(data, 1) if form == "bomb" else data)
    del data
    tracemalloc.start()
    found = read(path, kind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
    assert isinstance(found[0], Fault)
    assert texts(found) == ([] if form == "bomb" else ["end"])


def test_an_array_of_many_elements_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" + b'{"text":"x"},' * 8_000 + b'{"text":"y"}]')
    sizes = []
    tracemalloc.start()
    for found in read_records(str(path), 1 << 20):
        if not isinstance(found, Fault) and found[1]["text"] == "y":
            sizes.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert len(sizes) == 1
    assert sizes[0] < 4 << 20
