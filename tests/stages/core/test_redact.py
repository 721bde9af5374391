"""Redaction: what is found, what is left alone, and what happens to it."""

from __future__ import annotations

import pytest

from pipeline import schema
from pipeline.stages.curate.redact import KINDS, RedactText, finds, merged, redact_rows, redacted
from pipeline.stages.curate.text_stages import Ledger

REGIONS = ("US", "GB", "DE", "FR")


def found(text: str, kind: str) -> list[str]:
    return [text[f.start : f.end] for f in merged(finds(text, KINDS, REGIONS)) if f.kind == kind]


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("Write to jane.doe+x@mail.example.org today", "email", ["jane.doe+x@mail.example.org"]),
        ("Written by jane@example.org, joe@lab.uni.edu", "email", ["jane@example.org", "joe@lab.uni.edu"]),
        ("a decorator @functools.wraps and x@y matrix product", "email", []),
        ("the server 8.8.8.8 answers, 2001:4860:4860::8888 too", "ip", ["8.8.8.8", "2001:4860:4860::8888"]),
        ("listens on 127.0.0.1, 10.0.0.3, ::1, fe80::1 and 0.0.0.0", "ip", []),
        ("Example 1::\n\n    x[::2]; std::vector at 10:20:30", "ip", []),
        ("version 1.22.333.4444 and 1.2.3", "ip", []),
        ("call +44 20 7946 0958 or (415) 555-0132", "phone", ["+44 20 7946 0958", "(415) 555-0132"]),
        ("Tel. 030 901820 in Berlin, phone: 4155550132", "phone", ["030 901820", "4155550132"]),
        ("array([123-456, 2023-01-15]) 1e-3 0.123-0.456 0.57735027, 12.", "phone", []),
        ("[[ 0.70710678,  0.70710678],\n [4155550132, 2125550199]]", "phone", []),
        ("pay with 4111 1111 1111 1111 or 5500-0000-0000-0004", "credit_card", ["4111 1111 1111 1111", "5500-0000-0000-0004"]),
        ("not 4111 1111 1111 1112, nor 0.4111111111111111", "credit_card", []),
        ("to DE89 3704 0044 0532 0130 00 please", "iban", ["DE89 3704 0044 0532 0130 00"]),
        ("to DE88 3704 0044 0532 0130 00 please", "iban", []),
        ("SSN 536-90-4399", "national_id", ["536-90-4399"]),
        ("DNI 12345678Z, PESEL: 44051401359", "national_id", ["12345678Z", "44051401359"]),
        ("checksum 44051401359 and 0.44051401359", "national_id", []),
        ("key AKIAIOSFODNN7EXAMPLE here", "secret", ["AKIAIOSFODNN7EXAMPLE"]),
        ("token ghp_0123456789abcdefghijklmnopqrstuvwxyz", "secret", ["ghp_0123456789abcdefghijklmnopqrstuvwxyz"]),
        ("export HF=hf_abcdefghijklmnopqrstuvwxyz012345", "secret", ["hf_abcdefghijklmnopqrstuvwxyz012345"]),
        ("a very_long_identifier_name_of_a_python_function and sk-learn", "secret", []),
        ("to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "crypto_wallet", ["1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"]),
    ],
)  # fmt: skip
def test_finds(text: str, kind: str, expected: list[str]) -> None:
    assert found(text, kind) == expected


NO_PERSONAL_DATA = (
    # the case pii-false-positives
    "The release 4.8.1.0 of the runtime fixes a leak; 4.30.319.1 had it still.",
    "See section 8.8.4.4 of the manual and figure 1.1.1.1 beside it.",
    "The ISBN of the book is 978-3-16-148410-0 and its shelf mark 0-306-40615-2.",
    "The log starts at 2021-03-04 12:30:45 and ends at 2021-03-04 12:31:10.",
    "The build 20240115 1200 3344 came after 20240114 1100 2233.",
    "Timestamps 1609459200000, 1672531200000 and 4539578763621486 are epoch values.",
    "The range 100-200-3000 holds 200 300 4000 entries.",
    "Commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b, uuid 123e4567-e89b-12d3-a456-426614174000",
    "Pi is 3.14159 26535 89793 23846 26433 to some digits.",
    "The scores were 212 555 0123 and 415 555 0199 points.",
    "Write to user@host in the shell, or git@github.com:org/repo.git for a clone.",
    "The model 1.3.6.1.4.1.311 is an OID; 2.5.4.3 is another.",
    "MAC 00:1A:2B:3C:4D:5E and IPv6 2001:db8::1 are examples.",
    "Part number 415-555-2671 is a bolt, size 8/16/32.",
    "DOI 10.1000/182.200.30.4 and arXiv 2310.03716 are cited.",
    # versions of other forms
    "Upgrade from 96.0.100.45 to 97.1.150.2, or pin chrome==98.1.200.9 (>= 96.0.100.45).",
    "driver 31.0.101.2 and firmware v81.2.69.142; 81.2.69.142-beta and 81.2.69.142+build",
    "Mozilla/5.0 Chrome/96.0.100.45 and python/81.2.69.142 are products",
    "get libfoo.so.81.2.69.142, tool-81.2.69.142.tar.gz, tool_81.2.69.142.whl and 1:81.2.69.142-1",
    "chapter 3.2.1.4, Table 2.3.4.5 and clause 6.7.8.9; § 12.13.14.15",
    # colons
    "fingerprint 16:27:ac:a5:76:28:2d:36:63:1b:56:4d:eb:df:a6:48, guid 20:01:0c:c9:03:00:7e:ab",
    "00:1a:2b:ff:fe:3c:4d:5e is an EUI-64, x[2000::3] a slice, dead::beef a joke",
    # signs @ in code
    "git clone ssh://git@gitlab.example.org/org/repo.git; git remote add o deploy@git.example.org:team/app.git",
    "git clone https://me@bitbucket.org/team/repo.git; see https://reader@docs.example.org/page or git+https://bot@dev.example.org/x",
    "rsync -a build@files.example.org:/srv/app . && npm i @types/node@18.0.1 @scope/pkg@1.2.3",
    "s = q@k.mT; y = x@w.to(device); z = A@B.T; @app.route('/')\n@property.setter",
    "go get golang.org/x/net@v0.1.0 and image@sha256:0123456789abcdef0123456789abcdef",
    "at 48.858370, 2.294481 (latitude 48.858370, longitude 2.294481)",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_PERSONAL_DATA)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    """The case pii-false-positives and its kin."""
    assert [(f.kind, text[f.start : f.end]) for f in merged(finds(text, KINDS, REGIONS))] == []


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("the host 4.8.1.0 and IP 1.1.1.1", "ip", ["4.8.1.0", "1.1.1.1"]),
        ("81.2.69.142 - - [10/Oct/2020] GET /", "ip", ["81.2.69.142"]),
        ("Since the last release, 81.2.69.142 was blocked.", "ip", ["81.2.69.142"]),
        ("ip=81.2.69.142 src:81.2.69.143,81.2.69.144", "ip", ["81.2.69.142", "81.2.69.143", "81.2.69.144"]),
        ("range 81.2.69.142-81.2.69.160", "ip", ["81.2.69.142", "81.2.69.160"]),
        ("open http://81.2.69.142:8080/x or 4.8.1.0:443, ssh root@81.2.69.142", "ip", ["81.2.69.142", "4.8.1.0", "81.2.69.142"]),
        ("at 2606:4700::1111 and 2a00:1450:4001:82a::200e", "ip", ["2606:4700::1111", "2a00:1450:4001:82a::200e"]),
        ("Write to anna@example.org: she knows; mailto:bob@example.org", "email", ["anna@example.org", "bob@example.org"]),
        ("Jane Doe, 415-555-2671; reach me on 212 555 0123", "phone", ["415-555-2671", "212 555 0123"]),
        ("card 4111111111111111", "credit_card", ["4111111111111111"]),
    ],
)  # fmt: skip
def test_what_is_personal_data_goes(text: str, kind: str, expected: list[str]) -> None:
    assert found(text, kind) == expected


