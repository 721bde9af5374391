"""Instruction data of the user's own: one form for all, what is wrong with a chat, and figures.

:func:`normalise` brings the usual formats (``messages`` of OpenAI and TRL, ShareGPT, Alpaca,
Dolly, question and answer) to ``{"messages": [{"role", "content"}, ...]}`` or says in one
sentence what is wrong.  A chat that trains well is: at most one system turn, in front; user and
assistant in turn; a tool's results between two assistant turns; an assistant's answer at the end;
text in every turn.  What a record holds beside that is refused where leaving it out would change
what is taught (:mod:`.fields`), else counted.  :func:`too_long` holds a chat against the tokens that training has for it,
:func:`statistics` describes a data set, :func:`duplicate_prompts` finds the prompts that repeat.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from statistics import median
from typing import Any

from pipeline.schema import NearDuplicates
from pipeline.stages.curate.duplicates import clusters, content_key, signatures
from pipeline.stages.curate.fields import Noted, Unusable, kind_of, refuse, trimmed
from pipeline.stages.curate.words import UNSPACED

Message = dict[str, str]
Chat = dict[str, list[Message]]
CountTokens = Callable[[str], int]

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}  # ShareGPT
PROMPTS = ("prompt", "question", "instruction")
ANSWERS = ("completion", "response", "output", "answer")
MATERIAL = ("input", "context")  # what an instruction works on (Alpaca, Dolly)
SYSTEMS = ("system", "system_prompt")
TEXT_PARTS = (None, "text", "input_text", "output_text")

UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
APART = re.compile(f"[{UNSPACED}]")
SYMBOL = re.compile(r"[^\w\s.,;:!?…'\"’“”-]")
UNKNOWN_LANGUAGES = ("", "un", "und")
SHOWN_PROMPTS = 10
SHOWN_CHARACTERS = 200


def normalise(record: object) -> tuple[Chat | None, str | None]:
    """The record as ``{"messages": [...]}`` and no fault, or nothing and what is wrong with it.

    Turns are counted from 1, the system's included.  Of the white space around a turn, what
    :func:`.fields.trimmed` says is taken off.  An image, a call in ``tool_calls`` and two columns that
    could both be the prompt are faults: to leave them out would change what is taught.  Of a
    :class:`.fields.Noted` record, what was not used can be asked for afterwards.
    """
    try:
        noted = as_mapping(record)
        refuse(noted, "the record")
        return {"messages": checked(_turns(noted), noted)}, None
    except Unusable as fault:
        return None, str(fault)


def as_mapping(record: object) -> Noted:
    """The record itself; raises :class:`Unusable` for anything but an object with keys."""
    if isinstance(record, Noted):
        return record
    if not isinstance(record, Mapping):
        raise Unusable(f"the record is {kind_of(record)}, not an object with keys")
    return Noted(record)


def only(record: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any] | None:
    """The one of ``names`` that the record holds, with its value; null is absent, two are a fault."""
    found = [(name, record[name]) for name in names if record.get(name) is not None]
    if len(found) > 1:
        raise Unusable(f"the record has both {found[0][0]!r} and {found[1][0]!r}; keep one of them")
    return found[0] if found else None


def prompt_turns(record: Mapping[str, Any]) -> list[Any] | None:
    """The raw turns that a record's prompt columns make; None where it has none.

    ``instruction`` (or ``prompt``, ``question``) is followed by its ``input`` after an empty
    line; ``system`` and ``history`` (pairs of question and answer) stand before it.
    """
    found = only(record, PROMPTS)
    if found is None:
        return None
    name, prompt = found
    turns = system_turn(record)
    history = record.get("history") or []
    if not isinstance(history, list):
        raise Unusable(f"'history' is {kind_of(history)}, not a list of pairs of question and answer")
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unusable(f"entry {number} of 'history' is not a pair of question and answer")
        turns += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    material = only(record, MATERIAL)
    if isinstance(prompt, list):
        if material is not None and material[1]:
            raise Unusable(f"{name!r} is a list of turns and {material[0]!r} is given too; put it in a turn")
        return turns + prompt
    if material is not None and material[1] and isinstance(prompt, str):
        if not isinstance(material[1], str):
            raise Unusable(f"{material[0]!r} is {kind_of(material[1])}, not text")
        prompt = f"{prompt.rstrip()}\n\n{trimmed(material[1])}" if material[1].strip() else prompt
    return [*turns, _turn("user", prompt)]


def system_turn(record: Mapping[str, Any]) -> list[Any]:
    """The system turn of a ``system`` column as a list of one, or of none."""
    found = only(record, SYSTEMS)
    return [_turn("system", found[1])] if found is not None and found[1] != "" else []


def checked(turns: list[Any], noted: Noted | None = None) -> list[Message]:
    """The turns with the roles' usual names; raises :class:`Unusable` for the first fault.

    ``noted`` is told what the turns hold beside role and content.
    """
    if not turns:
        raise Unusable("the chat has no turns")
    messages = [_message(turn, place, noted) for place, turn in enumerate(turns, start=1)]
    before = ""
    for place, role in enumerate((message["role"] for message in messages), start=1):
        if role == "system" and place > 1:
            raise Unusable(f"turn {place} is a system turn; only the first turn can be one")
        if role == before and role != "tool":
            raise Unusable(
                f"turns {place - 1} and {place} are both {role} turns; user and assistant alternate"
            )
        if role == "assistant" and before in ("", "system"):
            raise Unusable(f"turn {place} (assistant) answers nothing; the user speaks first")
        if role == "tool" and before not in ("assistant", "tool"):
            raise Unusable(f"turn {place} (tool) does not follow an assistant turn")
        if role == "user" and before == "tool":
            raise Unusable(f"turn {place} (user) follows a tool's result that the assistant did not answer")
        before = role
    if before != "assistant":
        raise Unusable(f"the chat ends with turn {len(messages)} ({before}), without the assistant's answer")
    return messages


def _turns(record: Mapping[str, Any]) -> list[Any]:
    held = only(record, ("messages", "conversations"))
    if held is not None:
        if not isinstance(held[1], list):
            raise Unusable(f"{held[0]!r} is {kind_of(held[1])}, not a list of turns")
        return system_turn(record) + held[1]
    prompt, answer = prompt_turns(record), only(record, ANSWERS)
    if prompt is not None and answer is not None:
        return prompt + (answer[1] if isinstance(answer[1], list) else [_turn("assistant", answer[1])])
    if "chosen" in record and "rejected" in record:
        raise Unusable("the record is a preference pair ('chosen', 'rejected'), not a chat")
    if prompt is not None:
        raise Unusable(f"the record has a prompt and no answer; name it one of {', '.join(ANSWERS)}")
    raise Unusable("the record has neither 'messages' nor 'conversations' nor a prompt with an answer")


def _turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def _message(turn: object, place: int, noted: Noted | None) -> Message:
    if not isinstance(turn, Mapping):
        raise Unusable(f"turn {place} is {kind_of(turn)}, not an object with a role and content")
    told = Noted(turn)
    role = told["from"] if told.get("role") is None and "from" in turn else told.get("role")
    role = ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        given = "has no role" if role is None else f"has the unknown role {str(role)[:40]!r}"
        raise Unusable(f"turn {place} {given}; the roles are {', '.join(ROLES)}")
    where = f"turn {place} ({role})"
    refuse(told, where, answer=role == "assistant")
    content = told["value"] if told.get("content") is None and "value" in turn else told.get("content")
    message = {"role": role, "content": _text(content, where, noted)}
    if noted is not None:
        noted.below("turn", told)
    return message


def _text(value: object, where: str, noted: Noted | None = None) -> str:
    if isinstance(value, list):  # content in parts, as OpenAI writes it
        value = "".join(_part(part, where, noted) for part in value)
    if not isinstance(value, str):
        raise Unusable(f"the content of {where} is {kind_of(value)}, not text")
    if found := UNWRITABLE.search(value):
        what = "a NUL character" if found[0] == "\0" else f"half a surrogate pair (U+{ord(found[0]):04X})"
        raise Unusable(f"{where} holds {what} at character {found.start() + 1:,}")
    # Zero-width marks and the like are neither printable nor white space.
    if not any(char.isprintable() and not char.isspace() for char in value):
        raise Unusable(f"{where} is empty" if not value.strip() else f"{where} has no visible text")
    return trimmed(value)


def _part(part: object, where: str, noted: Noted | None) -> str:
    told = Noted(part) if isinstance(part, Mapping) else Noted({})
    text = told.get("text")
    if not isinstance(text, str) or told.get("type") not in TEXT_PARTS:
        raise Unusable(f"{where} holds something other than text (an image, audio or a file)")
    if noted is not None:
        noted.below("part", told)
    return text


def too_long(
    chat: Chat, count_tokens: CountTokens, budget: int, *, turn_budget: int | None = None, overhead: int = 0
) -> str | None:
    """What exceeds its budget of tokens, or None.

    ``budget`` is for the whole chat (the sequence length of training), ``turn_budget`` for each
    turn (the same, if not given).  ``overhead`` is what the chat template adds to every turn.
    """
    counts = [count_tokens(message["content"]) + overhead for message in chat["messages"]]
    limit = budget if turn_budget is None else min(budget, turn_budget)
    largest = max(range(len(counts)), key=counts.__getitem__)
    name = f"turn {largest + 1} ({chat['messages'][largest]['role']})"
    if counts[largest] > limit:
        return f"{name} has {counts[largest]:,} tokens; a turn may have {limit:,}"
    if (total := sum(counts)) > budget:
        return f"the chat has {total:,} tokens in {len(counts)} turns, the most, {counts[largest]:,}, in {name}; it may have {budget:,}"
    return None


def statistics(
    chats: Iterable[Chat], count_tokens: CountTokens, detect_language: Callable[[str], str]
) -> dict[str, Any]:
    """Figures of a data set of normalised chats, as plain JSON.

    ``lengths`` are in characters and in tokens: of every user turn (``prompts``), of every
    assistant turn (``answers``) and of whole chats without template; p95 is the nearest rank.
    ``turns`` counts the chats by their turns without the system's.  ``languages`` counts chats by
    ``detect_language`` (a code; "un" if not known) of their user turns and of their answers.
    """
    lengths = {
        part: {unit: array("q") for unit in ("characters", "tokens")}
        for part in ("prompts", "answers", "chats")
    }
    turns: Counter[int] = Counter()
    languages: dict[str, Counter[str]] = {"prompts": Counter(), "answers": Counter()}
    systems: Counter[str] = Counter()
    firsts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    compared = switched = 0
    for chat in chats:
        texts: dict[str, list[str]] = {role: [] for role in ROLES}
        totals = [0, 0]
        for message in chat["messages"]:
            role, text = message["role"], message["content"]
            texts[role].append(text)
            sizes = (len(text), count_tokens(text))
            totals = [total + size for total, size in zip(totals, sizes, strict=True)]
            if role in ("user", "assistant"):
                _add(lengths["prompts" if role == "user" else "answers"], sizes)
        _add(lengths["chats"], totals)
        turns[len(chat["messages"]) - len(texts["system"])] += 1
        systems.update(content_key(text) for text in texts["system"])
        key = content_key(texts["user"][0])
        firsts[key] += 1
        shown.setdefault(key, texts["user"][0][:SHOWN_CHARACTERS])
        asked, told = (
            detect_language("\n".join(texts["user"])),
            detect_language("\n".join(texts["assistant"])),
        )
        languages["prompts"][asked] += 1
        languages["answers"][told] += 1
        if asked not in UNKNOWN_LANGUAGES and told not in UNKNOWN_LANGUAGES:
            compared += 1
            switched += asked != told
    count = turns.total()
    # most_common keeps the order of first appearance among equals.
    frequent = [(key, times) for key, times in firsts.most_common(SHOWN_PROMPTS) if times > 1]
    return {
        "chats": count,
        "turns": {str(number): turns[number] for number in sorted(turns)},
        "with_system": _share(systems.total(), count),
        "different_system_prompts": len(systems),
        "lengths": {
            part: {unit: _summary(values) for unit, values in units.items()}
            for part, units in lengths.items()
        },
        "languages": {part: dict(sorted(c.items(), key=_by_count)) for part, c in languages.items()},
        "answered_in_another_language": _share(switched, compared),
        "frequent_first_prompts": [{"prompt": shown[key], "chats": times} for key, times in frequent],
    }


def _add(units: dict[str, array[int]], sizes: Iterable[int]) -> None:
    for values, size in zip(units.values(), sizes, strict=True):
        values.append(size)


def _summary(values: array[int]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    p95 = ordered[ceil(0.95 * len(ordered)) - 1]
    return {"min": ordered[0], "median": median(ordered), "p95": p95, "max": ordered[-1]}


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def duplicate_prompts(
    chats: Iterable[Chat], *, ngram: int, permutations: int, bands: int, threshold: float, workers: int = 1
) -> tuple[list[list[int]], list[list[int]]]:
    """Groups of chats (their indices) with the same prompt, and with nearly the same.

    The prompt is all turns before the last answer.  Exact: same roles and text, case and white
    space aside.  Near: MinHash of runs of ``ngram`` words, alike from ``threshold`` on.  Prompts
    are short: of 400 with 10 to 12 words and one changed in the middle, 98% were found with runs of
    2 at 0.6 (128 permutations, 32 bands), 21% with runs of 3, 1% with the 5 of documents.
    The price are questions of one template about different things: of 1,610 such, 215 groups came
    with 2 at 0.6 and 7 with 3 at 0.8.  So near groups are to be looked at, not dropped unseen.

    Near groups hold only the first of each exact group: whoever keeps the first of every group has
    every prompt once.  Chats with a system prompt must be alike without it too, or a long one
    that all share would make all prompts alike.
    """
    asked: list[tuple[str, str]] = []  # of each distinct prompt: the whole, and without system
    exact: dict[str, list[int]] = {}
    for index, chat in enumerate(chats):
        turns = chat["messages"][:-1]
        members = exact.setdefault(
            content_key(" \0 ".join(f"{turn['role']} \0 {turn['content']}" for turn in turns)), []
        )
        members.append(index)
        if len(members) == 1:
            rest = comparable("\n".join(turn["content"] for turn in turns if turn["role"] != "system"))
            system = comparable("\n".join(turn["content"] for turn in turns if turn["role"] == "system"))
            asked.append((f"{system}\n{rest}" if system else rest, rest))
    firsts = [members[0] for members in exact.values()]
    settings = NearDuplicates(ngram=ngram, permutations=permutations, bands=bands, threshold=threshold)
    # A prompt of punctuation alone has nothing to compare.
    groups = [[place for place, (_, rest) in enumerate(asked) if re.search(r"\w", rest)]]
    for view in (0, 1) if any(whole != rest for whole, rest in asked) else (1,):
        groups = [
            part
            for group in groups
            for part in _alike(group, [asked[place][view] for place in group], settings, workers)
        ]
    near = sorted([firsts[place] for place in group] for group in groups)
    return [members for members in exact.values() if len(members) > 1], near


def comparable(text: str) -> str:
    """The text with symbols spelled as words and unspaced scripts apart, for word shingles.

    Shingles know words only: "3 + 4" and "3 * 4" would be the same, a Chinese sentence one word.
    """
    text = SYMBOL.sub(lambda found: f" u{ord(found[0]):x} ", text)
    return APART.sub(lambda found: f" {found[0]} ", text)


def _alike(group: list[int], texts: list[str], settings: NearDuplicates, workers: int) -> list[list[int]]:
    if len(group) < 2:
        return []
    found: dict[int, list[int]] = {}
    rows = signatures(texts, settings, workers, marks=False)  # "comparable" spelled those that count
    for place, label in zip(group, clusters(rows, settings.bands, settings.threshold), strict=True):
        found.setdefault(label, []).append(place)
    return [members for members in found.values() if len(members) > 1]
