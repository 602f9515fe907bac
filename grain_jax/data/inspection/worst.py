"""The records at the far ends of a split: its smallest boxes, longest texts, lowest scores."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from grain_jax.data.records import Record

NUM_WORST = 6  # records of each kind
MAX_SHOWN = 300  # characters of a text that is kept
SMALLEST, LARGEST = "smallest boxes", "largest boxes"
LONG_CAPTION, LONG_DESCRIPTION = "longest captions", "longest descriptions"
MOST, LOWEST = "most boxes", "lowest scores"
KINDS = {  # kind -> unit of its values
    SMALLEST: "area, fraction of the image",
    LARGEST: "area, fraction of the image",
    LONG_CAPTION: "tokens",
    LONG_DESCRIPTION: "tokens",
    MOST: "boxes",
    LOWEST: "score",
}
HIGHEST_FIRST = {LARGEST, LONG_CAPTION, LONG_DESCRIPTION, MOST}


@dataclass(frozen=True)
class WorstRecord:
    """A record at one end of a split, with the text or box that put it there."""

    index: int  # of the record in the split
    id: str
    value: float  # in the unit of its kind
    text: str = ""  # the text in question, or the description of the box in question
    region: int | None = None  # number of the box in question


@dataclass
class Worst:
    """The `NUM_WORST` records of each of `KINDS`, worst first; equal ones by their order."""

    records: dict[str, list[WorstRecord]] = field(default_factory=dict)

    def add(
        self,
        index: int,
        record: Record,
        *,
        caption_tokens: Sequence[int],
        description_tokens: Sequence[int],
    ) -> None:
        """Considers one more record, with the tokens of its texts."""
        for kind, value, text, region in _candidates(record, caption_tokens, description_tokens):
            self._keep(
                kind, [WorstRecord(index, record.id, float(value), text[:MAX_SHOWN], region)]
            )

    def merge(self, other: "Worst") -> None:
        """Considers the records of another part of the split."""
        for kind, records in other.records.items():
            self._keep(kind, records)

    def _keep(self, kind: str, more: list[WorstRecord]) -> None:
        sign = -1 if kind in HIGHEST_FIRST else 1
        self.records[kind] = heapq.nsmallest(
            NUM_WORST,
            [*self.records.get(kind, []), *more],
            key=lambda found: (sign * found.value, found.index),
        )


def _candidates(
    record: Record, caption_tokens: Sequence[int], description_tokens: Sequence[int]
) -> Iterator[tuple[str, int | float, str, int | None]]:
    """Of each kind, what of this record is worst: kind, value, text, number of the region."""
    if caption_tokens:
        longest = max(range(len(caption_tokens)), key=caption_tokens.__getitem__)
        text = record.captions[longest].text
        yield LONG_CAPTION, caption_tokens[longest], text, None
    if not record.regions:
        return
    regions = range(len(record.regions))
    areas = [box_area(region.box_xyxy) for region in record.regions]
    scores = [region.score for region in record.regions]
    yield MOST, len(regions), "", None
    for kind, values, choose in (
        (SMALLEST, areas, min),
        (LARGEST, areas, max),
        (LONG_DESCRIPTION, description_tokens, max),
        (LOWEST, scores, min),
    ):
        number = choose(regions, key=values.__getitem__)
        yield kind, values[number], record.regions[number].description, number


def box_area(box_xyxy: Sequence[float]) -> float:
    """Area of a box in [0, 1], as a fraction of the image."""
    x0, y0, x1, y1 = box_xyxy
    return (x1 - x0) * (y1 - y0)