def test_a_document_of_personal_data_alone_is_dropped() -> None:
    stage = RedactText(schema.Redact(email="hash"))
    stage.setup()
    assert stage.one(" anna@example.org, 81.2.69.142!\n", Ledger()) == (
        None,
        "nothing is left beside personal data",
    )
    assert stage.title("anna@example.org", Ledger()) == ("", "")
    assert stage.one("Ask anna@example.org.", Ledger())[0] is not None


def test_documents_that_a_model_made() -> None:
    ledger = Ledger()
    rows = [{"text": text, "name": "n"} for text in ("Ask anna@example.org.", "anna@example.org", "Ask her.")]
    kept, dropped = redact_rows(rows, schema.Redact(), ledger)
    assert [row["text"] for row in kept] == ["Ask <EMAIL>.", "Ask her."]
    assert dropped == {"nothing is left beside personal data": 1}
    assert ledger.found["email", "replace"] == 2


def test_a_private_key_goes_whole() -> None:
    text = "before\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----\nafter"
    actions = dict.fromkeys(KINDS, "replace")
    assert redacted(text, merged(finds(text, KINDS, REGIONS)), actions) == "before\n<SECRET>\nafter"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0 end", "jwt <SECRET> end"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEF", "<SECRET>"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY done", "<SECRET> done"),
        ("see 8.8.8.8/24 there", "see <IP> there"),
    ],
)
def test_nothing_of_a_secret_is_left(text: str, left: str) -> None:
    assert redacted(text, merged(finds(text, KINDS, REGIONS)), dict.fromkeys(KINDS, "replace")) == left


def test_a_secret_inside_another_find_still_drops() -> None:
    token = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
    text = f"clone https://user:{token}@github.com/x today"
    stage = RedactText(schema.Redact(secret="drop"))
    stage.setup()
    assert stage.one(text, Ledger()) == (None, "holds secret")
    stage = RedactText(schema.Redact())
    stage.setup()
    changed, _ = stage.one(text, Ledger())
    assert changed is not None
    assert "ghp_" not in changed
    assert token[-8:] not in changed


def test_actions() -> None:
    text = "Mail a@example.org, a@example.org and b@example.org from 8.8.8.8"
    stage = RedactText(schema.Redact(email="hash", ip="keep"))
    stage.setup()
    ledger = Ledger()
    changed, _ = stage.one(text, ledger)
    assert changed is not None
    tags = [word.strip(",") for word in changed.split() if word.startswith("<EMAIL:")]
    assert tags[0] == tags[1] != tags[2]
    assert "8.8.8.8" in changed
    assert ledger.found == {("email", "hash"): 3}
    stage = RedactText(schema.Redact(email="replace", ip="drop"))
    stage.setup()
    assert stage.one(text, Ledger()) == (None, "holds ip")


def test_real_documentation_is_hardly_touched() -> None:
    """Numbers, versions and slices abound here; personal data is rare and mostly authors' addresses."""
    from collections import Counter

    from pipeline.stages.curate.harvest import package_sources, read_docstrings

    counts: Counter[str] = Counter()
    documents = [
        d["text"] for module, file in package_sources("scipy") for d in read_docstrings(module, file, "scipy")
    ]
    for text in documents:
        counts.update(find.kind for find in merged(finds(text, KINDS, REGIONS)))
    assert len(documents) > 3000
    assert counts["email"] > 5
    assert counts.total() - counts["email"] < 0.01 * len(documents)
