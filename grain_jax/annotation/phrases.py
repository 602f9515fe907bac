"""Noun phrases of captions: what to look for in an image that has no descriptions.

On the 5,000 captions of 1,000 photographs of Flickr8k, against the 15,801 phrases that people
marked (Flickr30k Entities; exact spans, pronouns counted as missed): "rules" precision 0.922 and
recall 0.911, "spacy" with en_core_web_sm 3.8 0.943 and 0.892. The rules were made on other captions
of that collection; on other texts, web captions above all, spaCy will be the better.
`tests/benchmarks/noun_phrases.py` prints these figures.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from grain_jax.annotation.rule_phrases import DETERMINERS, noun_phrase_spans
from grain_jax.data.captions import clean_text, normalize_text
from grain_jax.extras import how_to_install

SPACY_MODEL = "en_core_web_sm"
# Of no place in the image, or of all of it, when nothing else is said of them.
NOT_THINGS = frozenset(
    (
        *("air", "background", "camera", "case", "center", "centre", "corner", "day", "direction"),
        *("distance", "edge", "end", "evening", "foreground", "front", "image", "left", "middle"),
        *("morning", "motion", "night", "one", "other", "others", "photo", "photograph", "right"),
        *("scene", "side", "sides", "something", "someone", "sort", "thing", "things", "time"),
        *("top", "type", "view", "way", "world"),
    )
)


@runtime_checkable
class PhraseFinder(Protocol):
    """Finds the noun phrases of a caption."""

    name: str  # with the version of what it rests on, for the provenance of rows

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """(first character, one after the last) of each phrase, in order, without overlaps."""
        ...


class RulePhrases:
    """A `PhraseFinder` without dependencies: `noun_phrase_spans`."""

    name = "rules"

    def spans(self, caption: str) -> list[tuple[int, int]]:
        return noun_phrase_spans(caption)


class SpacyPhrases:
    """A `PhraseFinder` by spaCy's noun chunks; those with "of" between them are one phrase.

    Args:
        model: an installed pipeline with tagger and parser, or its folder.

    Raises ValueError, which says what to install, where spaCy or the pipeline is missing.
    """

    def __init__(self, model: str = SPACY_MODEL) -> None:
        try:
            import spacy
        except ImportError as error:
            raise ValueError(
                f"--phrase_finder=spacy needs spaCy ({error}). Install it: "
                f"{how_to_install('phrases')}"
            ) from error
        try:
            self._pipeline: Any = spacy.load(model, exclude=["ner", "lemmatizer"])
        except OSError as error:
            raise ValueError(
                f"spaCy has no pipeline {model!r}. Install it: python -m spacy download {model}"
            ) from error
        meta = self._pipeline.meta
        self.name = f"spacy {spacy.__version__} {meta['lang']}_{meta['name']} {meta['version']}"

    def spans(self, caption: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for chunk in self._pipeline(caption).noun_chunks:
            if chunk.root.pos_ == "PRON":
                continue
            if found and caption[found[-1][1] : chunk.start_char].strip() == "of":
                found[-1] = (found[-1][0], chunk.end_char)
            else:
                found.append((chunk.start_char, chunk.end_char))
        return found


PHRASE_FINDERS: dict[str, Callable[[], PhraseFinder]] = {
    "rules": RulePhrases,
    "spacy": SpacyPhrases,
}


def caption_phrases(captions: Sequence[str], finder: PhraseFinder, *, limit: int) -> list[str]:
    """Phrases of all captions of an image that name a thing, in order of first mention.

    Phrases that differ in their first determiner only ("a dog", "the dog") are one, and phrases
    such as "the background" are none. At most `limit`.
    """
    found: dict[str, str] = {}
    for caption in map(clean_text, captions):
        for start, stop in finder.spans(caption):
            phrase = caption[start:stop]
            if (key := _key(phrase)) and key not in NOT_THINGS:
                found.setdefault(key, phrase)
    return list(found.values())[:limit]


@functools.lru_cache(maxsize=10_000)
def _key(phrase: str) -> str:
    words = normalize_text(phrase).split()
    while words and words[0] in DETERMINERS:
        words = words[1:]
    return " ".join(words)
