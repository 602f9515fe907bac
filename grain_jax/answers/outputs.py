"""What a model says of an image, as a visualization, CSV and JSON."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.answers.files import Target
from grain_jax.data.image_files import read_image_bytes
from grain_jax.data.transforms import decode_image
from grain_jax.disk import whole_file, write_whole
from grain_jax.inference.results import (
    NAME,
    Classification,
    GroundedText,
    Grounding,
    RankedLabel,
)
from grain_jax.visualize.prediction import (
    NOT_FOUND,
    WHOLE,
    LabelRow,
    TextRow,
    TextSection,
    draw_prediction,
)

COLUMNS = (
    "file",
    "kind",  # "label" or "phrase"
    "rank",
    "text",
    "score",
    "probability",
    "grounded",  # the text whose region follows, if it has one
    "grounded_kind",  # of a label's: "description", or "name" where it has none
    "cosine",
    *("x0", "y0", "x1", "y1"),
    "visualization",
)
# Of labels, where examples were given.
DEFINED = ("defined_by", "num_examples")
# Of labels, where a model is calibrated.
CALIBRATED = ("in_set", "none_of_these", "num_seen")
# Of file names that are not UTF-8: `\\udcff` for the byte ff, which JSON reads back as the name.
ESCAPED = "backslashreplace"


@dataclass(frozen=True)
class Answer:
    """What the model says about one image."""

    target: Target
    labels: Classification | None
    phrases: Grounding | None
    boxes_xyxy: np.ndarray | None  # [Q, 4] of all regions, in pixels
    crop_xyxy: np.ndarray  # [4], the part of the image that the model saw


@dataclass
class Outcome:
    """How far it came."""

    answers: list[Answer] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # what was given, and why not
    interrupted: bool = False


def draw_answer(answer: Answer, out: Path, *, score_threshold: float) -> None:
    """The visualization: labels, the phrases, and the descriptions of the first label."""
    file = answer.target.file
    image = decode_image(read_image_bytes(file, name=file.name))
    height, width = image.shape[:2]
    scale = np.array([width, height, width, height], np.float32)
    labels = [] if answer.labels is None else answer.labels.ranked
    phrases = () if answer.phrases is None else answer.phrases.phrases
    described = tuple(one for one in labels[0].grounded if one not in phrases) if labels else ()
    queries = {one.query for one in (*phrases, *described) if has_box(one, score_threshold)}
    others = [
        box / scale
        for query, box in enumerate(() if answer.boxes_xyxy is None else answer.boxes_xyxy)
        if query not in queries
    ]
    sections = [
        TextSection(
            heading, tuple(_text_row(one, scale, score_threshold) for one in dict.fromkeys(seen))
        )
        for heading, seen in (
            ("phrase", phrases),
            (f"{labels[0].grounded_kind} of {labels[0].label!r}" if labels else "", described),
        )
    ]
    path = out / answer.target.visualization
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as written:
        draw_prediction(
            image,
            title=_title(answer),
            labels=[
                LabelRow(
                    one.label,
                    one.probability,
                    one.score,
                    (one.grounded[0].text, one.grounded[0].cosine) if one.grounded else None,
                    named=one.grounded_kind == NAME,
                )
                for one in labels
            ],
            num_labels=0 if answer.labels is None else answer.labels.num_labels,
            sections=sections,
            others_xyxy=np.array(others, np.float32).reshape(-1, 4),
            crop_xyxy=answer.crop_xyxy / scale,
            path=written,
        )


def _title(answer: Answer) -> str:
    found = answer.labels.calibrated if answer.labels else None
    none = found is not None and found.none_of_these
    return f"{answer.target.file.name}: none of these" if none else answer.target.file.name


def _text_row(seen: GroundedText, scale: np.ndarray, score_threshold: float) -> TextRow:
    if seen.query is None:
        return TextRow(seen.text, seen.cosine, why=WHOLE)
    if seen.box_xyxy is not None and has_box(seen, score_threshold):
        return TextRow(seen.text, seen.cosine, np.array(seen.box_xyxy, np.float32) / scale)
    return TextRow(seen.text, seen.cosine, why="" if seen.box_xyxy is None else NOT_FOUND)


def has_box(seen: GroundedText, score_threshold: float) -> bool:
    """Whether it was seen in a region, and surely enough."""
    has_region = seen.query is not None and seen.box_xyxy is not None
    return has_region and seen.cosine >= score_threshold


def write_csv(
    path: Path, answers: Sequence[Answer], *, score_threshold: float, visualizations: bool
) -> None:
    """A line for every label and phrase of each image."""
    lines = io.StringIO(newline="")
    calibrated = any(answer.labels and answer.labels.calibrated for answer in answers)
    defined = any(
        one.defined_by for answer in answers if answer.labels for one in answer.labels.ranked
    )
    columns = COLUMNS + DEFINED * defined + CALIBRATED * calibrated
    writer = csv.DictWriter(lines, columns, restval="")
    writer.writeheader()
    for answer in answers:
        visualization = str(answer.target.visualization) if visualizations else ""
        for row in _rows(answer, score_threshold):
            writer.writerow({"file": str(answer.target.file), "visualization": visualization} | row)
    write_whole(path, lines.getvalue(), errors=ESCAPED)


def write_json(
    path: Path,
    outcome: Outcome,
    *,
    request: Mapping[str, Any],
    score_threshold: float,
    visualizations: bool,
) -> None:
    """All answers with all boxes, what was skipped, and the `request` that led to them."""
    report = {
        **request,
        "images": [
            _entry(answer, score_threshold, visualizations=visualizations)
            for answer in outcome.answers
        ],
        "skipped": [{"file": name, "reason": reason} for name, reason in outcome.skipped],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_whole(path, text + "\n", errors=ESCAPED)


def _rows(answer: Answer, score_threshold: float) -> Iterator[dict[str, Any]]:
    """Lines of the table; a label comes with the best-matching description, or its
    name where it has none."""
    for rank, one in enumerate(answer.labels.ranked if answer.labels else (), start=1):
        row = {"kind": "label", "rank": rank, "text": one.label, "score": f"{one.score:.6f}"}
        row["probability"] = f"{one.probability:.6f}"
        if one.defined_by is not None:
            row |= {"defined_by": one.defined_by, "num_examples": str(one.num_examples)}
        if answer.labels is not None:
            row |= _calibrated_row(answer.labels, one)
        if one.grounded and one.grounded_kind is not None:
            row |= _grounded_row(one.grounded[0], score_threshold)
            row["grounded_kind"] = one.grounded_kind
        yield row
    for seen in answer.phrases.phrases if answer.phrases else ():
        row = {"kind": "phrase", "text": seen.text, "score": f"{seen.cosine:.6f}"}
        yield row | _grounded_row(seen, score_threshold)


def _calibrated_row(labels: Classification, one: RankedLabel) -> dict[str, str]:
    """The cells of `CALIBRATED`, "" for what was not fitted; {} where nothing was."""
    if (found := labels.calibrated) is None:
        return {}
    row = {"num_seen": "" if one.num_seen is None else str(one.num_seen)}
    if found.label_set is not None:
        row["in_set"] = str(int(one.label in found.label_set))
    if found.none_of_these is not None:
        row["none_of_these"] = str(int(found.none_of_these))
    return row


def _grounded_row(seen: GroundedText, score_threshold: float) -> dict[str, str]:
    row = {"grounded": seen.text, "cosine": f"{seen.cosine:.6f}"}
    if seen.box_xyxy is None or not has_box(seen, score_threshold):
        return row
    corners = zip(("x0", "y0", "x1", "y1"), seen.box_xyxy, strict=True)
    return row | {name: f"{value:.1f}" for name, value in corners}


def _grounded_entry(seen: GroundedText, score_threshold: float) -> dict[str, Any]:
    found = {} if has_box(seen, score_threshold) else {"box_xyxy": None}
    return dataclasses.asdict(seen) | found


def _entry(answer: Answer, score_threshold: float, *, visualizations: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": str(answer.target.file)}
    for result in (answer.labels, answer.phrases):
        if result is not None:
            entry |= {"height": result.height, "width": result.width}
    if visualizations:
        entry["visualization"] = str(answer.target.visualization)
    if answer.labels is not None:
        entry["labels"] = [
            {name: value for name, value in vars(one).items() if value is not None}
            | {"grounded": [_grounded_entry(text, score_threshold) for text in one.grounded]}
            for one in answer.labels.ranked
        ]
        if (found := answer.labels.calibrated) is not None:
            entry["calibrated"] = {**vars(found), "none_of_these": found.none_of_these}
    if answer.phrases is not None:
        entry["phrases"] = [_grounded_entry(one, score_threshold) for one in answer.phrases.phrases]
    if answer.boxes_xyxy is not None:
        entry["boxes_xyxy"] = answer.boxes_xyxy.tolist()
    return _rounded(entry)


def _rounded(value: Any) -> Any:
    """Numbers of float32 with the six digits that they have."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _rounded(part) for key, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
    return value
