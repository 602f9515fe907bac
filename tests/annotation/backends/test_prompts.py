"""Phrases come back from the tokens of a prompt as the phrases that they were."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_detectors import write_bert_tokenizer

from grain_jax.annotation.backends.prompts import (
    build_prompts,
    phrase_scores,
    prompt_phrase,
    token_map,
)


def word_offsets(text: str) -> list[tuple[int, int]]:
    """A tokenizer: pieces of up to three letters, and marks."""
    return [match.span() for match in re.finditer(r"\w{1,3}|[^\w\s]", text)]


def read_back(prompt) -> list[str]:
    """Each span as the letters of its tokens."""
    offsets = word_offsets(prompt.text)
    inside = token_map(prompt.spans, offsets)
    return [
        "".join(prompt.text[a:b] for (a, b), chosen in zip(offsets, row, strict=True) if chosen)
        for row in inside
    ]


def without_space(phrase: str) -> str:
    return "".join(prompt_phrase(phrase).split())


phrase_texts = st.text(alphabet="ab .?,'-(2 é", max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(phrase_texts, max_size=12), st.integers(8, 40))
def test_every_phrase_is_read_back_from_its_own_tokens(phrases, limit):
    prompts = build_prompts(phrases, word_offsets, limit=limit)
    found: dict[int, str] = {}
    for prompt in prompts:
        assert len(word_offsets(prompt.text)) + 2 <= limit
        assert prompt.text.endswith(".")
        for numbers, letters in zip(prompt.phrases, read_back(prompt), strict=True):
            for number in numbers:
                assert number not in found
                found[number] = letters
    whole = {n: without_space(phrase) for n, phrase in enumerate(phrases) if without_space(phrase)}
    assert found.keys() == whole.keys()
    for number, letters in found.items():
        assert whole[number].startswith(letters)
        if len(word_offsets(prompt_phrase(phrases[number]))) + 3 <= limit:
            assert whole[number] == letters


def test_prompts_keep_the_order_and_need_no_more_passes_than_they_must():
    phrases = [f"a{n} b{n}" for n in range(10)]  # four tokens with the full stop... three
    prompts = build_prompts(phrases, word_offsets, limit=2 + 3 * 4)
    assert [prompt.phrases for prompt in prompts] == [
        ((0,), (1,), (2,), (3,)),
        ((4,), (5,), (6,), (7,)),
        ((8,), (9,)),
    ]
    assert prompts[2].text == "a8 b8. a9 b9."


def test_a_phrase_that_is_part_of_another_has_tokens_of_its_own():
    """ "bus" must not be looked up in "bus stop", nor a repeated phrase at its first place."""
    (prompt,) = build_prompts(["a bus stop", "bus", "a bus stop", "stop"], word_offsets, limit=99)
    assert prompt.text == "a bus stop. bus. stop."
    assert prompt.phrases == ((0, 2), (1,), (3,))
    assert [prompt.text[a:b] for a, b in prompt.spans] == ["a bus stop", "bus", "stop"]
    assert read_back(prompt) == ["abusstop", "bus", "stop"]


def test_marks_that_end_the_models_attention_are_not_inside_a_phrase():
    (prompt,) = build_prompts(["A St. Bernard, 2.5 years?", "who?"], word_offsets, limit=99)
    assert prompt.text == "a st bernard, 2 5 years. who."


@pytest.mark.parametrize("phrases", [[], [""], ["...", " ? "]])
def test_nothing_to_look_for_is_no_prompt(phrases):
    assert build_prompts(phrases, word_offsets, limit=20) == []


def test_scores_are_means_over_the_tokens_of_a_phrase():
    (prompt,) = build_prompts(["dog", "a cat", "dog"], word_offsets, limit=99)
    assert prompt.text == "dog. a cat."
    offsets = [(0, 0), *word_offsets(prompt.text), (0, 0)]  # [CLS] dog . a cat . [SEP]
    tokens = np.float32([[0.9, 0.5, 0.9, 0.2, 0.6, 0.9, 0.9], [0, 0.25, 0, 0, 1, 0, 0]])
    scores = phrase_scores(tokens, prompt, offsets, num_phrases=4)
    np.testing.assert_allclose(scores, [[0.5, 0.4, 0.5, 0], [0.25, 0.5, 0.25, 0]], atol=1e-6)


@pytest.mark.torch
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abé .?,'-[]SEP#２ßİ", max_size=10), max_size=6))
def test_phrases_are_read_back_from_a_real_tokenizer(bert, phrases):
    def offsets(text):
        found = bert(text, add_special_tokens=False, return_offsets_mapping=True)
        return [tuple(each) for each in found.offset_mapping]

    for prompt in build_prompts(phrases, offsets, limit=256):
        tokens = bert(prompt.text, return_offsets_mapping=True)
        assert len(tokens.input_ids) <= 256
        # As many phrases as the model sees: what stands between marks that end its attention.
        ends = [n for n, token in enumerate(tokens.input_ids) if token in (101, 102, 1012, 1029)]
        assert len(ends) == len(prompt.spans) + 2
        inside = token_map(prompt.spans, [tuple(each) for each in tokens.offset_mapping])
        for row, before, after in zip(inside, ends, ends[1:], strict=False):
            assert np.nonzero(row)[0].tolist() == list(range(before + 1, after))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    write_bert_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)
