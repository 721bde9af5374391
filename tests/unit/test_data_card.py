"""The data card: structure, escaping, sums, and cards that hold nothing or too much."""

from __future__ import annotations

import copy
import json
import re
import time
from html.parser import HTMLParser
from typing import Any

import pytest

from pipeline.report.data_card import READ, SHOWN, figure, histogram, marked, render_data_card, share, visible

EDGES = [0, 16, 64, 256, 1024, 4096]
CARD: dict[str, Any] = {
    "recipe": "llama-web",
    "identity": "c0ffee" * 10,
    "preset": "web-english",
    "documents": {
        "raw": 51_577,
        "unreadable": 12,
        "kept": 46_115,
        "dropped": {
            "near-duplicates": {"near duplicate": 662},
            "filters": {
                "WordCountFilter": 3_000,
                "RepeatingDuplicateNGramsFilter/10": 1_800,
                "UrlsFilter": 0,
            },
        },
    },
    "stages": [
        {"name": "unicode", "kind": "modify", "in": 51_577, "out": 51_577, "changed": 812, "seconds": 2.25},
        {
            "name": "filters",
            "kind": "filter",
            "in": 51_577,
            "out": 46_777,
            "changed": 0,
            "seconds": 4000.5,
            "settings": {"WordCountFilter": {"min_words": 50}, "PornographicUrlsFilter": {}},
        },
        {
            "name": "near-duplicates",
            "kind": "drop",
            "in": 46_777,
            "out": 46_115,
            "changed": 0,
            "seconds": 9.0,
        },
    ],
    "lengths": {
        "before": {"edges": EDGES, "counts": [400, 9_000, 30_000, 12_000, 177], "unit": "characters"},
        "after": {"edges": EDGES, "counts": [0, 6_000, 28_000, 11_938, 177], "unit": "characters"},
        "tokens": {"edges": [1, 10, 100, 1000], "counts": [3, 40_000, 6_112], "unit": "tokens"},
    },
    "languages": {"before": {"en": 50_000, "de": 1_500, "zh": 77}, "after": {"en": 46_100, "de": 15}},
    "duplicates": {
        "exact": {"clusters": 31, "removed": 44},
        "near": {
            "clusters": 500,
            "removed": 662,
            "sizes": {"2": 400, "10": 3, "3": 97},
            "examples": [
                {
                    "kept": {"id": "a/1", "text": "Return the sum of all the values."},
                    "removed": [
                        {"id": "a/7", "text": "Return the mean of all the values.", "similarity": 0.875}
                    ],
                }
            ],
        },
    },
    "redactions": {"email": {"replace": 12}, "secret": {"replace": 3, "drop": 1}},
    "decontamination": {
        "sets": {"mmlu": {"ngrams": 1_402_212, "documents_hit": 4, "dropped": 1, "split": 3}}
    },
    "sources": [
        {
            "name": "pages",
            "kind": "warc",
            "licence": "CC-BY-4.0",
            "weight": 3.0,
            "documents": 40_000,
            "kept": 36_000,
            "tokens": 9_000_000,
            "share": 0.75,
            "epochs": 1.0,
        },
        {"name": "books", "kind": "jsonl", "weight": 1.0, "documents": 11_577, "kept": 10_115, "share": 0.25},
    ],
    "blend": {"wanted": {"pages": 3, "books": 1}, "got": {"pages": 9_012_345, "books": 2_987_655}},
    "splits": {
        "train": {"documents": 45_000, "tokens": 11_000_000},
        "test": {"documents": 1_115, "tokens": 1_000_000},
    },
    "instructions": {"pairs": 41_991, "mean_answer_words": 11.25, "templated": True},
    "preferences": {
        "pairs": 32_347,
        "kinds": {"style": 20_000, "content": 12_347},
        "warnings": ["mostly longer", "few"],
    },
    "samples": [
        {"id": "s1", "before": "Itâ€™s\u200b  here", "after": "It's here", "fate": "kept"},
        {"id": "s2", "before": "lorem ipsum", "after": None, "fate": "dropped by filters: WordCountFilter"},
        {"id": "s3", "before": "as it was", "after": "as it was", "fate": "kept"},
    ],
    "quarantine": [{"input": "pages.jsonl", "line": 17, "reason": "not JSON: Expecting value"}],
}
SECTIONS = {
    "way": ("stages",),
    "drops": ("documents",),
    "lengths": ("lengths",),
    "languages": ("languages",),
    "duplicates": ("duplicates",),
    "redactions": ("redactions",),
    "decontamination": ("decontamination",),
    "sources": ("sources",),
    "blend": ("blend",),
    "splits": ("splits",),
    "instructions": ("instructions",),
    "preferences": ("preferences",),
    "samples": ("samples",),
    "quarantine": ("quarantine",),
}
VOID = {"meta", "rect", "line", "path", "br", "link", "img"}


