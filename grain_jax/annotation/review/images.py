"""What a person is shown of each image, and by what it is known that it still says that."""

import base64
import hashlib
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from grain_jax.annotation.audit.look import best_scores
from grain_jax.annotation.images import as_jpeg, load_image
from grain_jax.data.annotation_files import Annotations
from grain_jax.data.annotation_merge import (
    JUDGED,
    AnnotatedRegion,
    Annotation,
    Decision,
    decided,
)
from grain_jax.data.annotation_rows import Row, journal_line, row_values
from grain_jax.data.image_files import SkippedSample

REVIEW = "review"  # `Decision.fault` of what a person decided
Source = Callable[[str], str]  # address of an image on the page


@dataclass(frozen=True)
class ReviewedImage:
    """An image as it is shown."""

    annotation: Annotation  # without what `audit` drops
    rows: str  # `rows_digest` of what is shown
    unboxed: tuple[tuple[str, float | None], ...]  # other descriptions and their best scores
    verdict: str  # "accept", "reject" or "": what was decided before
    rejected: tuple[int, ...]  # regions that were rejected before


def rows_digest(rows: Mapping[str, Row]) -> str:
    """What changes with the rows of `describe` and `ground` that are looked at.

    It holds the time at which they were made, so no two folders have the same, but for copies.
    """
    digest = hashlib.sha256()
    for stage in JUDGED:
        if stage in rows:
            digest.update(stage.encode() + journal_line(row_values(rows[stage])))
    return digest.hexdigest()[:32]


def reviewed(annotations: Annotations, index: int) -> ReviewedImage | None:
    """What is shown of an image; None where `audit` drops all of it, or no stage described it."""
    decisions = annotations.decisions(index)
    found = decided(
        annotations.undecided(index), [each for each in decisions if each.fault != REVIEW]
    )
    rows = annotations.rows(index)
    if found.dropped is not None or not (found.captions or found.descriptions or found.regions):
        return None
    scores = best_scores(rows.get("ground"))
    boxed = {region.description for region in found.regions}
    by_person = [each for each in decisions if each.fault == REVIEW]
    return ReviewedImage(
        annotation=found,
        rows=rows_digest(rows),
        unboxed=tuple((text, scores.get(text)) for text in found.descriptions if text not in boxed),
        verdict=_verdict(by_person),
        rejected=tuple(
            place
            for place, region in enumerate(found.regions)
            if region_decision(region) in by_person
        ),
    )


def region_decision(region: AnnotatedRegion) -> Decision:
    """The decision to leave out a region."""
    return Decision(REVIEW, "drop", "region", region.description, region.box_xyxy)


def verdict_decisions(verdict: str) -> list[Decision]:
    """The decision that a verdict on an image as a whole is; none for ""."""
    return {
        "": [],
        "accept": [Decision(REVIEW, "accept")],
        "reject": [Decision(REVIEW, "drop")],
    }[verdict]


def linked(images: Path, page: Path) -> Source:
    """Addresses of the files themselves, relative to the folder of the page."""
    folder = os.path.relpath(images.resolve(), page.resolve().parent)
    # The leading "./" keeps a name with a colon from being read as a scheme.
    return lambda image: urllib.parse.quote(os.fsencode(f"./{folder}/{image}"), safe="/.")


def embedded(images: Path, max_side: int) -> Source:
    """The images themselves, as JPEG with a longer side of at most `max_side` pixels.

    An image that cannot be read has an empty address, and the page says that it cannot be shown.
    """

    def of(image: str) -> str:
        try:
            jpeg = as_jpeg(load_image(image, images), max_side)
        except SkippedSample:
            return "data:,"
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"

    return of


def sampled(images: list[str], count: int | None) -> Iterator[int]:
    """Positions of `count` images, the same each time whatever is added; all for None."""
    if count is None or count >= len(images):
        yield from range(len(images))
        return
    hashes = [hashlib.sha256(os.fsencode(image)).digest() for image in images]
    yield from sorted(sorted(range(len(images)), key=hashes.__getitem__)[:count])


def _verdict(decisions: list[Decision]) -> str:
    for verdict in ("accept", "reject"):
        if verdict_decisions(verdict)[0] in decisions:
            return verdict
    return ""
