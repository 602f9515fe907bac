"""Faults that people find in synthetic annotations, as one small function each: `FAULTS`.

A fault is found in what the rows of an image say; that it is one is for a person to decide.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from grain_jax.annotation.audit.counts import Repeats
from grain_jax.annotation.audit.texts import is_about_absence, is_refusal, is_truncated
from grain_jax.boxes import Box
from grain_jax.data.annotation_merge import AnnotatedRegion, Annotation

SAME_SCORE = 1e-6  # scores that differ by less are of one box


@dataclass(frozen=True)
class Limits:
    """From where on something is a fault."""

    min_repeats: int = 1000  # images in which one text stands
    min_score: float = 0.1  # best score of a description, on the detector's own scale
    max_area: float = 0.95  # of a box, as a fraction of the image


@dataclass(frozen=True)
class AuditedImage:
    """What is known of an image: its annotation, with nothing left out, and what belongs to it."""

    annotation: Annotation
    # Best score of what was looked for, by text; without texts that the detector was not asked for.
    best_scores: Mapping[str, float] = field(default_factory=dict)
    # In how many images each text of the stage `describe` stands.
    repeats: Mapping[str, Repeats] = field(default_factory=dict)
    # SHA-256 of the image's file as of now, "" where it cannot be read; None where nobody looked.
    file_hash: str | None = None


@dataclass(frozen=True)
class Finding:
    """A fault of an image, or of a part of what is said of it."""

    part: str  # of `annotation_merge.PARTS`: what `--drop` leaves out
    text: str = ""  # the caption or description
    box_xyxy: Box | None = None  # of a region
    detail: str = ""  # why, for a person
    weight: float = 0.0  # examples with a larger one are shown first


@runtime_checkable
class FindFaults(Protocol):
    """Finds a fault; the same findings for the same input, whatever else is in the collection."""

    def __call__(self, image: AuditedImage, limits: Limits, /) -> list[Finding]: ...


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    title: str
    find: FindFaults
    needs_images: bool = False  # it is found by the files of the images only


def texts_of(image: AuditedImage) -> Iterator[tuple[str, str]]:
    """(part, text) of each distinct text: captions, descriptions, and what was looked for."""
    annotation = image.annotation
    yield from (("caption", text) for text in dict.fromkeys(annotation.captions))
    found = [region.description for region in annotation.regions]
    texts = dict.fromkeys((*annotation.descriptions, *image.best_scores, *found))
    yield from (("text", text) for text in texts)


def repeated(image: AuditedImage, limits: Limits, /) -> list[Finding]:
    """Texts of `describe` that stand in at least `min_repeats` images.

    Not those that class descriptions or noun phrases gave, which repeat by their nature.
    """
    found = []
    for part, text in texts_of(image):
        repeats = image.repeats.get(text)
        if repeats is not None and repeats.normalized >= limits.min_repeats:
            detail = (
                f"in {repeats.exact:,} images as written, in {repeats.normalized:,} whatever its "
                "case and punctuation"
            )
            found.append(Finding(part, text, detail=detail, weight=float(repeats.normalized)))
    return found


def absence(image: AuditedImage, limits: Limits, /) -> list[Finding]:
    """Texts about what is not in the image."""
    return [Finding(part, text) for part, text in texts_of(image) if is_about_absence(text)]


def refusal(image: AuditedImage, limits: Limits, /) -> list[Finding]:
    """Texts that say that the image will not or cannot be described."""
    return [Finding(part, text) for part, text in texts_of(image) if is_refusal(text)]


def truncated(image: AuditedImage, limits: Limits, /) -> list[Finding]:
    """Texts that stop before their end."""
    return [Finding(part, text) for part, text in texts_of(image) if is_truncated(text)]


def unexplained(image: AuditedImage, limits: Limits, /) -> list[Finding]:
    """Descriptions that no box explains: the best score of all boxes is below `min_score`."""
    return [
        Finding("text", text, detail=f"best score {score:.3f}", weight=-score)
        for text, score in image.best_scores.items()
        if score < limits.min_score
    ]


def whole_image(image: AuditedImage, limits: Limits, /) -> list[Finding]:
    """Boxes that cover at least `max_area` of the image."""
    found = []
    for region in image.annotation.regions:
        x0, y0, x1, y1 = region.box_xyxy
        if (area := (x1 - x0) * (y1 - y0)) >= limits.max_area:
            detail = f"box over {area:.0%} of the image"
            found.append(Finding("region", region.description, region.box_xyxy, detail, area))
    return found


def shifted(image: AuditedImage, limits: Limits, /) -> list[Finding]:
    """All regions of an image where at least two seem to have the description of another one.

    A region does where its score is the best score of another description and not of its own, or
    where it is in the other half of the image than its description says. Boxes that changed places
    together with their scores, under descriptions without a place, are not found.
    """
    regions = image.annotation.regions
    wrong = [each for each in regions if _has_other_score(each, image.best_scores)]
    reason = "scores are those of other descriptions"
    if len(wrong) < 2:
        sides = [_is_where_it_says(each) for each in regions]
        wrong = [each for each, side in zip(regions, sides, strict=True) if side is False]
        reason = "boxes are not where their descriptions say"
        if len(wrong) < 2 or sides.count(True) >= len(wrong):
            return []
    detail = f"{len(wrong)} of {len(regions)} {reason}"
    return [
        Finding("region", each.description, each.box_xyxy, detail, float(len(wrong)))
        for each in regions
    ]


def changed_image(image: AuditedImage, limits: Limits, /) -> list[Finding]:
    """Images whose file is missing, or is not the one that was annotated."""
    now, then = image.file_hash, image.annotation.image_hash
    if now is None or then is None or now == then:
        return []
    detail = "the file was changed since" if now else "the file cannot be read"
    return [Finding("image", detail=detail)]


FAULTS: dict[str, Fault] = {
    "repeated": Fault("the same text in many images", repeated),
    "absence": Fault("texts about what is absent", absence),
    "refusal": Fault("refusals", refusal),
    "truncated": Fault("texts without their end", truncated),
    "unexplained": Fault("descriptions that no box explains", unexplained),
    "whole_image": Fault("boxes over the whole image", whole_image),
    "shifted": Fault("descriptions at each other's boxes", shifted),
    "changed_image": Fault("images that were changed since", changed_image, needs_images=True),
}


def find_faults(image: AuditedImage, limits: Limits) -> dict[str, list[Finding]]:
    """The findings of every fault; nothing where an image has none."""
    found = {name: fault.find(image, limits) for name, fault in FAULTS.items()}
    return {name: findings for name, findings in found.items() if findings}


def _has_other_score(region: AnnotatedRegion, best_scores: Mapping[str, float]) -> bool:
    own = best_scores.get(region.description)
    if own is None or abs(own - region.score) <= SAME_SCORE:
        return False
    return any(abs(score - region.score) <= SAME_SCORE for score in best_scores.values())


# "on the left side of the image", "in the upper right corner of the photo".
_PLACE = re.compile(
    r"\b(?:on|at|in|to|along|near)\sthe\s(?:far\s|very\s)?(?P<side>[a-z -]{1,30}?)"
    r"(?:\s(?:side|part|half|edge|corner|portion|third|hand\sside))?"
    r"\sof\sthe\s(?:image|photo|photograph|frame|scene|view)\b",
    re.IGNORECASE,
)
# Word -> (coordinate of a corner, whether the box is elsewhere if it is above a half).
_SIDES = {
    "left": (0, True),
    "right": (2, False),
    "top": (1, True),
    "upper": (1, True),
    "bottom": (3, False),
    "lower": (3, False),
}


def _is_where_it_says(region: AnnotatedRegion) -> bool | None:
    """False for a box wholly in the other half than its description says; None: it says nothing."""
    if (match := _PLACE.search(region.description)) is None:
        return None
    sides = [_SIDES[word] for word in re.split(r"[\s-]", match["side"].lower()) if word in _SIDES]
    if not sides:
        return None
    return not any(
        region.box_xyxy[coordinate] > 0.5 if above else region.box_xyxy[coordinate] < 0.5
        for coordinate, above in sides
    )
