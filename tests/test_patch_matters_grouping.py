"""Sentences, the groups that replies give them, and the filter: whatever is replied, no sentence is lost."""

from __future__ import annotations

import json
import math
import random
import re
import string
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.patch_matters import loose_json
from methods.patch_matters.grouping import Fact, Groups, all_unique, read
from methods.patch_matters.replies import Form, Unreadable
from methods.patch_matters.semantic_filter import judged
from methods.patch_matters.sentences import Sentence, numbered, scorable, split

CAPTIONS = [
    "A baker slides a tray into the oven. Three loaves cool on a rack. A clock hangs above the door.",
    'A baker pushes a tray into the oven. The wall is tiled in blue. A sign says "FRESH BREAD" in red letters'
    ".",
    "The wall is tiled in green. A man puts a tray into a large oven. Five loaves cool on a rack.",
]
SENTENCES = numbered(CAPTIONS)


def places(groups: Groups) -> tuple[list[list[str]], list[list[str]], list[str]]:
    return (
        [list(fact.ids) for fact in groups.consistent],
        [[one.id for one in group] for group in groups.contradictory],
        [one.id for one in groups.unique],
    )


def assert_nothing_is_lost(groups: Groups, sentences: Sequence[Sentence]) -> None:
    facts, sets, unique = places(groups)
    ids = [one for group in [*facts, *sets, unique] for one in group]
    assert len(ids) == len(set(ids))
    assert {one for one in ids if not one.startswith("?")} == {one.id for one in sentences}
    sources = {one.id: one.source for one in sentences}
    assert {one.source for group in [*groups.contradictory, groups.unique] for one in group} <= set(
        sources.values()
    )
    for fact in groups.consistent:
        assert fact.text.strip() and fact.ids
    assert all(len(group) >= 2 for group in groups.contradictory)


# ---------------------------------------------------------------- sentences

SPLITS = {
    "A dog. A cat!  A bird?": ["A dog.", "A cat!", "A bird?"],
    "Mr. Lee and Dr. Wu wave. Mrs. Orr does not.": ["Mr. Lee and Dr. Wu wave.", "Mrs. Orr does not."],
    "St. Mark's is on Main St. The door is red.": ["St. Mark's is on Main St.", "The door is red."],
    "Fruit, e.g. Apples and i.e. Pears.": ["Fruit, e.g. Apples and i.e. Pears."],
    "A U.S. Navy ship. It left the U.S. It is grey.": [
        "A U.S. Navy ship.",
        "It left the U.S.",
        "It is grey.",
    ],
    "It is 3.5 m wide. It costs $1.20. 7 are left.": ["It is 3.5 m wide.", "It costs $1.20.", "7 are left."],
    "Bread, cakes, etc. on a shelf.": ["Bread, cakes, etc. on a shelf."],
    "Bread, cakes, etc. The shelf is full.": ["Bread, cakes, etc.", "The shelf is full."],
    "The clock says 9 a.m. A man yawns at 9 a.m. Monday.": [
        "The clock says 9 a.m.",
        "A man yawns at 9 a.m. Monday.",
    ],
    "A road... it ends. A wall… Then grass.": ["A road... it ends.", "A wall…", "Then grass."],
    'The sign says "Stop." A car waits.': ['The sign says "Stop."', "A car waits."],
    "The sign says “Stop!” in red. (It is old.) A car waits.": [
        "The sign says “Stop!” in red.",
        "(It is old.)",
        "A car waits.",
    ],
    "First line\nSecond line. Third": ["First line", "Second line.", "Third"],
    "- A dog.\n* A cat\n1. A bird. It sings.": ["- A dog.", "* A cat", "1. A bird.", "It sings."],
    "J. Smith sits at No. 5 of fig. 2.": ["J. Smith sits at No. 5 of fig. 2."],
    "The answer is no. A door is shut.": ["The answer is no.", "A door is shut."],
    "He runs in. She stays.": ["He runs in.", "She stays."],
    "a dog runs. a cat sleeps. it is 3.5 m long.": ["a dog runs.", "a cat sleeps.", "it is 3.5 m long."],
    "See www.example.com. It is node.js v1.2.": ["See www.example.com.", "It is node.js v1.2."],
    "Player 7. The ball.": ["Player 7.", "The ball."],
    "**A dog runs.** A cat sleeps.": ["**A dog runs.**", "A cat sleeps."],
    "一只狗。一只猫！": ["一只狗。", "一只猫！"],
    "": [],
    " \n ": [],
    "...": ["..."],
}


