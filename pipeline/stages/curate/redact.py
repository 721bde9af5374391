"""Personal data and secrets in texts: found by Presidio, phonenumbers and detect-secrets.

Microsoft Presidio's pattern recognisers tell e-mail addresses, telephone numbers (through
Google's ``phonenumbers``), IP addresses, card numbers (Luhn), IBANs (ISO 7064), national
identity numbers (each country's check digits) and Bitcoin addresses; the patterns of
Yelp's ``detect-secrets`` tell keys and tokens of services.  Recognisers that go by names,
places or bare numbers are left out: they need a language model and would damage a corpus
full of versions, dates and matrices.

Every kind has an action: ``replace`` by its tag (``<EMAIL>``), ``hash`` (a tag with the
first digits of the find's SHA-256, so that equal finds stay equal; who tries all telephone
numbers finds one back, so this is a pseudonym, not anonymity), ``drop`` the document, or
``keep``.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from nemo_curator.backends.base import WorkerMetadata

from pipeline.schema import Redact
from pipeline.stages.curate import judges
from pipeline.stages.curate.text_stages import Ledger, TextStage

KINDS = ("email", "phone", "ip", "credit_card", "iban", "national_id", "secret", "crypto_wallet")
# Checksums and national formats; the rest of Presidio's go by bare digits.
NATIONAL = (
    "UsSsnRecognizer", "UsItinRecognizer", "NhsRecognizer", "EsNifRecognizer", "EsNieRecognizer",
    "ItFiscalCodeRecognizer", "PlPeselRecognizer", "FiPersonalIdentityCodeRecognizer",
    "InAadhaarRecognizer", "AuTfnRecognizer", "SgFinRecognizer",
)  # fmt: skip
SURE = 0.5  # Presidio's score of a find that its pattern or check digit alone proves
# What a text must hold for a recogniser to find anything; one quick look instead of a search.
MAY_HOLD = {
    "email": re.compile(r"@[\w-]+\."),
    "phone": re.compile(r"(?<![\d.])\(?\d[\d ().\-/]{5,}\d(?![\d]|\.\d)"),
    "ip": re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]:[0-9A-Fa-f:]*:"),
    "credit_card": re.compile(r"\d(?:[ -]?\d){11}"),
    "iban": re.compile(r"[A-Z]{2}\d{2}[ -]?[A-Z0-9]{4}"),
    "national_id": re.compile(r"(?<![\d.])\d[\d -]{5,}\d|\b(?=[A-Z]*\d)[A-Z0-9]{8,16}\b"),
    "secret": re.compile(r"[A-Za-z0-9_-]{20}|PRIVATE KEY"),
    "crypto_wallet": re.compile(r"(?:bc1|[13])[A-Za-z0-9]{25}"),
}
# Services that detect-secrets does not know, by their issuers' published prefixes; and what it
# reports a part of only: private keys (also where their end is cut off), tokens with a signature.
MORE_SECRETS = (
    re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[^-]*-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s:,-]*)"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),
    re.compile(r"(?i:aws_?secret_?access_?key)\W{1,5}[A-Za-z0-9/+=]{40}(?![A-Za-z0-9/+=])"),
    re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    re.compile(r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}\b"),
    re.compile(r"\bnvapi-[A-Za-z0-9_-]{40,}\b"),
    re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}\b"),
    re.compile(r"\bgithub_pat_[A-Za-z0-9_]{36,}\b"),
)  # fmt: skip
NOTHING_LEFT = "nothing is left beside personal data"
TAG = re.compile(rf"<(?:{'|'.join(kind.upper() for kind in KINDS)})(?::[0-9a-f]{{12}})?>")
# detect-secrets' detectors by format; those by key word or entropy report too much in prose.
DETECTORS = (
    "ArtifactoryDetector", "AWSKeyDetector", "AzureStorageKeyDetector", "DiscordBotTokenDetector",
    "GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector", "MailchimpDetector", "NpmDetector",
    "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector",
    "SquareOAuthDetector", "StripeDetector", "TelegramBotTokenDetector", "TwilioKeyDetector",
)  # fmt: skip


@dataclass(frozen=True)
class Find:
    """Personal data at ``text[start:end]``."""

    start: int
    end: int
    kind: str


class RedactText(TextStage):
    """The redaction of a recipe as a stage; finds are counted by kind and action."""

    titles = True

    def __init__(self, settings: Redact) -> None:
        super().__init__("redact")
        self.settings = settings

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Build the recognisers."""
        self._actions = {kind: getattr(self.settings, kind) for kind in KINDS}
        self._wanted = tuple(kind for kind in KINDS if self._actions[kind] != "keep")
        self._regions = tuple(self.settings.phone_regions)
        for kind in self._wanted:
            searchers(kind, self._regions)

    def one(self, text: str, ledger: Ledger) -> tuple[str | None, str]:
        """The text with its finds replaced; None where one of them drops the document."""
        everything = finds(text, self._wanted, self._regions)
        fatal = next((f.kind for f in everything if self._actions[f.kind] == "drop"), None)
        found = merged(everything)
        for find in found:
            ledger.found[find.kind, self._actions[find.kind]] += 1
        if fatal is not None:
            return None, f"holds {fatal}"
        left = redacted(text, found, self._actions)
        return (None, NOTHING_LEFT) if found and only_tags(left) else (left, "")

    def title(self, name: str, ledger: Ledger) -> tuple[str, str]:
        """A name that is personal data and nothing else costs the document its name only."""
        outcome, reason = self.one(name, ledger)
        return ("", "") if reason == NOTHING_LEFT else (outcome or "", reason)


