"""Candidate answers out of captions, for classification without a list of classes.

As CaSED (Conti et al. 2023, arXiv 2306.00917) makes them, with rules in place of its tagger: what
stands in noun phrases (`annotation/rule_phrases.py`) without determiners and numbers, of three
letters or more, in lower case and singular, without words such as "photo", and in two captions or
more; where no two have one, all of them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from grain_jax.annotation.rule_phrases import DETERMINERS, NUMBERS, noun_phrase_spans
from grain_jax.data.captions import clean_text

Candidates = Literal["words", "phrases"]
CANDIDATES: tuple[Candidates, ...] = get_args(Candidates)
FALLBACK = "object"  # of captions without any, as published
MIN_CAPTIONS = 2
_LETTERS = 3  # of the shortest word
_WORD = re.compile(r"[^\W\d_]+")
_HYPHENATED = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_NO_TEXT = re.compile(r"<[^>]+>|https?\S+|\.\w+")  # tokens, addresses, endings of files
_OF_IMAGES = frozenset(
    [
        "clipart",
        "icon",
        "illustration",
        "image",
        "logo",
        "painting",
        "photo",
        "portrait",
        "profile",
        "symbol",
        "thumbnail",
        "picture",
    ]
)
_LEFT_OUT = DETERMINERS | NUMBERS | _OF_IMAGES


def candidates_of(captions: Sequence[str], kind: Candidates = "words") -> list[str]:
    """Different candidates of the captions of one image, the first mentioned first; never empty.

    kind: "words", single ones without hyphens as published, or "phrases", whole noun phrases with
    them ("black-footed albatross").
    """
    counts = Counter(t for caption in captions for t in dict.fromkeys(_of_caption(caption, kind)))
    least = min(MIN_CAPTIONS, max(counts.values(), default=0))
    return [text for text in counts if counts[text] >= least] or [FALLBACK]


def _of_caption(caption: str, kind: Candidates) -> Iterator[str]:
    text = _NO_TEXT.sub(" ", clean_text(caption))
    pattern = _WORD if kind == "words" else _HYPHENATED
    for start, stop in noun_phrase_spans(text):
        found = pattern.findall(text[start:stop].lower())
        words = [singular(word) for word in found if word not in _LEFT_OUT]  # "its", not "it"
        kept = [word for word in words if len(word) >= _LETTERS and word not in _LEFT_OUT]
        if kind == "words":
            yield from kept
        elif kept:
            yield " ".join(kept)


def singular(word: str) -> str:
    """An English word without the -s of a plural, where that is told from its ending; "gas" and
    others of three letters have none.
    """
    if not word.endswith("s") or word.endswith(("ss", "us", "is", "ies", "oes")):
        return word
    if len(word) <= _LETTERS:
        return word
    return word[:-2] if word.endswith(("ches", "shes", "sses", "xes", "zes")) else word[:-1]
