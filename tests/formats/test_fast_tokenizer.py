"""Fast tokenizers of Hugging Face give the ids of grain_jax's, on ordinary and on odd texts."""

from typing import Any

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import huggingface_tokenizer, padded_tokenizer

from grain_jax.data.text_normalization import ENTITIES, FTFY
from grain_jax.data.tokenizer import ClipTokenizer, HuggingFaceTokenizer, Tokenizer, WordTokenizer
from grain_jax.formats.fast_tokenizer import fast_tokenizer

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

LENGTH = 24
TEXTS = [
    "a photo of a Cat!",
    "",
    "   ",
    "it's 5 o'clock, don't I'LL",
    "  two  spaces\tand\nlines \x1c odd \x85 ones \u3000 too ",
    "<|endoftext|> and <|startoftext|> and [EOS] and [PAD] are text",
    "héllo wörld, straße, ΣΟΦΟΣ and Σ alone, İstanbul",
    "日本語と 한국어 и русский",
    "🙂🙂 and e\u0301 \ufeff \u200b \ufffd \x00 ½ ² Ⅷ ﬁ",
    "x" * 200,
    "snake_case --- ... !!!?",
    "a very long sentence about a cat that sits on a mat " * 5,
]


def clip() -> ClipTokenizer:
    return ClipTokenizer()


def words() -> WordTokenizer:
    return WordTokenizer(["a", "cat", "photo", "of", "mat", "endoftext", "eos", "x"])


def byte_level() -> HuggingFaceTokenizer:
    """White space and case matter to it, and its end-of-text is the highest id."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "ca", "Ġa"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("c", "a"), ("Ġ", "a")]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<end>"])
    return HuggingFaceTokenizer(backend, start=None, end=backend.token_to_id("<end>"))


def ids_of(tokenizer: Tokenizer, text: str, length: int = LENGTH) -> list[int]:
    row = tokenizer.encode([text], length)[0][0]
    return row[: row.argmax() + 1].tolist()


@pytest.fixture(params=[clip, words, huggingface_tokenizer, byte_level], ids=lambda f: f.__name__)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.param()


def test_ids_are_the_same(tokenizer: Tokenizer, tmp_path) -> None:
    fast_tokenizer(tokenizer, max_length=LENGTH).save_pretrained(tmp_path)
    fast = transformers_tokenizer(tmp_path)
    for text in TEXTS:
        assert fast(text, truncation=True)["input_ids"] == ids_of(tokenizer, text), text
        cut = fast(text, truncation=True, max_length=5)["input_ids"]
        assert cut == ids_of(tokenizer, text, 5), text


def transformers_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_of_a_padded_tokenizer_are_the_same_at_every_place(side: str, tmp_path) -> None:
    """Its tower pools at the last of all positions, so padding counts too."""
    tokenizer = padded_tokenizer(side, "<s> $A </s>")
    fast_tokenizer(tokenizer, max_length=LENGTH).save_pretrained(tmp_path)
    fast = transformers_tokenizer(tmp_path)
    texts = [*TEXTS, " a  cat ", "\ta\n\nphoto  of \x1c a   cat\x85"]
    for length in (5, LENGTH):
        found = fast(texts, truncation=True, padding="max_length", max_length=length)["input_ids"]
        assert found == tokenizer.encode(texts, length)[0].tolist()


def test_padding_does_not_change_pooling(tokenizer: Tokenizer) -> None:
    """The first highest id, where the text tower pools, is at the same place in a padded batch."""
    fast = fast_tokenizer(tokenizer, max_length=LENGTH)
    padded = fast(TEXTS, truncation=True, padding=True, return_tensors="np")["input_ids"]
    ours, _ = tokenizer.encode(TEXTS, LENGTH)
    np.testing.assert_array_equal(padded.argmax(axis=1), ours.argmax(axis=1))
    for row, expected, end in zip(padded, ours, ours.argmax(axis=1), strict=True):
        np.testing.assert_array_equal(row[: end + 1], expected[: end + 1])


@pytest.fixture(scope="module", params=[FTFY, ENTITIES])
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    tokenizer = ClipTokenizer(request.param)
    return tokenizer, fast_tokenizer(tokenizer, max_length=LENGTH)


@pytest.fixture(scope="module")
def both_padded() -> tuple[Tokenizer, Any]:
    tokenizer = padded_tokenizer("left")
    return tokenizer, fast_tokenizer(tokenizer, max_length=LENGTH)


# Letters younger than Unicode 14 are left out: the two libraries know different ones.
LETTERS = st.characters(
    codec="utf-8", categories=("L", "M", "N", "P", "S", "Z"), max_codepoint=0x2FFF
)


@settings(max_examples=200, deadline=None)
@given(st.text(LETTERS, max_size=20).filter(lambda text: "&" not in text))
def test_any_text_for_clip(both, text: str) -> None:
    ours, fast = both
    if ours.spec()["text_normalization"] == FTFY:
        text = ftfy.fix_text(text)  # random letters look like a broken encoding now and then
    assert fast(text, truncation=True)["input_ids"] == ids_of(ours, text)


# Words, white space of all kinds and anything else, but no special token: the library takes those
# out before it looks at white space.
PIECES = st.one_of(
    st.sampled_from(["a", "Cat", "photo", " ", "  ", "\t", "\n", "\x1c", "\x85", "\u3000", ","]),
    st.text(LETTERS, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join).filter(lambda t: "&" not in t and "<" not in t))
def test_any_text_for_a_padded_tokenizer(both_padded, text: str) -> None:
    ours, fast = both_padded
    found = fast(text, truncation=True, padding="max_length", max_length=LENGTH)["input_ids"]
    assert found == ours.encode([text], LENGTH)[0][0].tolist()


def test_words_come_back_from_ids() -> None:
    fast = fast_tokenizer(clip(), max_length=LENGTH)
    decoded = fast.decode(fast("a Photo of Héllo!")["input_ids"], skip_special_tokens=True)
    assert decoded == "a photo of héllo ! "


def test_an_end_of_text_that_does_not_fit_is_refused() -> None:
    tokenizer = huggingface_tokenizer()
    spec = tokenizer.spec() | {"end": 12}
    tokenizer.spec = lambda: spec
    with pytest.raises(ValueError, match="id 7, and the model knows it as 12"):
        fast_tokenizer(tokenizer, max_length=LENGTH)
