"""Texts become the ids of OpenAI's tokenizer, and a run keeps the normalization it began with."""

import html
import json
import pickle
import re
import unicodedata
from itertools import product
from pathlib import Path

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import GOLDEN

from grain_jax.config import TrainConfig
from grain_jax.data import text_normalization
from grain_jax.data.text_normalization import ENTITIES, FTFY, ftfy_cleaned
from grain_jax.data.tokenizer import ClipTokenizer, build_tokenizer, tokenizer_from_spec
from grain_jax.loading import initialize

PUBLISHED = json.loads((GOLDEN / "openai_tokens.json").read_text())["texts"]
LENGTH = 600  # longer than any of them
# An apostrophe and a long s, where the pattern of OpenAI's code ignores case.
KNOWN = {"'\u017f", "\u2018\ufb05 \u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3\u2019"}
PLAIN = [chr(c) for c in range(128)] + list(
    "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2013\u2014\u2026"
)


def ids(tokenizer: ClipTokenizer, text: str) -> list[int]:
    row = tokenizer.encode([text], LENGTH)[0][0]
    return row[1 : row.argmax()].tolist()


def test_ids_of_odd_texts_are_those_of_openai() -> None:
    tokenizer = ClipTokenizer()
    expected = {text: [int(i) for i in written.split()] for text, written in PUBLISHED}
    assert len(expected) >= 1000
    differ = {text for text, known in expected.items() if ids(tokenizer, text) != known}
    assert differ == KNOWN


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("the woman\u2019s \u201cvintage\u201d car", 'the woman\'s "vintage" car'),
        (unicodedata.normalize("NFD", "crème brûlée"), "crème brûlée"),
        ("\ufb01ne \uff28\uff25\uff2c\uff2c\uff2f", "fine HELLO"),
        ("caf\u00c3\u00a9 &amp;amp; bar", "café & bar"),
    ],
)
def test_texts_that_look_alike_have_the_same_ids(text: str, plain: str) -> None:
    assert ids(ClipTokenizer(), text) == ids(ClipTokenizer(), plain)
    assert ids(ClipTokenizer(ENTITIES), text) != ids(ClipTokenizer(), plain)


def test_special_tokens_in_a_text_are_text() -> None:
    for text in ("<end_of_text>", "a <START_of_text> b", "<<End_Of_Text>>", "<|endoftext|>"):
        for tokenizer in map(ClipTokenizer, (FTFY, ENTITIES)):
            words = re.findall(r"[a-z]+|[^\sa-z]+", text.lower())
            assert ids(tokenizer, text) == [i for word in words for i in ids(tokenizer, word)]
            assert max(ids(tokenizer, text)) < 49_406


def test_a_text_of_any_letters_has_the_ids_of_its_words() -> None:
    """ASCII is cut into words here and other texts by the library, with the same result."""
    tokenizer = ClipTokenizer()
    for text in ("it's 5 o'clock -- don't!", "''s _a_b_ x10 'll've '", "\"'s'\" a.b,c"):
        *found, last = ids(tokenizer, f"{text} \u732b")
        ending = ids(tokenizer, "\u732b")
        assert [*found, last] == [*ids(tokenizer, text), *ending]


def slow(text: str) -> str:
    """As OpenAI's code cleans a text, without a shorter way for plain ones."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def test_the_fast_path_changes_nothing() -> None:
    """Any two characters that could take it, beside letters, spaces and each other."""
    for one, two in product(PLAIN, PLAIN):
        for text in (f"{one}{two}", f"a{one}{two}b", f"{one} {two}"):
            if text_normalization.PLAIN.fullmatch(text):
                assert ftfy_cleaned(text) == slow(text), ascii(text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(PLAIN), max_size=30))
def test_the_fast_path_changes_no_longer_text(text: str) -> None:
    assert ftfy_cleaned(text) == slow(text)


def test_most_captions_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(text: str) -> str:
        raise AssertionError(text)

    monkeypatch.setattr(ftfy, "fix_text", never)
    assert (
        ftfy_cleaned(" the dog\u2019s \u201cball\u201d \u2014 red\n")
        == 'the dog\'s "ball" \u2014 red'
    )


def test_the_normalization_is_recorded() -> None:
    fresh = build_tokenizer(TrainConfig().data)
    assert fresh.spec() == {"kind": "clip", "text_normalization": "ftfy"}
    for name in (FTFY, ENTITIES):
        tokenizer = ClipTokenizer(name)
        for again in (
            tokenizer_from_spec(json.loads(json.dumps(tokenizer.spec()))),
            pickle.loads(pickle.dumps(tokenizer)),
        ):
            assert again.spec() == tokenizer.spec()
    older = tokenizer_from_spec({"kind": "clip"})  # of before it was recorded
    assert older.spec()["text_normalization"] == ENTITIES
    with pytest.raises(ValueError, match="Unknown text_normalization 'nfkc'"):
        tokenizer_from_spec({"kind": "clip", "text_normalization": "nfkc"})


def test_an_earlier_run_resumes_with_its_normalization(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grain_jax.config.cli import config_to_json

    config = TrainConfig()
    config.data.tokenizer = "clip"
    saved = {"config": json.loads(config_to_json(config)), "tokenizer": {"kind": "clip"}}
    monkeypatch.setattr(initialize.run_folder, "complete_steps", lambda folder: [3])
    monkeypatch.setattr(initialize.run_folder, "read_metadata", lambda folder, step: saved)
    resumed = initialize.pretrained(config, tmp_path).tokenizer
    assert resumed is not None
    assert resumed.spec()["text_normalization"] == ENTITIES
    config.data.tokenizer = (
        "synthetic_birds"  # another one: not the old run's, and refused elsewhere
    )
    assert initialize.pretrained(config, tmp_path).tokenizer is None
    monkeypatch.setattr(initialize.run_folder, "complete_steps", lambda folder: [])
    assert initialize.pretrained(TrainConfig(), tmp_path).tokenizer is None