@pytest.mark.parametrize(("text", "pieces"), SPLITS.items())
def test_text_is_split_where_a_reader_would(text: str, pieces: list[str]) -> None:
    assert split(text) == pieces


SCRAPS = [
    *".!?…\"”')] \n\t-*",
    "...",
    "1.",
    "3.5",
    "Mr.",
    "St.",
    "U.S.",
    "e.g.",
    "a.m.",
    "The",
    "dogs",
    "Cat",
]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(SCRAPS),
            st.text(alphabet=st.characters(blacklist_characters="。！？"), max_size=4),
        ),
        max_size=40,
    ).map("".join)
)
def test_the_pieces_of_a_text_joined_by_blanks_are_the_text(text: str) -> None:
    assert " ".join(split(text)) == " ".join(text.split())


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_character_of_any_text_is_lost_but_white_space(text: str) -> None:
    assert "".join("".join(split(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    "scrap", ["A dog. ", "!", "Mr. ", "a", '."', " ", "。", "A...", "- ", "(", "1. ", "U.S."]
)
def test_a_caption_may_be_very_long(scrap: str) -> None:
    text = scrap * 100_000
    assert "".join("".join(split(text)).split()) == "".join(text.split())
    assert all(sentence.text for sentence in numbered([text]))


def test_sentences_are_numbered_by_source_without_markers_and_tokens() -> None:
    sentences = numbered(["- A dog.\n- A cat.\n***", "", "1. A bird sings.</s>"])
    assert [(one.id, one.source, one.text) for one in sentences] == [
        ("1.1", 1, "A dog."),
        ("1.2", 1, "A cat."),
        ("3.1", 3, "A bird sings."),
    ]


def test_a_number_that_begins_a_sentence_is_no_list_marker() -> None:
    assert [one.text for one in numbered(["3 dogs run. 1.5 m of snow lies there. A. Smith waves."])] == [
        "3 dogs run.",
        "1.5 m of snow lies there.",
        "A. Smith waves.",
    ]


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("A tall, old man (waving). (Description 2)", "A tall old man waving."),
        ("A cat. (Region 1)", "A cat."),
        ("Description 3: <b>bold</b>", ": bbold/b"),
        ("A dog runs.", "A dog runs."),
    ],
)
def test_the_scorer_sees_what_the_reference_shows_it(text: str, scored: str) -> None:
    assert scorable(text) == scored


# ---------------------------------------------------------------- the json form

GOOD = {
    "consistent": [{"text": "A man puts a tray into an oven.", "ids": ["1.1", "2.1", "3.2"]}],
    "contradictory": [["1.2", "3.3"], ["2.2", "3.1"]],
    "unique": ["1.3", "2.3"],
}
GROUPED = ([["1.1", "2.1", "3.2"]], [["1.2", "3.3"], ["2.2", "3.1"]], ["1.3", "2.3"])
PLAIN = json.dumps(GOOD)
TEXT = '"text": "A man puts a tray into an oven."'

