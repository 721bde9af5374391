"""Redaction: what is found, what is left alone, and what happens to it."""

from __future__ import annotations

import pytest

from pipeline import schema
from pipeline.stages.curate.redact import KINDS, RedactText, finds, merged, redacted
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
