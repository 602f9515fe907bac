"""What the rows of all stages, and the decisions on them, say of one image.

A decision is made by `annotate audit` or `annotate review` about the rows that counted then, and
counts for as long as they still do: a description that is made again is judged again.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grain_jax.boxes import Box
from grain_jax.data.annotation_rows import Row
from grain_jax.data.records import Caption

# Stages whose rows decide on the rows of other stages, and these.
DECIDING, JUDGED = ("audit", "review"), ("describe", "ground")
ACTIONS = ("drop", "retry", "accept", "kept_earlier", "kept_newer")
PARTS = ("image", "caption", "text", "region")


@dataclass(frozen=True)
class AnnotatedRegion:
    """A box with the description that was found in it."""

    box_xyxy: Box  # in [0, 1] of the image
    description: str
    score: float


@dataclass(frozen=True)
class Annotation:
    """What all stages found out about one image."""

    image: str  # path inside the images folder
    image_hash: str | None = None  # SHA-256 of the file; None where no stage could read it
    captions: tuple[str, ...] = ()
    primary_subject: str | None = None
    descriptions: tuple[str, ...] = ()
    regions: tuple[AnnotatedRegion, ...] = ()
    given_captions: tuple[Caption, ...] = ()  # of a file that `ground` was given
    label: str | None = None  # class that `ground` was given descriptions of
    errors: Mapping[str, str] = field(default_factory=dict)  # by stage
    dropped: str | None = None  # why the image as a whole is left out, with all that is above


@dataclass(frozen=True)
class Decision:
    """What is done with an image or a part of what is said of it."""

    fault: str  # the fault that it is about; "review" for what a person decided
    action: str  # of `ACTIONS`
    part: str = "image"  # of `PARTS`; "text" is a description with the regions it describes
    text: str = ""  # the caption or description
    box_xyxy: Box | None = None  # of a region


def merged(image: str, rows: Mapping[str, Row]) -> Annotation:
    """What the rows of the stages say of an image, with nothing left out."""
    found = {stage: row for stage, row in rows.items() if stage not in DECIDING}
    outputs = {name: value for row in found.values() for name, value in row.outputs.items()}
    described = found["describe"].outputs if "describe" in found else {}
    grounded = found["ground"].outputs if "ground" in found else {}
    given = zip(grounded.get("captions") or (), grounded.get("caption_sources") or (), strict=False)
    hashes = [row.image_hash for row in found.values() if row.image_hash is not None]
    regions = tuple(
        AnnotatedRegion(tuple(each["box_xyxy"]), each["description"], each["score"])
        for each in outputs.get("regions") or ()
    )
    return Annotation(
        image=image,
        image_hash=hashes[-1] if hashes else None,
        captions=tuple(described.get("captions") or ()),
        primary_subject=outputs.get("primary_subject"),
        descriptions=tuple(outputs.get("descriptions") or ()),
        regions=regions,
        given_captions=tuple(Caption(text, source) for text, source in given),
        label=grounded.get("label"),
        errors={stage: row.error for stage, row in found.items() if row.error is not None},
    )


def decided(annotation: Annotation, decisions: Iterable[Decision]) -> Annotation:
    """The annotation without what decisions drop. Texts and boxes are compared exactly."""
    drops = [each for each in decisions if each.action == "drop"]
    for each in drops:
        if each.part == "image":
            return dataclasses.replace(
                Annotation(annotation.image, annotation.image_hash), dropped=each.fault
            )
    captions = {each.text for each in drops if each.part == "caption"}
    texts = {each.text for each in drops if each.part == "text"}
    regions = {(each.text, each.box_xyxy) for each in drops if each.part == "region"}
    return dataclasses.replace(
        annotation,
        captions=tuple(text for text in annotation.captions if text not in captions),
        given_captions=tuple(
            each for each in annotation.given_captions if each.text not in captions
        ),
        descriptions=tuple(text for text in annotation.descriptions if text not in texts),
        regions=tuple(
            each
            for each in annotation.regions
            if each.description not in texts and (each.description, each.box_xyxy) not in regions
        ),
    )


def decision_values(decision: Decision) -> dict[str, Any]:
    """The decision as a value of the column `decisions`."""
    box = decision.box_xyxy
    return dataclasses.asdict(decision) | {"box_xyxy": None if box is None else list(box)}


def decisions_of(row: Row) -> list[Decision]:
    """The decisions of a row of `audit` or `review`."""
    return [
        Decision(**{**each, "box_xyxy": None if each["box_xyxy"] is None else (*each["box_xyxy"],)})
        for each in row.outputs.get("decisions") or ()
    ]