TOLERATED = {
    "as asked": PLAIN,
    "indented": json.dumps(GOOD, indent=2),
    "a code fence": f"```json\n{PLAIN}\n```",
    "prose around": f"Sure, here it is [as asked]:\n{PLAIN}\nI hope this {{helps}}!",
    "thoughts before": f'<think>{{"consistent": [], "unique": ["1.1"]}} hm</think>{PLAIN}',
    "the form before": f'The form is {{"consistent": [], "contradictory": [], "unique": []}}. {PLAIN}',
    "trailing commas": PLAIN.replace("]", ",]").replace("}", ",}"),
    "single quotes": PLAIN.replace('"', "'"),
    "smart quotes": re.sub(r'"([^"]*)"', r"“\1”", PLAIN),
    "no quotes around keys and ids": re.sub(
        r'"(\d\.\d|consistent|contradictory|unique|ids|text)"', r"\1", PLAIN
    ),
    "ids as numbers": re.sub(r'"(\d\.\d)"', r"\1", PLAIN),
    "ids with a letter": re.sub(r'"(\d\.\d)"', r'"D\1"', PLAIN),
    "ids in brackets": re.sub(r'"(\d\.\d)"', r'"[\1]"', PLAIN),
    "ids with the sentence": PLAIN.replace('"1.3"', '"1.3: A clock hangs above the door."'),
    "ids with dashes": re.sub(r'"(\d)\.(\d)"', r'"\1-\2"', PLAIN),
    "ids with words": re.sub(r'"(\d\.\d)"', r'"sentence \1"', PLAIN),
    "ids joined in one string": PLAIN.replace('["1.2", "3.3"]', '"1.2 vs. 3.3"'),
    "cut off": PLAIN[:-2],
    "cut off in an id": PLAIN.removesuffix('2.3"]}') + "2.",
    "no unique key": json.dumps({key: value for key, value in GOOD.items() if key != "unique"}),
    "objects for sets": PLAIN.replace('["1.2", "3.3"]', '{"ids": ["1.2", "3.3"]}'),
    "an object of sets": PLAIN.replace(
        '[["1.2", "3.3"], ["2.2", "3.1"]]', '{"loaves": ["1.2", "3.3"], "wall": ["2.2", "3.1"]}'
    ),
    "objects for ids": PLAIN.replace('"1.3"', '{"id": "1.3", "text": "A clock hangs above the door."}'),
    "source and sentence": PLAIN.replace('"1.3"', '{"source": 1, "sentence": 3}'),
    "ids as keys": PLAIN.replace('["1.3", "2.3"]', '{"1.3": "A clock", "2.3": "A sign"}'),
    "the text as a key": PLAIN.replace(
        f'{{{TEXT}, "ids": ["1.1", "2.1", "3.2"]}}',
        '{"A man puts a tray into an oven.": ["1.1", "2.1", "3.2"]}',
    ),
    "a list of text and ids": PLAIN.replace(
        f'{{{TEXT}, "ids": ["1.1", "2.1", "3.2"]}}',
        '["A man puts a tray into an oven.", ["1.1", "2.1", "3.2"]]',
    ),
    "a string with ids behind": PLAIN.replace(
        f'{{{TEXT}, "ids": ["1.1", "2.1", "3.2"]}}', '"A man puts a tray into an oven. (1.1, 2.1, 3.2)"'
    ),
    "one object instead of a list": PLAIN.replace("[{", "{").replace("}]", "}"),
    "other keys": PLAIN.replace("consistent", "Similar descriptions").replace("contradictory", "Conflicts"),
    "a wrapper": json.dumps({"result": GOOD}),
    "a list around": json.dumps([GOOD]),
    "an object for each class": json.dumps([{key: value} for key, value in GOOD.items()]),
    "inner quotes": PLAIN.replace("A man puts a tray into an oven.", 'A man "puts" a tray, into an oven.'),
    "comments": PLAIN.replace('"unique"', '// the rest\n"unique"'),
    "retyped sentences": PLAIN.replace('"1.3"', '"A clock hangs above the door"'),
    "line breaks in strings": PLAIN.replace("a tray into", "a tray\ninto"),
}


@pytest.mark.parametrize("reply", TOLERATED.values(), ids=TOLERATED)
def test_a_json_reply_is_read_however_it_is_written(reply: str) -> None:
    groups = read(reply, SENTENCES, "json")
    assert places(groups) == GROUPED
    text = re.sub(r'[",]', "", groups.consistent[0].text)
    assert text == "A man puts a tray into an oven."


def test_an_exact_reply_has_no_faults_and_a_mended_one_has() -> None:
    assert read(PLAIN, SENTENCES, "json").faults == ()
    assert read(PLAIN.replace('"', "'"), SENTENCES, "json").faults == ("the JSON had to be mended",)


def test_ids_given_as_numbers_keep_their_zeros() -> None:
    sentences = numbered([" ".join(f"Thing {n} stands there." for n in range(10)), "A cat."])
    groups = read('{"contradictory": [[1.10, 2.1]], "consistent": [], "unique": [1.1]}', sentences, "json")
    assert places(groups)[1] == [["1.10", "2.1"]]