def redact_rows(
    rows: list[dict[str, Any]], settings: Redact, ledger: Ledger
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The documents without personal data, and why others are dropped: for texts that no pass sees."""
    stage = RedactText(settings)
    stage.setup()
    kept, dropped = [], Counter[str]()
    for row in rows:
        text, reason = stage.one(row["text"], ledger)
        name, fault = stage.title(row["name"], ledger) if row["name"] else ("", "")
        if text is None or fault:
            dropped[reason or fault] += 1
        else:
            kept.append({**row, "text": text, "name": name})
    return kept, dropped


def only_tags(text: str) -> bool:
    """Whether a text holds tags of redaction and no word beside them."""
    return TAG.search(text) is not None and not re.search(r"\w", TAG.sub("", text))


def finds(text: str, kinds: tuple[str, ...], regions: tuple[str, ...]) -> list[Find]:
    """Everything that is found in a text, in order; finds of several kinds may overlap."""
    found = []
    for kind in kinds:
        look = MAY_HOLD.get(kind)
        if look is not None and not look.search(text):
            continue
        for search in searchers(kind, regions):
            found += [Find(start, end, kind) for start, end in search(text)]
    return sorted(found, key=lambda f: (f.start, f.start - f.end, KINDS.index(f.kind)))


def merged(found: list[Find]) -> list[Find]:
    """Finds that overlap as one, of the longest one's kind, so that no end of any is left."""
    joined: list[Find] = []
    longest = 0
    for find in found:
        if not joined or find.start >= joined[-1].end:
            joined.append(find)
            longest = find.end - find.start
            continue
        last = joined[-1]
        kind = find.kind if find.end - find.start > longest else last.kind
        longest = max(longest, find.end - find.start)
        joined[-1] = Find(last.start, max(last.end, find.end), kind)
    return joined


def redacted(text: str, found: list[Find], actions: dict[str, str]) -> str:
    """The text with every find replaced as its kind's action says."""
    parts, at = [], 0
    for find in found:
        value = text[find.start : find.end]
        tag = find.kind.upper()
        if actions[find.kind] == "hash":
            tag += ":" + hashlib.sha256(f"{find.kind}\0{value}".encode("utf-8", "replace")).hexdigest()[:12]
        parts += [text[at : find.start], f"<{tag}>"]
        at = find.end
    return "".join([*parts, text[at:]])


Search = Callable[[str], Iterator[tuple[int, int]]]


@cache
def searchers(kind: str, regions: tuple[str, ...]) -> tuple[Search, ...]:
    """The functions that yield the (start, end) pairs of a kind's finds."""
    if kind == "secret":
        return tuple(_pattern(pattern) for pattern in (*MORE_SECRETS, *_detect_secrets()))
    import tldextract.tldextract as domains
    from presidio_analyzer import predefined_recognizers as known

    # Its list of public suffixes comes with the package; nothing is fetched.
    domains.TLD_EXTRACTOR = domains.TLDExtract(cache_dir=None, suffix_list_urls=())
    if kind == "phone":
        return (
            _phones(
                _presidio(
                    known.PhoneRecognizer(supported_regions=list(regions), leniency=3), 0.0, judges.is_phone
                )
            ),
        )
    names = {
        "email": ("EmailRecognizer",),
        "ip": ("IpRecognizer",),
        "credit_card": ("CreditCardRecognizer",),
        "iban": ("IbanRecognizer",),
        "crypto_wallet": ("CryptoRecognizer",),
        "national_id": NATIONAL,
    }[kind]
    keep = JUDGES.get(kind, _always)
    return tuple(_presidio(getattr(known, name)(), SURE, keep) for name in names)


Judge = Callable[[str, int, int, Any], bool]  # (text, start, end, recogniser) -> is it one?
JUDGES: dict[str, Judge] = {
    "email": judges.is_mail,
    "ip": judges.is_address,
    "credit_card": judges.is_card,
    "national_id": judges.is_national,
}


def _presidio(recognizer: Any, least: float, keep: Judge) -> Search:
    entities = recognizer.supported_entities

    def search(text: str) -> Iterator[tuple[int, int]]:
        for result in recognizer.analyze(text, entities, None):
            if result.score >= least and keep(text, result.start, result.end, recognizer):
                yield result.start, result.end

    return search


def _phones(search: Search) -> Search:
    """The search, for texts only where some digits are written as a number may be (it is slow)."""

    def quick(text: str) -> Iterator[tuple[int, int]]:
        for match in MAY_HOLD["phone"].finditer(text):
            if judges.is_phone(text, *match.span(), None) or text[match.start() - 1 : match.start()] == "+":
                yield from search(text)
                return

    return quick


def _always(text: str, start: int, end: int, recognizer: Any) -> bool:
    return True


def _pattern(pattern: re.Pattern[str]) -> Search:
    def search(text: str) -> Iterator[tuple[int, int]]:
        for match in pattern.finditer(text):
            yield match.span()

    return search


def _detect_secrets() -> list[re.Pattern[str]]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    classes = {cls.__name__: cls for cls in get_mapping_from_secret_type_to_class().values()}
    return [pattern for name in DETECTORS for pattern in classes[name]().denylist]
