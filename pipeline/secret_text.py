"""Secrets in settings: what is set is written into manifests, job files, reports and logs, so none may stand there.

Keys and passwords come from the environment, in the variables that each client reads (HF_TOKEN, AWS_SECRET_ACCESS_KEY,
WANDB_API_KEY ...; on a cluster ``site.secrets`` names them), or from a file that a setting names.  :func:`fault` says what
is wrong with a text without repeating it; :func:`redacted` is for texts of others, such as a library's error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# What a container or folder is called before an @ is no user: abfs://CONTAINER@ACCOUNT.dfs.core.windows.net (Azure).
USER = re.compile(r"(?<=//)(?:[^\s/?#@'\"]*|[^\s/?#@:'\"]*:(?!\d+(?:[/?#]|$))[^\s@'\"]*)@")
CONTAINER = re.compile(r"(?:abfss?|wasbs?)://[^\s/?#@:]+@", re.IGNORECASE)
NAMES = (
    r"(?:[\w.-]*[_.-])?(?:token|pass(?:word|wd|phrase)?|pwd|secret|signature|api[_-]?key|secret[_-]?key|shared[_-]?access[_-]?key|"
    r"access[_-]?key(?:[_-]?id)?|account[_-]?key|private[_-]?key|credentials?|jwt|pat)|apikey|accesstoken|authtoken|sig|key|auth|"
    r"AWSAccessKeyId"
)
VALUE = r"(?P<value>[^\s&;#'\"$][^\s&;#'\"]*)"
PARAMETER = re.compile(
    rf"(?P<before>[?&;#](?:{NAMES})=){VALUE}", re.IGNORECASE
)  # of an address, or a connection string
VARIABLE = re.compile(  # of a shell line; a value that begins with $ is taken from elsewhere, and one with / lies in a file
    r"(?P<before>\b(?:[A-Z][A-Z0-9]*_)*(?:TOKEN|PASS|[A-Z]*PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY(?:_ID)?|SECRET_KEY|KEY)=['\"]?)"
    r"(?P<value>[^\s'\"$/~][^\s'\"]*)"
)
OPTION = re.compile(  # of a command
    r"(?P<before>(?<![\w-])--(?:[\w-]+-)?(?:token|pass(?:word|wd|phrase)?|secret|api-?key|access-key)(?:=|\s+)['\"]?)"
    r"(?P<value>[^\s'\"$/~-][^\s'\"]*)",
    re.IGNORECASE,
)
LOGIN = re.compile(
    r"(?P<before>\bcurl\b[^|;&\n]*?\s(?:-u|--user)(?:=|\s+)['\"]?[^\s:'\"$]+:)(?P<value>[^\s'\"$:][^\s'\"]*)"
)
HEADER = re.compile(
    r"(?P<before>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token)\s+)?)(?P<value>[^\s'\"$][^\s'\"]*)|"
    r"(?P<before_bearer>\bbearer\s+)(?P<value_bearer>[\w.~+/-]{16,}=*)",
    re.IGNORECASE,
)
WITHOUT_SCHEME = re.compile(
    r"(?<![\w/@.-])(?P<before>[^\s:/@='\"]+:)(?P<value>[^\s:/@'\"]+)(?=@[\w.-]+:\d{2,5}\b)"
)
GIVEN = (PARAMETER, VARIABLE, OPTION, LOGIN, HEADER, WITHOUT_SCHEME)
ISSUED = re.compile(  # keys that say by their beginning whose they are
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-(?=[\w-]*\d)[\w-]{20,}|sk_(?:live|test)_\w{16,}|nvapi-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|"
    r"github_pat_\w{30,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY"
)
KEYS = (  # how a setting's name ends that is a secret's; hyphens and underscores apart
    "password", "passwd", "passphrase", "apikey", "accesstoken", "authtoken", "apitoken", "bearertoken", "hftoken", "accesskey",
    "secretkey", "clientsecret", "privatekey", "credentials", "authorization",
)  # fmt: skip
REFERENCE = re.compile(r"(\\*)\$\{(\s*[.]*[A-Za-z_][\w.\[\]-]*\s*\})?")
HIDDEN = "***"
REMEDY = (
    "give it to the command in its environment, by the variable that its client reads (HF_TOKEN, AWS_SECRET_ACCESS_KEY, "
    "WANDB_API_KEY and the like), or in a file"
)


def fault(text: str) -> str | None:
    """Why a text may not stand in a setting, in words that do not repeat it; None where it may."""
    if USER.search(CONTAINER.sub("", text)):
        return "has a user name or password in an address"
    if ("://" in text or ";" in text) and PARAMETER.search(text):
        return "has a key or token in an address"
    if any(pattern.search(text) for pattern in GIVEN[1:]):
        return "gives a key or password its value"
    if ISSUED.search(text):
        return "holds what looks like an access key"
    return None


def redacted(text: str) -> str:
    """A text with what :func:`fault` would refuse taken out of it."""
    text = USER.sub(lambda found: found[0] if _container(text, found) else f"{HIDDEN}@", text)
    for pattern in GIVEN:
        text = pattern.sub(lambda found: f"{found['before'] or found['before_bearer']}{HIDDEN}", text)
    return ISSUED.sub(HIDDEN, text)


def faults(value: Any, path: str = "", resolved: bool = False) -> Iterator[tuple[str, str]]:
    """What settings hold that cannot be written down, or would fetch it: (setting, message).

    As they were written, or ``resolved``: with other settings put in where ``${section.name}`` stood.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            place = f"{path}.{key}" if path else str(key)
            wrong = _text_fault(str(key), resolved)
            if wrong:
                yield path, f"a key of this section {wrong}"
            elif _names_secret(str(key)) and isinstance(inner, str) and inner:
                yield place, f"is a secret's name, and its value would be written down; {REMEDY}"
            else:
                yield from faults(inner, place, resolved)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from faults(inner, f"{path}.{index}", resolved)
    elif isinstance(value, str):
        wrong = _text_fault(value, resolved)
        if wrong:
            yield path, wrong


def _text_fault(text: str, resolved: bool) -> str | None:
    secret = fault(text)
    if secret:
        return f"{secret}, which would be written down; {REMEDY}"
    for found in () if resolved else REFERENCE.finditer(text):
        if len(found[1]) % 2 == 0 and not found[2]:
            return (
                "holds '${', behind which only the name of another setting may stand, as in ${model.context}: what the "
                "environment holds would be written down (for these two characters themselves write \\${)"
            )
    if "\0" in text:
        return "holds a character of no text (NUL)"
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        return "is not text: it cannot be written as UTF-8"
    return None


def _names_secret(key: str) -> bool:
    name = re.sub(r"[_-]", "", key).lower()
    return name == "token" or name.endswith(KEYS)


def _container(text: str, found: re.Match[str]) -> bool:
    return any(each.end() == found.end() for each in CONTAINER.finditer(text))