CHECKED = {
    "a statement of one source is not consistent": (
        {"consistent": [{"text": "x y", "ids": ["1.1", "1.2"]}]},
        ([], [], ["1.1", "1.2", "2.1", "3.1"]),
        "fewer than two sources",
    ),
    "an id that does not exist is left out": (
        {"consistent": [{"text": "x y", "ids": ["1.1", "9.9"]}], "unique": ["2.1"]},
        ([], [], ["1.1", "1.2", "2.1", "3.1"]),
        "no sentence has the id 9.9",
    ),
    "consistent goes before contradictory": (
        {"consistent": [{"text": "x y", "ids": ["1.1", "2.1"]}], "contradictory": [["1.1", "1.2", "3.1"]]},
        ([["1.1", "2.1"]], [["1.2", "3.1"]], []),
        "also contradictory",
    ),
    "a contradiction needs two": (
        {"consistent": [{"text": "x y", "ids": ["1.1", "2.1"]}], "contradictory": [["1.1", "3.1"]]},
        ([["1.1", "2.1"]], [], ["1.2", "3.1"]),
        "fewer than two sentences",
    ),
    "contradictory goes before unique": (
        {"contradictory": [["1.1", "2.1"]], "unique": ["1.1", "1.2", "2.1", "3.1"]},
        ([], [["1.1", "2.1"]], ["1.2", "3.1"]),
        None,
    ),
    "what is not mentioned is unique": (
        {"consistent": [], "contradictory": [], "unique": []},
        ([], [], ["1.1", "1.2", "2.1", "3.1"]),
        "not mentioned, so unique: 1.1, 1.2, 2.1, 3.1",
    ),
    "statements that share a sentence are one": (
        {"consistent": [{"text": "P q.", "ids": ["1.1", "2.1"]}, {"text": "R s.", "ids": ["3.1", "2.1"]}]},
        ([["1.1", "2.1", "3.1"]], [], ["1.2"]),
        "joined",
    ),
    "contradictions that share a sentence are one": (
        {"contradictory": [["1.1", "2.1"], ["2.1", "3.1"]]},
        ([], [["1.1", "2.1", "3.1"]], ["1.2"]),
        "joined",
    ),
    "a sentence named twice is there once": (
        {"contradictory": [["1.1", "1.1", "2.1"]], "unique": ["3.1", "3.1", "1.2"]},
        ([], [["1.1", "2.1"]], ["1.2", "3.1"]),
        None,
    ),
}


@pytest.mark.parametrize(("reply", "expected", "fault"), CHECKED.values(), ids=CHECKED)
def test_a_json_reply_is_checked(reply: object, expected: object, fault: str | None) -> None:
    sentences = numbered(["A red hat. An old coat.", "A blue bag.", "A green shoe."])
    groups = read(json.dumps(reply), sentences, "json")
    assert places(groups) == expected
    assert any(fault in one for one in groups.faults) if fault else groups.faults == ()
    assert_nothing_is_lost(groups, sentences)


def test_statements_that_share_a_sentence_keep_both_texts() -> None:
    reply = {"consistent": [{"text": "P q.", "ids": ["1.1", "2.1"]}, {"text": "R s.", "ids": ["3.1", "2.1"]}]}
    assert read(json.dumps(reply), SENTENCES, "json").consistent[0].text == "P q. R s."


def test_a_statement_without_words_has_those_of_its_first_sentence() -> None:
    groups = read('{"consistent": [["1.1", "2.1"]], "unique": []}', SENTENCES, "json")
    assert groups.consistent == (Fact("A baker slides a tray into the oven.", ("1.1", "2.1")),)


def test_headed_lists_are_read_where_json_was_asked_for() -> None:
    groups = read(REFERENCE, SENTENCES, "json")
    assert places(groups) == GROUPED
    assert groups.faults[0] == "no JSON; headed lists were read"


UNREADABLE = {
    "nothing": ("", "empty"),
    "only thoughts": ("<think>hm</think>", "empty"),
    "prose": ("The descriptions agree.", "no JSON object"),
    "other keys": ('{"answer": ["1.1"]}', "no JSON object"),
    "ids that do not exist": ('{"unique": ["7.1", "8.2"]}', "none of the ids exists: 7.1, 8.2"),
    "far too long": ("a" * 200_000, "200000 characters"),
}


