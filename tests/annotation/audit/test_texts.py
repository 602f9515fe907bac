"""Texts with a fault, and texts like them without one."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.annotation.audit.texts import is_about_absence, is_refusal, is_truncated


@pytest.mark.parametrize(
    "text",
    [
        "The image does not contain any text.",
        "The image doesn\u2019t show a dog",
        "There are no people in the scene.",
        "There is no visible writing on the shirt.",
        "There isn't any water.",
        "no visible markings",
        "No other objects are present.",
        "The background contains no objects.",
        "a face with no beard",
        "a bird without any spots",
        "without visible damage",
        "The tail is not visible.",
        "its feet cannot be seen",
        "not clearly visible feet",
        "the absence of clouds",
        "lacks a tail",
        "A room in which no people can be seen",
    ],
)
def test_texts_about_what_is_absent(text):
    assert is_about_absence(text)


@pytest.mark.parametrize(
    "text",
    [
        "a red no parking sign",
        "No smoking sign on a wall",
        "a street with no entry signs",
        "There is a no-parking zone",
        "a notebook on a desk",
        "There is now a bridge.",
        "a black leather knot",
        "North of the river",
        "a dog that is not small",
        "a piano",
        "the image shows a man with noodles",
        "No. 7 on the jersey",
        "a moped of no more than 50 cc",
    ],
)
def test_texts_about_what_is_there(text):
    assert not is_about_absence(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m unable to view images.",
        "As an AI language model, I do not have eyes.",
        "Sorry, the image is blurry",
        "Unfortunately, I cannot see the image",
        "No image was provided.",
        "Please upload an image",
        "This caption is bad. I cannot identify people.",
        "i don't see an image",
        "There is no definitive answer to this question.",
    ],
)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "A man who is sorry hugs a child.",
        "An apologetic dog.",
        "an I-beam of steel",
        "A sign that says please wait",
        "Icannot Street",
        "A woman holding an AI robot",
    ],
)
def test_no_refusals(text):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "A man standing next to a",
        "a bird with red and",
        "A dog runs, a cat sleeps,",
        "a long (curved",
        'a sign that reads "stop',
        "A dog runs on grass. The sky is",
        "A dog runs on grass. A tree stan",
        "wings with the...",
        "a black-",
    ],
)
def test_truncated_texts(text):
    assert is_truncated(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A man standing next to a car",
        "A man standing next to a car.",
        "a long (curved) beak",
        'a sign that reads "stop"',
        'a 12" ruler',
        "A dog runs. The sky is blue.",
        "St. Paul's cathedral",
        "a man in the U.S. Army",
        "the bear the man is fond of.",
        "a lamp that is turned on",
        "wings",
        "A",
        "It says (hello).",
    ],
)
def test_whole_texts(text):
    assert not is_truncated(text)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_no_text_is_too_odd(text):
    for function in (is_about_absence, is_refusal, is_truncated):
        assert function(text) == function(f"  {text}\n")


@pytest.mark.parametrize(
    "part", ["no a-", "on the ", "there is ", "the image is ", "a. b", "(", "i "]
)
def test_a_text_of_100_000_characters_takes_no_longer_than_its_length(part):
    started = time.process_time()
    for function in (is_about_absence, is_refusal, is_truncated):
        function((part * 100_000)[:100_000])
    assert time.process_time() - started < 5
