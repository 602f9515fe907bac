"""Answers of models, in every form that models give them."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from grain_jax.annotation.answers import (
    MAX_PHRASE,
    AnswerError,
    Subject,
    parse_features,
    parse_subject,
)

WANTED = ("a red crest", "black wings with white bars", "short, hooked beak")
PLAIN = ("red crest", "black wings", "hooked beak")
STYLES = {
    "json": lambda p: json.dumps({"features": p}),
    "indented": lambda p: json.dumps({"features": p}, indent=2),
    "list": json.dumps,
    "other key": lambda p: json.dumps({"n": 3, "visual_features": p}),
    "objects": lambda p: json.dumps({"features": [{"feature": each} for each in p]}),
    "fence": lambda p: f"Sure! Here it is:\n```json\n{json.dumps({'features': p})}\n```\nEnjoy.",
    "thought": lambda p: f"<think>Is it [a bird]? 1. yes</think>{json.dumps({'features': p})}",
    "dashes": lambda p: "Here are the features:\n" + "\n".join(f"- {each}." for each in p),
    "stars": lambda p: "\n".join(f"* **{each}**" for each in p) + "\n\nLet me know!",
    "dots": lambda p: "\n".join(f"\u2022 {each}" for each in p),
    "numbers": lambda p: "\n".join(f"{i}. {each}" for i, each in enumerate(p, start=1)),
    "brackets": lambda p: "\n".join(f"({i}) {each};" for i, each in enumerate(p, start=1)),
    "letters": lambda p: "\n".join(f"{'abc'[i]}) {each}" for i, each in enumerate(p)),
    "lines": lambda p: "\n".join(p),
    "windows": lambda p: "\r\n".join(f'"{each}"' for each in p),
    "numbers in json": lambda p: json.dumps({"features": [f"{i}. {x}" for i, x in enumerate(p)]}),
}


@pytest.mark.parametrize("style", STYLES)
def test_phrases_are_found_in_every_style(style):
    assert parse_features(STYLES[style](list(WANTED)), max_phrases=10) == WANTED


@pytest.mark.parametrize(
    "text",
    ["red crest, black wings; hooked beak.", "Features: red crest, black wings, hooked beak"],
)
def test_one_line_is_parted_at_commas(text):
    assert parse_features(text, max_phrases=10) == PLAIN


@pytest.mark.parametrize("style", ["json", "objects", "fence", "lines", "dashes", "numbers"])
@pytest.mark.parametrize(
    "wanted",
    [
        ("E. coli colony", "A. nigrum leaf", "12. red dots"),
        ("Sorry! a board game on a table", "unfortunately bent bars"),
        ("A. nigrum leaf", "a leaf vein", "B. subtilis"),
        ("3:1 screw", "4.5 mm bolt"),
    ],
)
def test_letters_and_numbers_that_count_nothing_belong_to_a_phrase(style, wanted):
    if style == "lines":
        wanted = tuple(each for each in wanted if not each.startswith(("12.", "Sorry")))
    assert parse_features(STYLES[style](list(wanted)), max_phrases=10) == wanted


def test_a_list_of_one_phrase_keeps_what_may_be_its_number():
    assert parse_features('["12. red dots"]', max_phrases=3) == ("12. red dots",)
    assert parse_features('["7. row", "9. row"]', max_phrases=3) == ("7. row", "9. row")
    assert parse_features('["- a crest", "* a beak"]', max_phrases=3) == ("a crest", "a beak")


def test_names_and_games_are_subjects():
    said = {"caption": "Sorry! a board game on a table", "primary_subject": "E. coli colony"}
    assert parse_subject(json.dumps(said)) == Subject(said["caption"], "E. coli colony")


def test_a_phrase_counts_once_and_only_so_many():
    text = json.dumps({"features": ["Red crest", "red  crest.", *["a tail"] * 1000, "a beak", "c"]})
    assert parse_features(text, max_phrases=3) == ("Red crest", "a tail", "a beak")


def test_an_endless_phrase_is_left_out():
    text = json.dumps({"features": ["very " * 100 + "red", "a beak"]})
    assert parse_features(text, max_phrases=3) == ("a beak",)


def test_an_answer_without_its_end_gives_its_whole_phrases():
    whole = json.dumps({"features": list(WANTED)})
    for end in range(len(whole)):
        try:
            found = parse_features(whole[:end], max_phrases=10, finished=False)
        except AnswerError:
            found = ()
        assert found == WANTED[: len(found)]
        expected = sum(whole.index(f'"{phrase}"') + len(phrase) + 2 <= end for phrase in WANTED)
        assert len(found) == expected, whole[:end]


def test_the_last_line_without_its_end_is_left_out():
    text = "- red crest\n- black wings\n- hooked be"
    assert parse_features(text, max_phrases=9, finished=False) == PLAIN[:2]
    assert len(parse_features(text, max_phrases=9)) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty answer"),
        (" \n```json\n```", "empty answer"),
        ("<think>I wonder what this could be", "empty answer"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I\u2019m sorry, I cannot identify people in images.", "refusal"),
        ("Unfortunately, I am unable to see the image.", "refusal"),
        ("As an AI language model, I have no eyes.", "refusal"),
        ('{"features": ["I cannot describe this image"]}', "refusal"),
        ('{"features": []}', "no phrases"),
        ('{"features": [null, 3, "", "none", "..."]}', "no phrases"),
        ("x" * 50_000, "no phrases"),
        ("[" * 5000, "no phrases"),
    ],
)
def test_what_is_not_an_answer_has_a_reason(text, reason):
    with pytest.raises(AnswerError) as caught:
        parse_features(text, max_phrases=5)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 300


SAID = '{"caption": "A small bird sits on a branch.", "primary_subject": "cardinal"}'
SUBJECT = Subject("A small bird sits on a branch.", "cardinal")


@pytest.mark.parametrize(
    "text",
    [
        '{"caption": "A small bird sits on a branch.", "primary_subject": "cardinal"}',
        '```json\n{"Caption": "A small bird sits on a branch.", "Subject": "cardinal."}\n```',
        '[{"caption": "A small bird sits on a branch.", "primary_subject": "**cardinal**"}]',
        "Caption: A small bird sits on a branch.\nPrimary subject: cardinal",
        "**Caption:** A small bird sits on a branch.\n- **Primary subject**: cardinal",
        '{"caption": "A small bird sits on a branch.", "primary_subject": "cardinal", "x": [1, ',
        "{'caption': no\n" + SAID[1:],
    ],
)
def test_subject_and_caption_are_found_in_every_style(text):
    assert parse_subject(text) == SUBJECT


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty answer"),
        ("Sorry, I can't assist with that request.", "refusal"),
        ("Sorry, no help with that.", "refusal"),
        ('{"caption": "Sorry, but I see no image", "primary_subject": "image"}', "refusal"),
        ('{"caption": "I\'m unable to view images.", "primary_subject": "unknown"}', "refusal"),
        ('{"caption": "a bird", "primary_subject": null}', "no subject"),
        ('{"caption": "a bird", "primary_subject": "N/A"}', "no subject"),
        ('{"caption": "a bird", "primary_subject": "' + "bird " * 50 + '"}', "no subject"),
        ('{"caption": "", "primary_subject": "bird"}', "no caption"),
        ('{"caption": "' + "a bird " * 500 + '", "primary_subject": "bird"}', "no caption"),
        ('{"caption": "a bird on a br', "no subject"),
        ("A bird.", "no subject"),
        ("[]", "no subject"),
    ],
)
def test_a_subject_that_is_missing_has_a_reason(text, reason):
    with pytest.raises(AnswerError) as caught:
        parse_subject(text)
    assert caught.value.reason == reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
pieces = st.sampled_from(
    [
        *(
            '{"features": [',
            '"',
            "]",
            "}",
            "{",
            "[",
            "\n- ",
            "1. ",
            ",",
            "\\",
            "<think>",
            "</think>",
        ),
        *(
            "```",
            "I'm sorry",
            '"caption":',
            '"primary_subject":',
            "\ud800",
            "\0",
            "red crest",
            ": ",
        ),
    ]
)
answers = (
    st.text()
    | json_values.map(json.dumps)
    | st.lists(pieces | st.text(max_size=5), max_size=30).map("".join)
)


def outcome(parse, text, **options):
    """(what was found, None), or (None, the reason why nothing was)."""
    try:
        return parse(text, **options), None
    except AnswerError as error:
        return None, error.reason


@settings(deadline=None, max_examples=300)
@given(text=answers, finished=st.booleans(), most=st.integers(1, 12))
def test_any_answer_gives_clean_phrases_or_a_reason(text, finished, most):
    phrases, reason = outcome(parse_features, text, max_phrases=most, finished=finished)
    assert reason in (None, "empty answer", "refusal", "no phrases")
    if reason is not None:
        return
    assert 0 < len(phrases) <= most
    assert len({phrase.lower() for phrase in phrases}) == len(phrases)
    for phrase in phrases:
        assert 0 < len(phrase) <= MAX_PHRASE
        assert phrase == " ".join(phrase.split())
        phrase.encode()


@settings(deadline=None, max_examples=300)
@given(text=answers)
def test_any_answer_gives_a_subject_or_a_reason(text):
    found, reason = outcome(parse_subject, text)
    assert reason in (None, "empty answer", "refusal", "no subject", "no caption")
    if reason is None:
        assert found.primary_subject.strip() == found.primary_subject != ""
        assert found.caption.encode().strip()


words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=8)
phrases = st.lists(st.lists(words, min_size=2, max_size=5).map(" ".join), min_size=2, unique=True)


@settings(deadline=None)
@given(phrases=phrases, style=st.sampled_from([*STYLES]))
def test_phrases_come_back_from_every_style(phrases, style):
    wanted = phrases[:3]
    assume(not wanted[0].startswith(("sorry", "apologies")))
    assert parse_features(STYLES[style](wanted), max_phrases=9) == tuple(wanted)