@pytest.mark.parametrize(("reply", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_reply_says_what_was_wrong(reply: str, message: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(message)):
        read(reply, SENTENCES, "json")


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_sentences_need_no_reply(form: Form) -> None:
    assert read("", [], form) == Groups()


def test_without_a_reply_every_sentence_is_unique() -> None:
    assert all_unique(SENTENCES) == Groups(unique=tuple(SENTENCES))


# ---------------------------------------------------------------- the text form

REFERENCE = """For Similar Descriptions:
- Group 1 Combined Description: "A man puts a tray into an oven."

For Contradictory Descriptions:
- ["Three loaves cool on a rack." (Description 1), "Five loaves cool on a rack." (Description 3)]
- ["The wall is tiled in blue." (Description 2), "The wall is tiled in green." (Description 3)]

For Unique Descriptions:
- "A clock hangs above the door." (Description 1)
- "A sign says 'FRESH BREAD' in red letters." (Description 2)
"""

BREAKING = {
    "bold headings and labels": re.sub(
        r"^(For .*:)$|(Group 1 Combined Description:)",
        lambda found: f"**{found.group()}**",
        REFERENCE,
        flags=re.M,
    ),
    "star bullets": REFERENCE.replace("\n- ", "\n* "),
    "numbered bullets": re.sub(r"\n- ", "\n1. ", REFERENCE),
    "curly quotes": re.sub(r'"([^"]*)"', r"“\1”", REFERENCE),
    "no quotes": REFERENCE.replace('"', ""),
    "several sources in one tag": REFERENCE.replace(
        'door." (Description 1)', 'door." (Description 1, Description 3)'
    ),
    "full stop outside the quotes": REFERENCE.replace('."', '".'),
    "inner quotes": REFERENCE.replace("'FRESH BREAD'", '"FRESH BREAD"').replace("a tray", 'a "tray"'),
    "a pair without brackets": REFERENCE.replace("[", "").replace("]", ""),
}
FURTHER = {
    "as the reference has it": REFERENCE,
    "sources behind a merged statement": REFERENCE.replace(
        'an oven."', 'an oven." (Description 1, Description 2, Description 3)'
    ),
    "bold sentences": re.sub(r'("[^"]*")', r"**\1**", REFERENCE),
    "Markdown headings": re.sub(r"^For (.*):$", r"### \1", REFERENCE, flags=re.M),
    "numbered headings": re.sub(r"^For ", "1. For ", REFERENCE, flags=re.M),
    "no blank lines": REFERENCE.replace("\n\n", "\n"),
    "a code fence and prose around": f"Here are the results:\n```\n{REFERENCE}```\nTell me if this helps.",
    "no bullets": REFERENCE.replace("\n- ", "\n"),
    "pairs on several lines": REFERENCE.replace("), ", "),\n  ").replace("- [", "- [\n  "),
    "pairs with bullets of their own": REFERENCE.replace("), ", ")\n  - ")
    .replace("- [", "- Pair:\n  - ")
    .replace("]", ""),
    "pairs with vs.": REFERENCE.replace("), ", ") vs. ").replace("[", "").replace("]", ""),
    "no headings": re.sub(r"^For .*\n", "", REFERENCE, flags=re.M),
    "the source before": re.sub(r'("[^"]*") \((Description \d)\)', r"\2: \1", REFERENCE),
    "square tags": REFERENCE.replace("(Description 1)", "[Description 1]"),
    "short tags": re.sub(r"\(Description (\d)\)", r"(D\1)", REFERENCE),
    "other case": REFERENCE.replace("Description", "description"),
    "slips in typing": REFERENCE.replace("loaves cool on a rack", "loafs cool on a rack").replace(
        "A clock", "The clock"
    ),
    "escaped quotes": REFERENCE.replace("'FRESH BREAD'", r"\"FRESH BREAD\""),
    "a wrong source": REFERENCE.replace('door." (Description 1)', 'door." (Description 3)'),
    "a source that does not exist": REFERENCE.replace('door." (Description 1)', 'door." (Description 9)'),
    "no sources": re.sub(r" \(Description \d\)", "", REFERENCE),
    "thoughts before": f"<think>{REFERENCE}</think>{REFERENCE}",
    "an introduction before every list": REFERENCE.replace(":\n", ":\nThese are the ones found:\n"),
    "carriage returns": REFERENCE.replace("\n", "\r\n"),
    "unique ones missing": REFERENCE[: REFERENCE.index("For Unique")] + "For Unique Descriptions:\n- None",
}


@pytest.mark.parametrize("reply", BREAKING.values(), ids=BREAKING)
def test_formats_that_break_the_reference_are_read(reply: str) -> None:
    groups = read(reply, SENTENCES, "text")
    assert places(groups) == GROUPED
    assert groups.consistent[0].text.replace('"', "") == "A man puts a tray into an oven."
    assert [one.text for one in groups.unique] == [SENTENCES[2].text, SENTENCES[5].text]


@pytest.mark.parametrize("reply", FURTHER.values(), ids=FURTHER)
def test_other_ways_to_write_headed_lists_are_read_too(reply: str) -> None:
    assert places(read(reply, SENTENCES, "text")) == GROUPED


def test_an_inner_quote_does_not_end_a_sentence_that_is_the_replys_own() -> None:
    reply = 'For Unique Descriptions:\n- "A poster reads "NO ENTRY" above the stairs." (Description 2)'
    own = [one for one in read(reply, SENTENCES, "text").unique if one.id.startswith("?")]
    assert [(one.source, one.text) for one in own] == [(2, 'A poster reads "NO ENTRY" above the stairs.')]


def test_lists_may_come_in_any_order() -> None:
    similar, contradictory, unique = REFERENCE.split("\n\n")
    assert places(read("\n\n".join([unique, contradictory, similar]), SENTENCES, "text")) == GROUPED


def test_a_clause_stands_for_its_sentence_and_the_rest_of_the_sentence_is_not_lost() -> None:
    sentences = numbered(
        ["The sky is bright, and a tall red building stands beside a busy road.", "The sky is grey."]
    )
    reply = (
        "For Contradictory Descriptions:\n"
        '- ["The sky is bright." (Description 1), "The sky is grey." (Description 2)]\n'
    )
    groups = read(reply, sentences, "text")
    assert [[(one.id, one.text) for one in group] for group in groups.contradictory] == [
        [("1.1", "The sky is bright."), ("2.1", "The sky is grey.")]
    ]
    assert [(one.source, one.text) for one in groups.unique] == [(1, sentences[0].text)]
    assert_nothing_is_lost(groups, sentences)


def test_two_clauses_of_one_sentence_may_be_in_two_classes() -> None:
    sentences = numbered(["The sky is bright, and a red building stands there.", "The sky is grey."])
    reply = (
        "For Contradictory Descriptions:\n"
        '- ["The sky is bright." (Description 1), "The sky is grey." (Description 2)]\n'
        "For Unique Descriptions:\n"
        '- "A red building stands there." (Description 1)\n'
    )
    groups = read(reply, sentences, "text")
    assert places(groups)[1] == [["1.1", "2.1"]]
    assert [(one.source, one.text) for one in groups.unique] == [(1, "A red building stands there.")]


def test_a_merged_statement_that_no_two_sources_say_is_not_consistent() -> None:
    reply = 'For Similar Descriptions:\n- Group 1 Combined Description: "A purple elephant juggles at night."'
    groups = read(reply, SENTENCES, "text")
    assert groups.consistent == ()
    assert groups.unique[-1].text == "A purple elephant juggles at night."
    assert any("fewer than two sources" in fault for fault in groups.faults)


def test_a_merged_statement_is_traced_to_the_sentences_behind_it() -> None:
    groups = read(REFERENCE.replace("Description ", "Region "), SENTENCES, "text")
    assert groups.consistent == (Fact("A man puts a tray into an oven.", ("1.1", "2.1", "3.2")),)


@pytest.mark.parametrize("reply", ["", "I cannot do that.", "{}", "For Similar Descriptions:\n"])
def test_a_reply_without_lists_is_unreadable(reply: str) -> None:
    with pytest.raises(Unreadable):
        read(reply, SENTENCES, "text")


def test_lists_without_entries_leave_every_sentence_unique() -> None:
    reply = (
        "For Similar Descriptions:\n- None\n\nFor Contradictory Descriptions:\nNo contradictory descriptions "
        "found.\n\nFor Unique Descriptions:\nN/A"
    )
    assert places(read(reply, SENTENCES, "text")) == ([], [], [one.id for one in SENTENCES])


# ---------------------------------------------------------------- whatever comes

PIECES = [
    *"{}[]()\"'“”‘’,:;.*#-_`\\/<>|&?!\n\t 0123456789",
    *[
        "```",
        "**",
        "1.1",
        "2.3",
        "9.9",
        "(Description 1)",
        "(Description 2, Description 3)",
        "\\u00",
        "- ",
        "\n- [",
    ],
    *[
        "For Unique Descriptions:",
        '"unique"',
        '"consistent": ',
        "null",
        "1e999",
        "NaN",
        "<think>",
        "</think>",
        "é",
        "犬",
    ],
]


def mutated(reply: str, dice: random.Random) -> str:
    for _ in range(dice.randint(1, 12)):
        a, b = sorted(dice.randint(0, len(reply)) for _ in range(2))
        b = min(b, a + dice.choice([1, 2, 5, 20, 80]))
        match dice.randrange(7):
            case 0:
                reply = reply[:a] + reply[b:]
            case 1:
                reply = reply[:a] + reply[a:b] * 2 + reply[b:]
            case 2 | 3:
                reply = reply[:a] + dice.choice(PIECES) + reply[a:]
            case 4:
                reply = reply[:b] + dice.choice(PIECES) * dice.randint(1, 60) + reply[b:]
            case 5:
                reply = (
                    reply[b:] + reply[:a] if dice.random() < 0.3 else reply[:a] + reply[a:b][::-1] + reply[b:]
                )
            case _:
                reply = (
                    reply[: max(a, 20)] if dice.random() < 0.3 else reply.replace(dice.choice(PIECES), "", 1)
                )
    return reply


def fuzzed(count: int, seed: int) -> list[str]:
    """Mutations of good replies, and text that was never one."""
    dice = random.Random(seed)
    good = [*TOLERATED.values(), *BREAKING.values(), *FURTHER.values()]
    replies = []
    for _ in range(count):
        if dice.random() < 0.9:
            replies.append(mutated(dice.choice(good), dice))
        else:
            letters = string.printable + "“”’{}[]:\",'" * 3
            replies.append("".join(dice.choices(letters, k=dice.randint(0, 400))))
    return replies


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("seed", [0, 1])
def test_of_ten_thousand_mangled_replies_none_raises_and_none_loses_a_sentence(form: Form, seed: int) -> None:
    readable = 0
    for reply in fuzzed(5000, seed):
        try:
            groups = read(reply, SENTENCES, form)
        except Unreadable as error:
            assert str(error)
        else:
            readable += 1
            assert_nothing_is_lost(groups, SENTENCES)
    assert readable > 1500


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300), st.lists(st.text(max_size=60), max_size=3), st.sampled_from(["json", "text"]))
def test_any_text_is_read_or_unreadable(reply: str, captions: list[str], form: Form) -> None:
    sentences = numbered(captions)
    try:
        groups = read(reply, sentences, form)
    except Unreadable:
        return
    assert_nothing_is_lost(groups, sentences)