class Page(HTMLParser):
    """What a page is made of; complains of tags that do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.tags if "id" in attrs]


def changed(value: Any, change: Any) -> Any:
    """The card with ``change`` applied to every text in it, keys that name things included."""
    fixed = {key for key in _keys(CARD) if re.fullmatch(r"[a-z_]+", key)} - {
        *("email", "secret", "mmlu", "pages", "books", "train", "test", "en", "de", "zh", "near", "exact"),
        *(
            "warnings",
            "filters",
            "replace",
            "drop",
            "pairs",
            "mean_answer_words",
            "templated",
            "style",
            "content",
        ),
    }
    if isinstance(value, dict):
        return {key if key in fixed else change(key): changed(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [changed(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def _keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(key for each in value.values() for key in _keys(each))}
    return {key for each in value for key in _keys(each)} if isinstance(value, list) else set()


def test_every_section_has_its_place_and_is_linked() -> None:
    page = Page(render_data_card(CARD))
    assert page.ids() == list(SECTIONS)
    links = [str(attrs["href"]) for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]


@pytest.mark.parametrize("name", list(SECTIONS))
@pytest.mark.parametrize("nothing", ["absent", "null", "empty"])
def test_a_section_without_figures_is_left_out_and_the_others_stay(name: str, nothing: str) -> None:
    card = copy.deepcopy(CARD)
    for key in SECTIONS[name]:
        empty = type(card[key])()
        del card[key]
        if nothing != "absent":
            card[key] = None if nothing == "null" else empty
    assert Page(render_data_card(card)).ids() == [each for each in SECTIONS if each != name]


def test_an_empty_card_is_a_page_that_says_so() -> None:
    page = Page(render_data_card({}))
    assert not page.ids()
    assert "There are no figures on this data." in page.text


def test_members_of_every_section_may_be_absent() -> None:
    """One level down: each member of each section taken away, and each made null."""
    for key, value in CARD.items():
        members = list(value) if isinstance(value, dict) else []
        for member in members:
            rest = {each: value[each] for each in members if each != member}
            Page(render_data_card({**CARD, key: rest}))
            Page(render_data_card({**CARD, key: {**rest, member: None}}))
        if isinstance(value, list):
            Page(render_data_card({**CARD, key: [{}]}))
            for member in value[0]:
                without = {each: value[0][each] for each in value[0] if each != member}
                Page(render_data_card({**CARD, key: [without]}))
                Page(render_data_card({**CARD, key: [{**without, member: None}]}))


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    text = render_data_card(CARD)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "embed", "base"}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("src", "srcset", "style")]
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '" onload="alert(1)" x="', "</pre></title>&amp;", "{{ 7 * 7 }}"]
)
def test_hostile_text_in_every_field_changes_nothing_but_text(hostile: str) -> None:
    card = changed(CARD, lambda text: hostile + text)
    assert len(_strings(card)) > 60
    page, plain = Page(render_data_card(card)), Page(render_data_card(CARD))
    kinds = [tag for tag, _ in page.tags if tag not in ("mark", "span")]
    assert kinds == [tag for tag, _ in plain.tags if tag not in ("mark", "span")]
    assert not [attrs for _, attrs in page.tags if "onload" in attrs]
    # Nothing is lost either: the words stand on the page as they are.
    shown = "".join(page.words)
    for text in ("web-english", "WordCountFilter", "CC-BY-4.0", "pages.jsonl", "mmlu", "kept"):
        assert hostile + text in shown


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in (*value, *value.values()) for text in _strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) else []


def test_unseen_characters_are_spelled_out_and_the_page_can_be_written() -> None:
    bad = "\ud800\x00\x1b\u202e\u200b\ufeff\U000e0041"
    text = render_data_card(changed(CARD, lambda each: each + bad))
    text.encode("utf-8")
    assert not set(bad) & set(text)
    assert visible("a\x00b\u202ec\ud83d\n\t") == "a⟨U+0000⟩b⟨U+202E⟩c⟨U+D83D⟩\n\t"
    assert visible("👩‍🚀 می‌خواهم") == "👩‍🚀 می‌خواهم"


def test_the_figures_reconcile() -> None:
    page = Page(render_data_card(CARD)).text
    assert "51,577 raw documents = 46,115 kept + 5,462 dropped." in page
    assert "do not add up" not in page
    assert "46,777 (90.7%)" in page
    assert "−4,800" in page
    drops = page[page.index("most frequent reason") :]
    names = [
        "filters",
        "4,800",
        "WordCountFilter",
        "3,000",
        "RepeatingDuplicateNGramsFilter/10",
        "near-duplicates",
        "662",
    ]
    places = [drops.index(name) for name in names]
    assert places == sorted(places)
    assert "Nothing for UrlsFilter" in page
    assert "12,000,000 tokens in the splits" in page
    assert "75.0% → 75.1%" in page
    assert "not stated" in page


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        (("documents", "kept"), 46_000, "46,000 kept and 5,462 dropped make 51,462"),
        (("stages", 1, "in"), 51_000, "unicode left 51,577 documents, but filters read 51,000"),
        (
            ("documents", "dropped", "near-duplicates", "near duplicate"),
            600,
            "took 662 documents away, but 600 drops",
        ),
    ],
)
def test_figures_that_do_not_add_up_are_pointed_out(where: tuple[Any, ...], value: int, words: str) -> None:
    card = copy.deepcopy(CARD)
    place: Any = card
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    page = Page(render_data_card(card)).text
    assert "The figures do not add up." in page
    assert words in page
    assert "raw documents =" not in page


def test_bars_are_as_long_as_their_figures() -> None:
    page = Page(render_data_card({"documents": CARD["documents"], "stages": CARD["stages"]}))
    blue = [
        float(str(a["width"])) for t, a in page.tags if t == "rect" and a.get("class") == "one" and "x" in a
    ]
    assert blue == pytest.approx([100, 100, 4677700 / 51577, 4611500 / 51577], abs=0.01)
    for tag, attrs in page.tags:
        if tag == "rect" and "x" in attrs:
            assert float(str(attrs["x"])) + float(str(attrs["width"])) <= 100.5


def test_cluster_sizes_are_in_order_of_size() -> None:
    page = Page(render_data_card(CARD)).text
    places = [page.index(f"{size} documents {count}") for size, count in ((2, 400), (3, 97), (10, 3))]
    assert places == sorted(places)


def test_nested_figures_stand_in_lines() -> None:
    lengths = {"answers": {"tokens": {"max": 1234, "median": 66.5}}, "chats": {"tokens": {"max": 2}}}
    frequent = [{"chats": 2, "prompt": "What?"}, {"chats": 1, "prompt": "Why?"}]
    card = {"instructions": {"lengths": lengths, "frequent_first_prompts": frequent, "warnings": []}}
    page = Page(render_data_card(card)).text
    assert "lengths, answers tokens: max" not in page
    assert "lengths, answers, tokens max: 1,234, median: 66.5 lengths, chats, tokens max: 2 " in page
    assert "frequent first prompts chats: 2, prompt: What? chats: 1, prompt: Why?" in page
    assert "warnings none" in page


def test_sets_of_decontamination_may_stand_alone() -> None:
    sets = CARD["decontamination"]["sets"]
    assert render_data_card({"decontamination": sets}) == render_data_card(
        {"decontamination": {"sets": sets}}
    )


def test_a_stage_with_one_reason_takes_one_line_and_no_times_no_column() -> None:
    page = Page(render_data_card({"documents": CARD["documents"]})).text
    assert "near-duplicates near duplicate 662 1.3%" in page
    stages = [{"name": "a", "in": 2, "out": 2}]
    assert "seconds" not in Page(render_data_card({"stages": stages})).text
    assert "seconds" in Page(render_data_card({"stages": CARD["stages"]})).text


def test_settings_are_shown_and_many_of_them_folded() -> None:
    for count in (1, 9):
        settings = {f"bound{place}": {"n": place} for place in range(count)}
        page = Page(render_data_card({"stages": [{"name": "a", "in": 1, "out": 1, "settings": settings}]}))
        assert all(f'bound{place}={{"n": {place}}}' in page.text for place in range(count))
        assert ("details" in [tag for tag, _ in page.tags]) == (count == 9)


def test_an_equal_duplicate_is_not_printed_twice() -> None:
    removed = [{"id": "b", "text": "once and again", "similarity": 1.0}]
    near = {
        "clusters": 1,
        "removed": 1,
        "examples": [{"kept": {"id": "a", "text": "once and again"}, "removed": removed}],
    }
    page = Page(render_data_card({"duplicates": {"exact": near}})).text
    assert page.count("once and again") == 1
    assert "the same text" in page


def test_many_languages_sizes_samples_and_lines_are_bounded() -> None:
    card = {
        "languages": {"before": {f"l{place:03}": 1 + place for place in range(200)}},
        "duplicates": {
            "near": {"clusters": 300, "removed": 9, "sizes": {str(size): 1 for size in range(2, 302)}}
        },
        "samples": [
            {"id": str(place), "before": "x" * 50_000, "after": "y", "fate": "kept"} for place in range(500)
        ],
        "quarantine": [{"input": "a", "line": place, "reason": "r"} for place in range(500)],
    }
    text = render_data_card(card)
    page = Page(text).text
    assert "185 others" in page
    assert "17,205" in page  # 1 + 2 + ... + 185
    assert "22 and more documents 280" in page
    assert "460 more are not shown" in page
    assert "20 that could not be read" in page
    assert len(text) < 200_000


def test_huge_and_odd_numbers() -> None:
    big = 10**18
    card = changed(CARD, lambda text: text)
    card["documents"] = {"raw": 3 * big, "kept": 2 * big, "dropped": {"filters": {"x": big}}}
    card["stages"] = [{"name": "filters", "in": 3 * big, "out": 2 * big, "changed": big, "seconds": 1e12}]
    card["lengths"] = {"before": {"edges": [1, 1e3, 1e15], "counts": [big, 1]}}
    card["splits"] = {"train": {"documents": big, "tokens": 10**30}}
    card["instructions"] = {
        "a": float("nan"),
        "b": float("inf"),
        "c": 1e300,
        "d": 1e-300,
        "e": None,
        "f": [1, "<b>"],
    }
    text = render_data_card(card)
    page = Page(text).text
    assert "3,000,000,000,000,000,000 raw documents" in page
    assert f"{10**30:,} tokens in the splits" in page
    assert "66.7%" in page
    assert not re.search(r"\b(nan|inf)\b", text)


def test_a_single_document_and_no_document() -> None:
    one = {"documents": {"raw": 1, "kept": 1, "dropped": {}}, "stages": [{"name": "a", "in": 1, "out": 1}]}
    assert "1 raw documents = 1 kept + 0 dropped" in Page(render_data_card(one)).text
    none = {"documents": {"raw": 0, "kept": 0, "dropped": {}}, "stages": [{"name": "a", "in": 0, "out": 0}]}
    none["lengths"] = {"before": {"edges": [1, 10], "counts": [0]}}
    page = Page(render_data_card(none))
    assert "0 raw documents = 0 kept + 0 dropped" in page.text
    assert page.ids() == ["way"]


def test_words_that_differ_are_marked_and_only_those() -> None:
    before, after = marked("the  quick red fox", "the quick brown fox")
    assert [text for kind, text in before if kind == "mark"] == ["  ", "red"]
    assert [text for kind, text in after if kind == "mark"] == [" ", "brown"]
    assert "".join(text for _, text in before) == "the  quick red fox"
    assert marked("a\nb", "a b")[0][1] == ("mark", "\n")
    assert marked("same text", "same text")[0] == [("same", "same text")]
    assert marked("", "") == ([], [])


def test_a_change_deep_in_a_long_text_is_shown_with_what_stands_around_it() -> None:
    words = [f"word{place}" for place in range(400)]
    before = " ".join(words)
    words[300] = "CHANGED"
    pieces, other = marked(before, " ".join(words))
    assert ("mark", "word300") in pieces
    assert ("mark", "CHANGED") in other
    assert sum(len(text) for kind, text in pieces if kind == "same") < SHOWN
    skipped = [text for kind, text in pieces if kind == "skip"]
    assert skipped
    assert all("characters" in text for text in skipped)


def test_a_change_far_into_a_long_text_is_found() -> None:
    text = "".join(f"sentence {place}. " for place in range(4_000))
    before, after = marked(text, text.replace("sentence 3777.", "sentence X."))
    assert [text for kind, text in before if kind == "mark"] == ["3777"]
    assert [text for kind, text in after if kind == "mark"] == ["X"]
    assert [kind for kind, _ in before] == [kind for kind, _ in after]
    assert before[0][0] == "skip"


def test_what_is_only_cut_is_not_marked() -> None:
    """A header taken away: the compared part of the rest ends elsewhere in both, and is no change."""
    text = "".join(f"sentence {place}. " for place in range(4_000))
    before, after = marked("Home | Login " * 40 + text, text)
    assert "".join(text for kind, text in before if kind == "mark") == "Home | Login " * 40
    assert not [text for kind, text in after if kind == "mark"]
    assert after[-1][0] == "skip"


def test_texts_with_nothing_in_common_are_marked_and_shown() -> None:
    before, after = marked("alpha " * READ, "beta " * READ)
    assert "alpha alpha" in before[0][1]
    assert "beta beta" in after[0][1]
    assert "more characters" in after[-1][1]


def test_no_character_is_lost_from_the_count() -> None:
    """What is shown and what is said to be left out are the whole text."""
    words = [f"w{place}" for place in range(9_000)]
    others = [[*words[:place], "NEW\nNEW", *words[place + 2 :]] for place in (0, 5, 700, 8_999)]
    for other in [*others, words, words[:10], ["else"] * 9_000, words[::-1]]:
        texts = " ".join(words), " ".join(other)
        for text, pieces in zip(texts, marked(*texts), strict=True):
            shown = sum(len(part) for kind, part in pieces if kind != "skip")
            left_out = sum(int(part.split()[1].replace(",", "")) for kind, part in pieces if kind == "skip")
            assert shown + left_out == len(text)


def test_the_marked_text_is_bounded_whatever_comes_and_quick() -> None:
    start = time.process_time()
    hard = [
        ("ab " * 50_000, "ba " * 50_000),
        ("!?" * 9_000, "?!" * 9_000),
        ("x" * 10**6, "y"),
        ("\n" * 10**5, "y\n" * 10**5),
        ("a b " * 999, "b a " * 999),
    ]
    for before, after in [*hard, ("z " * 10_000, "z " * 9_999)]:
        for pieces in marked(before, after):
            assert sum(len(text) for kind, text in pieces if kind != "skip") <= SHOWN * 3
    assert time.process_time() - start < 5


def test_a_histogram_has_one_step_for_every_count() -> None:
    chart = histogram("t", {"before": CARD["lengths"]["before"], "after": CARD["lengths"]["after"]})
    assert chart is not None
    assert [each["name"] for each in chart["outlines"]] == ["before", "after"]
    assert [each["path"].count("H") for each in chart["outlines"]] == [5, 4]
    for each in chart["outlines"]:
        across = [float(x) for x in re.findall(r"[HM](-?[\d.]+)", each["path"])]
        down = [float(y) for y in re.findall(r"V(-?[\d.]+)", each["path"])]
        assert across == sorted(set(across))
        assert 0 <= min(across) <= max(across) <= chart["box"][0]
        assert 0 <= min(down) <= max(down) <= chart["box"][1]
    assert chart["x_ticks"][0][1] == "0"
    assert chart["unit"] == "characters"
    # 25,788.5 of 51,577: 16,388.5 of the 30,000 between 64 and 256.
    assert chart["outlines"][0]["median"] == "169"


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": [1, 2], "counts": [1, 2]},
        {"edges": [1, 1], "counts": [1]},
        {"edges": [-1, 1], "counts": [1]},
        {"edges": [1, float("inf")], "counts": [1]},
        {"edges": None, "counts": [1]},
    ],
)
def test_edges_that_do_not_fit_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lengths\.after: . counts need . increasing edges"):
        render_data_card({"lengths": {"after": wrong}})


def test_every_picture_has_words_or_is_none_for_a_reader() -> None:
    page = Page(render_data_card(CARD))
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) > 20
    for attrs in pictures:
        assert attrs.get("aria-hidden") == "true" or (attrs.get("role") == "img" and attrs.get("aria-label"))
    assert [attrs["aria-label"] for attrs in pictures if attrs.get("role") == "img"] == [
        "length of the documents; before: median about 169 characters; after: median about 181 characters",
        "tokens of the documents kept; tokens: median about 61.9 tokens",
    ]
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_figures_and_shares_are_honest() -> None:
    assert [figure(value) for value in (None, True, 1234567, 0.123456, 1234.5, "a", float("nan"))] == [
        *("–", "yes", "1,234,567", "0.1235", "1,234", "a", "–")
    ]
    shares = [
        share(*each) for each in ((1, 3), (0, 5), (5, 5), (1, 10**6), (10**6 - 1, 10**6), (1, 0), (None, 1))
    ]
    assert shares == ["33.3%", "0.0%", "100.0%", "<0.1%", ">99.9%", "–", "–"]


def test_the_same_card_gives_the_same_page_and_is_left_as_it_was() -> None:
    card = copy.deepcopy(CARD)
    first = render_data_card(card)
    assert card == CARD
    assert render_data_card(json.loads(json.dumps(CARD))) == first
