"""CLIP's byte-pair encoding, as a `tokenizers.Tokenizer`.

`clip_merges.txt.gz` holds the merges of OpenAI's CLIP (`bpe_simple_vocab_16e6.txt.gz` of
github.com/openai/CLIP, MIT license, see NOTICE): the 48,894 that its vocabulary has, one a line, by
which the vocabulary is numbered.
"""

import functools
import gzip
import re
from importlib import resources
from typing import Any

NUM_BYTES = 256
END_OF_WORD = "</w>"
LONGEST_KEPT = 32  # letters of a word whose ids are kept: texts of the web hold data of any length
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
# Words of a text in lower case; white space between words is dropped.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ASCII_WORDS = re.compile(WORDS.replace(r"\p{L}", "a-z").replace(r"\p{N}", "0-9"))

Merge = tuple[str, str]


@functools.cache
def byte_letters() -> dict[int, str]:
    """Byte -> GPT-2's printable character for it, in the order of CLIP's first 256 ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(NUM_BYTES + i) for i, byte in enumerate(others)}


def clip_tables() -> tuple[dict[str, int], list[Merge]]:
    """(token -> id, merges in order), as `tokenizers.models.BPE` takes them."""
    packed = (resources.files("grain_jax.data") / "clip_merges.txt.gz").read_bytes()
    merges: list[Merge] = []
    for line in gzip.decompress(packed).decode("utf-8").split("\n")[:-1]:
        first, _, second = line.partition(" ")
        merges.append((first, second))
    letters = list(byte_letters().values())
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges)]
    tokens += [START_OF_TEXT, END_OF_TEXT]
    return {token: i for i, token in enumerate(tokens)}, merges


def clip_backend() -> Any:
    """A `tokenizers.Tokenizer` of texts in lower case; it has no special tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary, merges = clip_tables()
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            end_of_word_suffix=END_OF_WORD,
            continuing_subword_prefix="",
            fuse_unk=False,
            unk_token=END_OF_TEXT,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def clip_ids(text: str) -> list[int]:
    """The ids of a text, without start and end."""
    text = text.lower()
    if text.isascii():  # most are; the library alone would take longer
        return [i for word in _ASCII_WORDS.findall(text) for i in _kept_ids(word)]
    return _shared_backend().encode(text, add_special_tokens=False).ids


def _word_ids(word: str) -> tuple[int, ...]:
    # An ASCII word is one to the library too, whose cutting into words would take most of the time.
    return tuple(token.id for token in _model().tokenize(word.translate(byte_letters())))


_cached_ids = functools.lru_cache(maxsize=2**16)(_word_ids)


def _kept_ids(word: str) -> tuple[int, ...]:
    return (_cached_ids if len(word) <= LONGEST_KEPT else _word_ids)(word)


@functools.cache
def _model() -> Any:
    return _shared_backend().model


_shared_backend = functools.cache(clip_backend)