NESTED = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["1.1", "2.2"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["consistent", "contradictory", "unique", "other"]), NESTED))
def test_any_json_is_read_or_unreadable(reply: object) -> None:
    try:
        groups = read(json.dumps(reply), SENTENCES, "json")
    except Unreadable:
        return
    assert_nothing_is_lost(groups, SENTENCES)


ENDLESS = [
    "[" * 50_000,
    '{"unique":' * 9000,
    '"a' * 20_000,
    "[\"a'" * 9000,
    "- [\n" * 9000,
    "<think>" * 14_000,
    "For Unique:\n- (D1," + " " * 90_000,
    json.dumps({"unique": "()" * 45_000}),
    "For Unique:\n" + '- "A clock (Description 1' * 4000,
    "For Unique:\n- " + "**" * 40_000 + "(D1)",
]


@pytest.mark.parametrize("reply", ENDLESS, ids=range(len(ENDLESS)))
@pytest.mark.parametrize("form", ["json", "text"])
def test_deep_and_unclosed_replies_end(reply: str, form: Form) -> None:
    try:
        groups = read(reply, SENTENCES, form)
    except Unreadable:
        return
    assert_nothing_is_lost(groups, SENTENCES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1.10}', {"a": "1.10"}),
        ("{'a': 'it's'}", {"a": "it's"}),
        ('{"a": "b" "c"}', {"a": 'b" "c'}),
        ('{a: [b, "c d",], }', {"a": ["b", "c d"]}),
        ('{"a": "\\ud800x", }', {"a": "�x"}),
        ('{"a": ["b"], "a": ["c"],}', {"a": ["b", "c"]}),
        ('{"a": ["b", "c"', {"a": ["b", "c"]}),
    ],
)
def test_loose_json_is_read_as_it_was_meant(text: str, value: object) -> None:
    assert loose_json.values(text)[0] == [value]


