"""Personal data in documents, replaced by a tag and counted by kind.

The patterns are narrow on purpose: this corpus is full of version numbers, dates and
matrices, and a wrong replacement damages what the model learns.  E-mail follows RFC 5322's
dot-atom; addresses must be public (:mod:`ipaddress`); telephone numbers must be written
with a country code or in the North American form; keys by their issuers' published
prefixes.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_][\w.+-]{0,63}(?:@| (?:at|AT) |\s?[\[<(]at[\]>)]\s?)"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b"
)
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]\(?\d{1,4}\)?(?:[ .-]\d{2,4}){2,4}|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
)
API_KEY = re.compile(
    r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35})\b"
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----.*?-----END (?:[A-Z]+ )?PRIVATE KEY-----",
    re.DOTALL,
)
PATTERNS = {"email": EMAIL, "ipv4": IPV4, "phone": PHONE, "api_key": API_KEY}


def redact(text: str, kinds: list[str], counts: Counter[str]) -> str:
    """The text with every find of the given kinds replaced by ``<KIND>``; adds to ``counts``."""
    for kind in kinds:
        text = PATTERNS[kind].sub(_replacement(kind, counts), text)
    return text


def _replacement(kind: str, counts: Counter[str]) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        found = match.group(0)
        if kind == "ipv4" and not _is_public(found):
            return found
        if kind == "email" and " " in found and "." not in found.split()[-1]:
            return found
        counts[kind] += 1
        return f"<{kind.upper()}>"

    return replace


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
