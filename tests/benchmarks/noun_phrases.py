"""Noun phrases that are found, against those that people marked in Flickr30k Entities.

    python tests/benchmarks/noun_phrases.py FOLDER [--phrases=rules|spacy]

FOLDER holds Sentences/*.txt as published. Precision and recall of exact spans; pronouns that people
marked count as missed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from grain_jax.annotation.phrases import PHRASE_FINDERS
from grain_jax.command_line import RequiredPath, one_of, parse

_PHRASE = re.compile(r"\[/EN#\S+\s+([^\]]*)\]")


@dataclass
class Options:
    """What to measure."""

    folder: Annotated[RequiredPath, tyro.conf.Positional]
    phrases: Annotated[str, one_of(tuple(PHRASE_FINDERS))] = "rules"


def marked_captions(folder: Path) -> Iterator[tuple[str, set[tuple[int, int]]]]:
    """Captions with the spans of their phrases."""
    for path in sorted((folder / "Sentences").glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            caption, spans, end = "", set(), 0
            for match in _PHRASE.finditer(line):
                caption += line[end : match.start()]
                spans.add((len(caption), len(caption) + len(match[1])))
                caption, end = caption + match[1], match.end()
            if line.strip():
                yield caption + line[end:], spans


def main() -> None:
    options = parse(Options, None, command="noun_phrases", description=__doc__)
    finder = PHRASE_FINDERS[options.phrases]()
    captions = phrases = found = right = 0
    for caption, expected in marked_captions(options.folder):
        spans = set(finder.spans(caption))
        captions, phrases = captions + 1, phrases + len(expected)
        found, right = found + len(spans), right + len(spans & expected)
    print(
        f"{finder.name}: precision {right / found:.3f}, recall {right / phrases:.3f}, of "
        f"{phrases:,} phrases in {captions:,} captions"
    )


if __name__ == "__main__":
    main()
