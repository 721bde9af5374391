"""Whether what a recogniser found is personal data where it stands.

A recogniser sees characters: ``4.8.1.0`` is a release, an address or the number of a section.
Here what stands around a find decides.  A find that is cut out of something longer (an object
identifier, a DOI, a path, a decimal fraction) is none, and neither is what the text itself calls
otherwise (``release 96.0.100.45``, ``part number 415-555-2671``).  Four small numbers between dots
are an address only beside a word such as ``server``: versions look like that, while hardly any
address has four parts below :data:`SMALL`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

BEFORE, AFTER = 60, 30  # characters around a find in which a word may say what it is
SMALL = 32  # (32 / 256)^4: one address in 4,000 has four such parts
NETWORK = re.compile(
    r"(?i)\b(?:ip|ipv4|ipv6|addr|address|host|hostname|server|nameserver|dns|resolver|client|peer|proxy|router|gateway|"
    r"subnet|netmask|firewall|network|vpn|ping|traceroute|whois|ssh|telnet|curl|http|https|smtp|imap|tcp|udp|port|mail|"
    r"connect|connected|connection|login|logged|listen|listening|blocked|banned|request|visitor|remote|endpoint|"
    r"inet|nslookup|sender|received)(?:e?s)?\b"
)
VERSION = (
    "v|ver|version|release|build|revision|rev|update|upgrade|upgraded|downgrade|downgraded|bump|bumped|patch|driver|"
    "firmware|kernel|package|runtime|plugin|sdk|toolkit|python|java|jdk|chrome|chromium|firefox|safari|windows|android|ios|"
    "macos|cuda|cudnn|section|sect|sec|chapter|clause|paragraph|para|figure|fig|table|appendix|annex|article|equation|eq|"
    "theorem|lemma|definition|oid|asn|doi|isbn|model|part"
)
COUNTED = (
    "score|point|part|sku|serial|model|order|invoice|ticket|tracking|isbn|issn|ean|upc|asin|doi|pmid|uuid|"
    "guid|range|entry|entrie|value|size|count|seed|row|column|line|page|version|build|release|revision|commit|hash|"
    "checksum|timestamp|epoch|time|date|coordinate|latitude|longitude|lat|lon|byte|offset|index|catalogue|catalog|product|"
    "array|matrix|vector|sequence|digit|decimal|sample|patent|licence|license"
)
# What may stand between such a word and the number that it speaks of: "scores were 1, 2 and".
LINK = (
    r"(?:[\s:=(\"'#-]*+(?:(?:number|no|num|nr|is|was|were|are|of|to|from|in|and|or|between|the|string)\b\.?"
    r"|[vV]?\d[\d.,/ -]*+))*+[\s:=(\"'#-]*+$"
)


def _calling(words: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of the words in front of a number, and right behind it."""
    return (
        re.compile(rf"(?i)(?:\b(?:{words})(?:e?s)?\b|§)\.?{LINK}"),
        re.compile(rf"(?i)\s?(?:are |is |an? |\()*(?:{words})(?:e?s)?\b"),
    )


VERSIONS, COUNTS, NOT_AN_IDENTITY = _calling(VERSION), _calling(f"{COUNTED}|id|identifier"), _calling(COUNTED)
QUAD = r"\d{1,3}(?:\.\d{1,3}){3}"
ANOTHER_BEFORE = re.compile(rf"{QUAD}(?:/\d+)?\s?[-–/,;|]\s?$")  # the one before in a range or list
# What makes a dotted number the end or the middle of something longer.
PART_BEFORE = re.compile(r"[\w.#$+\\]$|[=<>~!^]=\s?$|[\^~]$|[A-Za-z]-$|\d[/:-]$|\d,$")
# Chrome/96.0.100.45, but not /log/81.2.69.142/
PRODUCT_BEFORE = re.compile(r"(?:^|[\s(;,\"'])@?[A-Za-z][\w.+-]*/$")
PART_AFTER = re.compile(
    r"[\w+]|\.\d|,\d{3}\b|-[A-Za-z]"
    r"|\.(?:tar|tgz|zip|gz|whl|jar|exe|msi|deb|rpm|dll|so|dmg|pkg|apk|nupkg|egg|pdf|txt|md|rst|html?|json|ya?ml|xml)\b"
)
PORT_AFTER = re.compile(r":\d{2,5}\b")
PHONE_WORDS = ("phone", "telephone", "tel", "mobile", "cell", "call", "fax", "whatsapp")
WHOLE_BEFORE = re.compile(r"[\w.+=#-]$|\d,$")
WHOLE_AFTER = re.compile(r"\w|[.,]\d|[+-]\d")
# An scp path behind host and colon, an address whose user is named, and the accounts that hosts of repositories have.
REMOTE_AFTER = re.compile(r":(?!//)[\w~.+-]*/|:[\w.+-]+\.git\b|:[~/]")
REMOTE_BEFORE = re.compile(r"\b[A-Za-z][A-Za-z\d+.-]{1,15}://$")
REMOTE_USERS = {"git", "hg", "svn", "bzr", "cvs", "gitea", "gogs"}
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is routed (IANA)


