"""What a model says of an image, as a card, CSV and JSON."""

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
from grain_jax.data.checks import read_image_bytes
from grain_jax.data.transforms import decode_image
from grain_jax.disk import whole_file, write_whole
from grain_jax.inference.results import Classification, Grounding, SeenText
from grain_jax.visualize.card import (
    NOT_FOUND,
    WHOLE,
    CardLabel,
    CardSection,
    CardText,
    draw_card,
)

COLUMNS = (
    "file",
    "asked",  # "label" or "phrase"
    "rank",
    "text",
    "score",
    "probability",
    "seen",  # the text whose region follows, if it has one
    "cosine",
    *("x0", "y0", "x1", "y1"),
    "card",
)
# Of file names that are not UTF-8: `\\udcff` for the byte ff, which JSON reads back as the name.
ESCAPED = "backslashreplace"


@dataclass(frozen=True)
class Answer:
    """What the model says about one image."""

    target: Target
    labels: Classification | None
    phrases: Grounding | None
    boxes_xyxy: np.ndarray | None  # [Q, 4] of all regions, in pixels
    view_xyxy: np.ndarray  # [4], the part of the image that the model saw


@dataclass
class Outcome:
    """How far it came."""

    answers: list[Answer] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # what was given, and why not
    interrupted: bool = False


def draw_answer(answer: Answer, out: Path, *, min_cosine: float) -> None:
    """The card: labels, the phrases that were asked, and the descriptions of the first label."""
    file = answer.target.file
    image = decode_image(read_image_bytes(file, name=file.name))
    height, width = image.shape[:2]
    scale = np.array([width, height, width, height], np.float32)
    labels = [] if answer.labels is None else answer.labels.ranked
    phrases = () if answer.phrases is None else answer.phrases.phrases
    described = tuple(one for one in labels[0].seen if one not in phrases) if labels else ()
    queries = {one.query for one in (*phrases, *described) if has_box(one, min_cosine)}
    others = [
        box / scale
        for query, box in enumerate(() if answer.boxes_xyxy is None else answer.boxes_xyxy)
        if query not in queries
    ]
    sections = [
        CardSection(
            heading, tuple(_card_text(one, scale, min_cosine) for one in dict.fromkeys(seen))
        )
        for heading, seen in (
            ("phrase", phrases),
            (f"description of {labels[0].label!r}" if labels else "", described),
        )
    ]
    path = out / answer.target.card
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as written:
        draw_card(
            image,
            title=answer.target.file.name,
            labels=[
                CardLabel(
                    one.label,
                    one.probability,
                    one.score,
                    (one.seen[0].text, one.seen[0].cosine) if one.seen else None,
                )
                for one in labels
            ],
            num_labels=0 if answer.labels is None else answer.labels.num_labels,
            sections=sections,
            others_xyxy=np.array(others, np.float32).reshape(-1, 4),
            view_xyxy=answer.view_xyxy / scale,
            path=written,
        )


def _card_text(seen: SeenText, scale: np.ndarray, min_cosine: float) -> CardText:
    if seen.query is None:
        return CardText(seen.text, seen.cosine, why=WHOLE)
    if seen.box_xyxy is not None and has_box(seen, min_cosine):
        return CardText(seen.text, seen.cosine, np.array(seen.box_xyxy, np.float32) / scale)
    return CardText(seen.text, seen.cosine, why="" if seen.box_xyxy is None else NOT_FOUND)


def has_box(seen: SeenText, min_cosine: float) -> bool:
    """Whether it was seen in a region, and surely enough."""
    has_region = seen.query is not None and seen.box_xyxy is not None
    return has_region and seen.cosine >= min_cosine


def write_csv(path: Path, answers: Sequence[Answer], *, min_cosine: float, cards: bool) -> None:
    """A line for every label and phrase of each image."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, COLUMNS, restval="")
    writer.writeheader()
    for answer in answers:
        card = str(answer.target.card) if cards else ""
        for row in _rows(answer, min_cosine):
            writer.writerow({"file": str(answer.target.file), "card": card} | row)
    write_whole(path, lines.getvalue(), errors=ESCAPED)


def write_json(
    path: Path, outcome: Outcome, *, asked: Mapping[str, Any], min_cosine: float, cards: bool
) -> None:
    """All answers with all boxes, what was skipped, and `asked`, which led to them."""
    report = {
        **asked,
        "images": [_entry(answer, min_cosine, cards=cards) for answer in outcome.answers],
        "skipped": [{"file": name, "reason": reason} for name, reason in outcome.skipped],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_whole(path, text + "\n", errors=ESCAPED)


def _rows(answer: Answer, min_cosine: float) -> Iterator[dict[str, Any]]:
    """Lines of the table; a label comes with the description that is seen best."""
    for rank, one in enumerate(answer.labels.ranked if answer.labels else (), start=1):
        row = {"asked": "label", "rank": rank, "text": one.label, "score": f"{one.score:.6f}"}
        row["probability"] = f"{one.probability:.6f}"
        yield row | (_seen_row(one.seen[0], min_cosine) if one.seen else {})
    for seen in answer.phrases.phrases if answer.phrases else ():
        row = {"asked": "phrase", "text": seen.text, "score": f"{seen.cosine:.6f}"}
        yield row | _seen_row(seen, min_cosine)


def _seen_row(seen: SeenText, min_cosine: float) -> dict[str, str]:
    row = {"seen": seen.text, "cosine": f"{seen.cosine:.6f}"}
    if seen.box_xyxy is None or not has_box(seen, min_cosine):
        return row
    corners = zip(("x0", "y0", "x1", "y1"), seen.box_xyxy, strict=True)
    return row | {name: f"{value:.1f}" for name, value in corners}


def _seen_entry(seen: SeenText, min_cosine: float) -> dict[str, Any]:
    found = {} if has_box(seen, min_cosine) else {"box_xyxy": None}
    return dataclasses.asdict(seen) | found


def _entry(answer: Answer, min_cosine: float, *, cards: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": str(answer.target.file)}
    for result in (answer.labels, answer.phrases):
        if result is not None:
            entry |= {"height": result.height, "width": result.width}
    if cards:
        entry["card"] = str(answer.target.card)
    if answer.labels is not None:
        entry["labels"] = [
            dataclasses.asdict(one) | {"seen": [_seen_entry(text, min_cosine) for text in one.seen]}
            for one in answer.labels.ranked
        ]
    if answer.phrases is not None:
        entry["phrases"] = [_seen_entry(one, min_cosine) for one in answer.phrases.phrases]
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