# ---------------------------------------------------------------- the filter

A, B, C = (Sentence(f"{n}.1", n, f"Sentence {n}.") for n in (1, 2, 3))
FACT = Fact("A fact.", ("1.2", "2.2"))

KEPT = {
    "consistent statements are untouched": (Groups((FACT,)), {}, None, ["A fact."]),
    "the best of a contradiction is kept": (
        Groups((), ((A, B),)),
        {"1.1": 0.4, "2.1": 0.5},
        None,
        ["Sentence 2."],
    ),
    "of equals the first is kept": (Groups((), ((A, B),)), {"1.1": 0.5, "2.1": 0.5}, None, ["Sentence 1."]),
    "a contradiction under the threshold is dropped": (
        Groups((), ((A, B),)),
        {"1.1": 0.1, "2.1": 0.2},
        None,
        [],
    ),
    "a contradiction at the threshold is dropped": (
        Groups((), ((A, B),)),
        {"1.1": 0.3, "2.1": 0.3},
        None,
        [],
    ),
    "a unique sentence at the threshold is dropped": (Groups(unique=(A,)), {"1.1": 0.3}, None, []),
    "a unique sentence over it is kept": (
        Groups(unique=(A, B)),
        {"1.1": 0.31, "2.1": 0.2},
        None,
        ["Sentence 1."],
    ),
    "a unique sentence without score is kept": (Groups(unique=(A,)), {}, None, ["Sentence 1."]),
    "a unique sentence whose score is no number is kept": (
        Groups(unique=(A,)),
        {"1.1": math.nan},
        None,
        ["Sentence 1."],
    ),
    "a contradicted sentence without score is not": (
        Groups((), ((A, B),)),
        {"1.1": 0.4},
        None,
        ["Sentence 1."],
    ),
    "nor is any, if none has a score": (Groups((), ((A, B),)), {}, None, []),
    "without a scorer nobody can tell contradictions": (
        Groups((FACT,), ((A, B),), (C,)),
        None,
        None,
        ["A fact.", "Sentence 3."],
    ),
    "a floor drops consistent statements under it": (Groups((FACT,)), {"1.2+2.2": 0.1}, 0.2, []),
    "a statement at the floor is kept": (Groups((FACT,)), {"1.2+2.2": 0.2}, 0.2, ["A fact."]),
    "a floor of 0 is a floor": (Groups((FACT,)), {"1.2+2.2": -0.1}, 0.0, []),
    "a statement without score is kept over any floor": (Groups((FACT,)), {}, 0.9, ["A fact."]),
    "a score without a floor means nothing": (Groups((FACT,)), {"1.2+2.2": 0.1}, None, ["A fact."]),
    "the reliable list is in the order of the classes": (
        Groups((FACT,), ((A, B),), (C,)),
        {"1.1": 0.4, "2.1": 0.6, "3.1": 0.9},
        None,
        ["A fact.", "Sentence 2.", "Sentence 3."],
    ),
}


@pytest.mark.parametrize(("groups", "scores", "floor", "kept"), KEPT.values(), ids=KEPT)
def test_the_filter(
    groups: Groups, scores: dict[str, float] | None, floor: float | None, kept: list[str]
) -> None:
    verdicts = judged(groups, scores, 0.3, floor)
    assert [one.text for one in verdicts if one.kept] == kept
    facts, sets, unique = places(groups)
    every = [*("+".join(ids) for ids in facts), *(one for group in sets for one in group), *unique]
    assert ["+".join(one.ids) for one in verdicts] == every
    assert all(one.kept or one.reason for one in verdicts)


def test_verdicts_give_reasons_and_scores() -> None:
    groups = Groups((FACT,), ((A, B),), (C,))
    verdicts = judged(groups, {"1.2+2.2": 0.1, "1.1": 0.4, "2.1": 0.35}, 0.3, 0.2)
    assert [(one.kind, one.kept, one.reason, one.score) for one in verdicts] == [
        ("consistent", False, "under the floor of 0.2", 0.1),
        ("contradictory", True, "", 0.4),
        ("contradictory", False, "contradicted by one that fits better", 0.35),
        ("unique", True, "not scored", None),
    ]