def called(text: str, start: int, end: int, patterns: tuple[re.Pattern[str], re.Pattern[str]]) -> bool:
    """Whether the text calls ``text[start:end]`` by one of the words, in front of it or right behind it."""
    before, behind = patterns
    return bool(before.search(text[max(0, start - BEFORE) : start]) or behind.match(text[end : end + AFTER]))


def speaks_of(text: str, start: int, words: Any) -> bool:
    """Whether one of the words stands in front of a place."""
    before = text[max(0, start - BEFORE) : start].lower()
    return any(re.search(rf"\b{re.escape(word.lower())}\b", before) for word in words or ())


def is_address(text: str, start: int, end: int, recognizer: Any = None) -> bool:
    """Whether an IP address is a public one, and an address at all."""
    found = text[start:end]
    try:
        address = ipaddress.ip_address(found.split("/")[0].split("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return _is_ipv6(text, start, end, address)
    if not address.is_global:
        return False
    before = text[max(0, start - BEFORE) : start]
    cut_out = PART_BEFORE.search(before) or PRODUCT_BEFORE.search(before)
    # One in a list of addresses is whole, and so is the end of "::ffff:81.2.69.142".
    if cut_out and not ANOTHER_BEFORE.search(before) and not before.lower().endswith(":ffff:"):
        return False
    if PART_AFTER.match(text, end) and not text.startswith(".in-addr", end):
        return False
    if "/" in found or PORT_AFTER.match(text, end):
        return True
    if called(text, start, end, VERSIONS):
        return False
    return max(address.packed) >= SMALL or _in_a_network(text, start, end)


def _in_a_network(text: str, start: int, end: int) -> bool:
    return bool(
        NETWORK.search(text[max(0, start - BEFORE) : start]) or NETWORK.search(text[end : end + AFTER])
    )


def _is_ipv6(text: str, start: int, end: int, address: ipaddress.IPv6Address) -> bool:
    """Clock times, hardware addresses, digests and slices (``x[2000::3]``) have colons, too."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_global
    if address not in GLOBAL_UNICAST or not address.is_global:
        return False
    found = text[start:end]
    groups = [group for group in re.split(r"[:/%]", found) if group]
    if len(groups) < 3 and not re.search(r"[A-Fa-f]", groups[0]):
        return _in_a_network(text, start, end)
    return True


def is_mail(text: str, start: int, end: int, recognizer: Any = None) -> bool:
    """Whether an e-mail address is one, and no remote of a repository and no product of matrices."""
    user, _, host = text[start:end].rpartition("@")
    if user.lower() in REMOTE_USERS or REMOTE_AFTER.match(text, end):
        return False
    if REMOTE_BEFORE.search(text[max(0, start - 20) : start]):
        return False
    last = host.rsplit(".", 1)[-1]
    if "/" in user or last.isdigit():
        return False  # golang.org/x/net@v0.1.0
    if last not in (last.lower(), last.upper(), last.capitalize()) or text[end : end + 1] in ("(", "["):
        return False  # q@k.mT, x@w.to(device)
    # a@b.T, x@y.shape: one letter on either side is algebra, but for the few hosts that have one.
    single = len(user) == 1 and len(host.split(".")[0]) == 1
    return not single or last.lower() in ("com", "org", "net", "co")


def is_whole_number(text: str, start: int, end: int, recognizer: Any = None) -> bool:
    """Not the digits of a decimal fraction, a version or a longer name."""
    return not WHOLE_BEFORE.search(text[max(0, start - 2) : start]) and not WHOLE_AFTER.match(text, end)


def is_card(text: str, start: int, end: int, recognizer: Any = None) -> bool:
    """A whole number that the text calls nothing else: one number in ten has a right check digit."""
    return is_whole_number(text, start, end) and not called(text, start, end, COUNTS)


def is_national(text: str, start: int, end: int, recognizer: Any) -> bool:
    """Bare digits with a right check digit are an identity only where the text speaks of one."""
    if not is_whole_number(text, start, end):
        return False
    if speaks_of(text, start, recognizer.context):
        return True
    return not text[start:end].isdigit() and not called(text, start, end, NOT_AN_IDENTITY)


def is_phone(text: str, start: int, end: int, recognizer: Any = None) -> bool:
    """Written as telephone numbers are, or a bare number where the text speaks of one."""
    found = text[start:end]
    if not is_whole_number(text, start, end):
        return False
    if found.startswith("+"):
        return True
    if called(text, start, end, COUNTS):
        return False
    if found.startswith(("(", "00")) or len(re.findall(r"\d[ ./-]+(?=\d)", found)) >= 2:
        return "," not in text[start - 1 : start] + text[end : end + 1] or speaks_of(text, start, PHONE_WORDS)
    return speaks_of(text, start, PHONE_WORDS)
