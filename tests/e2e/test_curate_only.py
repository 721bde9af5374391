"""The curate-only recipes on the small files that come with the tests, as a user runs them."""

from __future__ import annotations

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conftest import Lifecycle, free_ports


def report(lifecycle: Lifecycle, recipe: str) -> dict:
    return json.loads((lifecycle.latest("curate", recipe) / "report.json").read_text())


def test_a_web_crawl(tmp_path: Path) -> None:
    lifecycle = Lifecycle(tmp_path / "runs", "")
    lifecycle("curate", "--keep-dropped", recipe="curate-web")
    made = report(lifecycle, "curate-web")
    counts, fates = made["documents"], made["fates"]
    assert counts["raw"] == counts["kept"] + sum(counts["dropped"].values()) > 150
    assert counts["kept"] > 80
    assert fates["reading"]["HTTP status 404"] == 1
    assert fates["language"] == {"language de not kept": 1, "language fr not kept": 1}
    assert fates["exact-duplicates"]["exact duplicate"] >= 10  # the mirrors
    assert fates["near-duplicates"]["near-duplicate"] >= 5  # the edited copies
    dropped = (lifecycle.latest("curate", "curate-web") / "dropped" / "documents.jsonl").read_text()
    rows = [json.loads(line) for line in dropped.splitlines()]
    assert any("buy cheap shoes" in row["text"] and row["reason"] for row in rows)
    again = lifecycle("curate", "--keep-dropped", recipe="curate-web")
    assert "ran" not in again.split("key figures")[-1].split()


def test_a_companys_documents(tmp_path: Path) -> None:
    lifecycle = Lifecycle(tmp_path / "runs", "")
    lifecycle("curate", recipe="curate-documents")
    made = report(lifecycle, "curate-documents")
    assert made["fates"]["redact"] == {"holds secret": 1}
    assert made["redactions"]["email"] == {"hash": 1}
    assert made["redactions"]["iban"] == {"replace": 1}
    assert made["redactions"]["phone"] == {"replace": 1}
    assert {source["name"]: source["licence"] for source in made["sources"]} == {
        "handbook": "internal",
        "faq": "internal",
    }
    folder = lifecycle.latest("curate", "curate-documents") / "pretrain" / "train"
    assert [file.name for file in folder.iterdir()] == ["00000.parquet"]
    text = json.dumps(made) + (folder / "00000.parquet").read_bytes().decode("latin-1")
    assert "northwind-ferries.example.org" not in text
    assert "AKIA" not in text


def test_what_is_wrong_with_the_stages_is_told_with_its_line(tmp_path: Path) -> None:
    lifecycle = Lifecycle(tmp_path / "runs", free_ports())
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "stages: [curate]\nuse: {curate: web-english}\ncurate:\n"
        "  sources: [{kind: text, path: docs}]\n  filters:\n    WordCountFilter:\n      min_wrods: 3\n"
    )
    said = lifecycle("curate", recipe=str(recipe), code=2)
    assert "mine.yaml:7: curate.filters.WordCountFilter.min_wrods: there is no parameter 'min_wrods'" in said
    assert "did you mean 'min_words'" in said
    assert "there are: lang, max_words, min_words" in said


def test_a_source_at_an_address_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    lines = [
        json.dumps({"text": f"Document {n} tells of the number {n * n} and of little else."})
        for n in range(60)
    ]
    (served / "docs.jsonl").write_text("\n".join(lines) + "\n")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(served))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    recipe = tmp_path / "mine.yaml"
    address = f"http://127.0.0.1:{server.server_port}/docs.jsonl"
    recipe.write_text(
        f"stages: [curate]\ncurate:\n  pairs: false\n  sources: [{{kind: jsonl, path: '{address}'}}]\n"
    )
    lifecycle = Lifecycle(tmp_path / "runs", "model.vocab_size=300")
    assert "60 of 60 documents" in lifecycle("curate", recipe=str(recipe))
    assert "done" in lifecycle("plan", recipe=str(recipe))
    (served / "docs.jsonl").write_text("\n".join(lines[:50]) + "\n")
    assert "input docs.jsonl changed" in lifecycle("plan", recipe=str(recipe))
    server.shutdown()
    server.server_close()
    assert "cannot be listed" in lifecycle("curate", recipe=str(recipe), code=2)
