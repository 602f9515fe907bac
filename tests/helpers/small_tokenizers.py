"""Tokenizers of Hugging Face with a handful of words."""

from typing import Any

import pytest

from grain_jax.data.tokenizer import HuggingFaceTokenizer, PaddedTokenizer


def huggingface_tokenizer() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(huggingface_backend(), start=1, end=2)


def huggingface_backend() -> Any:
    """Like most tokenizers of Hugging Face: end-of-text is not the highest id."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "[BOS]": 1, "[EOS]": 2, "a": 3, "cat": 4, "photo": 5, "of": 6}
    model = tokenizers.models.WordLevel(words, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[BOS]", "[EOS]"])
    return backend


def padded_tokenizer(side: str = "right", frame: str = "$A </s>") -> PaddedTokenizer:
    return PaddedTokenizer(padded_backend(frame), pad_id=1, pad_left=side == "left")


def padded_backend(frame: str = "$A </s>") -> Any:
    """Like SigLIP's: lower-cased, and without punctuation; it pads with its end-of-text."""
    tokenizers = pytest.importorskip("tokenizers")
    normalizers, regex = tokenizers.normalizers, tokenizers.Regex(r"[^\w\s<>/]")
    words = ["[UNK]", "</s>", "<s>", "a", "cat", "photo", "of", "mat"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(regex, "")]
    )
    # White space is a token of its own, as it is to those that came from SentencePiece.
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", behavior="isolated")
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=frame, special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    return backend
