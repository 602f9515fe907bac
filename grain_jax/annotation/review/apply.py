"""What a person decided on the page, read from its file and written as rows of the stage `review`.

A decision is about what the page showed. Where that was made anew since, it is counted and not
applied; a file about another folder is refused as a whole.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grain_jax.annotation.review.images import (
    REVIEW,
    region_decision,
    rows_digest,
    verdict_decisions,
)
from grain_jax.annotation.review.page import FORMAT, VERSION
from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_files import Annotations, read_annotations
from grain_jax.data.annotation_merge import (
    JUDGED,
    AnnotatedRegion,
    Decision,
    decision_values,
    decisions_of,
)
from grain_jax.data.annotation_rows import Provenance, Row

MAX_BYTES = 2**30


@dataclass(frozen=True)
class ReviewedDecision:
    """What was decided of one image."""

    image: str
    rows: str  # `rows_digest` of what was shown
    verdict: str  # "accept", "reject" or ""
    rejected: tuple[AnnotatedRegion, ...]


@dataclass
class ApplyReport:
    """What became of a file of decisions."""

    accepted: int = 0
    rejected: int = 0
    regions: int = 0  # rejected
    written: int = 0  # images whose decisions changed
    outdated: int = 0  # images that were described or grounded anew since the page was made


def read_decisions(path: Path) -> list[ReviewedDecision]:
    """The decisions in a file that the page wrote. Raises ValueError, which names the field."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f'{path} has no "format": "{FORMAT}"; expected a file that the page of `annotate '
            "review` wrote."
        )
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {content.get('version')!r}, and this grain_jax reads version "
            f"{VERSION}; make the page anew."
        )
    decisions = content.get("decisions")
    if not isinstance(decisions, list):
        raise ValueError(f"{path}: decisions should be a list.")
    found = [_decision(each, f"{path}: decisions[{i}]") for i, each in enumerate(decisions)]
    images = set[str]()
    for place, each in enumerate(found):
        if each.image in images:
            raise ValueError(f"{path}: decisions[{place}] is the second one of {each.image!r}.")
        images.add(each.image)
    return found


def apply_decisions(
    folder: Path, path: Path, *, note: Callable[[str], None] = lambda text: None
) -> ApplyReport:
    """Writes a row for each image whose decisions change; applied twice, nothing is written.

    Args:
        note: called with a text where nothing stops another process that writes.

    Raises ValueError for a file that cannot be read or is about another folder, and what
    `AnnotationWriter` raises.
    """
    decisions = read_decisions(path)
    _check_folder(read_annotations(folder), decisions, path)  # before anything is written
    report = ApplyReport()
    with AnnotationWriter(folder, REVIEW, note=note) as writer:
        annotations = read_annotations(folder)
        places = {image: place for place, image in enumerate(annotations.images)}
        for each in decisions:
            index = places[each.image]
            if rows_digest(annotations.rows(index)) != each.rows:
                report.outdated += 1
                continue
            row = _row(annotations, index, each)
            report.accepted += each.verdict == "accept"
            report.rejected += each.verdict == "reject"
            report.regions += len(each.rejected)
            if row is not None:
                writer.append(row)
                report.written += 1
    return report


def _check_folder(annotations: Annotations, decisions: list[ReviewedDecision], path: Path) -> None:
    """Raises ValueError for decisions that were not made about this folder."""
    places = {image: place for place, image in enumerate(annotations.images)}
    for each in decisions:
        if each.image not in places:
            raise ValueError(
                f"{path} decides on {each.image!r}, which {annotations.folder} has no row for, so "
                "it is about another folder; nothing was applied. Give the folder whose page it is "
                "from."
            )
    if decisions and not any(
        rows_digest(annotations.rows(places[each.image])) == each.rows for each in decisions
    ):
        raise ValueError(
            f"{path} is about other annotations than those in {annotations.folder}: of another "
            "folder, or all made anew since. Nothing was applied; make the page anew."
        )


def _row(annotations: Annotations, index: int, decided: ReviewedDecision) -> Row | None:
    """None where the same is decided already. Raises ValueError for a region that is not there."""
    known = set(annotations.undecided(index).regions)
    decisions = verdict_decisions(decided.verdict)
    for region in decided.rejected:
        if not any(region_decision(each) == region_decision(region) for each in known):
            raise ValueError(f"{decided.image}: it has no region {region.description!r} there.")
        decisions.append(region_decision(region))
    before = annotations.decided_row(REVIEW, index)
    if _same(annotations, index, before, decisions):
        return None
    outputs = {
        "decisions": [decision_values(each) for each in decisions],
        **{f"judged_{stage}": annotations.latest(index)[stage] for stage in JUDGED},
    }
    return Row(decided.image, None, Provenance("a person"), outputs)


def _same(
    annotations: Annotations, index: int, before: Row | None, decisions: list[Decision]
) -> bool:
    if before is None or not annotations.is_current(before, index):
        return not decisions
    return set(decisions_of(before)) == set(decisions)


def _decision(value: Any, where: str) -> ReviewedDecision:
    if not isinstance(value, dict):
        raise ValueError(f"{where} should be an object.")
    for name in ("image", "rows"):
        if not isinstance(value.get(name), str):
            raise ValueError(f"{where}.{name} should be a text.")
    verdict = value.get("verdict")
    if verdict not in (None, "accept", "reject"):
        raise ValueError(f'{where}.verdict is {verdict!r}; expected "accept", "reject" or null.')
    regions = value.get("rejected_regions")
    if not isinstance(regions, list):
        raise ValueError(f"{where}.rejected_regions should be a list.")
    found = tuple(
        _region(each, f"{where}.rejected_regions[{place}]") for place, each in enumerate(regions)
    )
    return ReviewedDecision(value["image"], value["rows"], verdict or "", found)


def _region(value: Any, where: str) -> AnnotatedRegion:
    if not isinstance(value, dict) or not isinstance(value.get("description"), str):
        raise ValueError(f"{where}.description should be a text.")
    box = value.get("box_xyxy")
    if not isinstance(box, list) or [type(each) in (int, float) for each in box] != [True] * 4:
        raise ValueError(f"{where}.box_xyxy should be four numbers.")
    x0, y0, x1, y1 = map(float, box)
    return AnnotatedRegion((x0, y0, x1, y1), value["description"], 0.0)
