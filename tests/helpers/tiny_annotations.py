"""Small folders of annotations, as the stages write them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_files import read_annotations
from grain_jax.data.annotation_merge import Annotation
from grain_jax.data.annotation_rows import Provenance, Row, texts_hash

BOX = (0.1, 0.2, 0.5, 0.6)


def described(
    image: str,
    captions: Sequence[str] = ("A bird.",),
    descriptions: Sequence[str] = ("a red crest",),
    image_hash: str = "1" * 64,
) -> Row:
    """A row of `describe`."""
    outputs = {
        "captions": list(captions),
        "primary_subject": "bird",
        "descriptions": list(descriptions),
    }
    return Row(image, image_hash, Provenance("m", "p"), outputs)


def grounded(
    image: str,
    scores: Mapping[str, float],
    regions: Sequence[tuple[str, tuple[float, ...], float]] = (),
    *,
    input_hash: str | None = None,
    sampling: str = "{}",
    image_hash: str = "1" * 64,
) -> Row:
    """A row of `ground`; as if the texts of `scores` were the descriptions, in their order."""
    outputs: dict[str, Any] = {
        "phrases": list(scores),
        "best_scores": list(scores.values()),
        "regions": [
            {"box_xyxy": list(box), "description": text, "score": score}
            for text, box, score in regions
        ],
    }
    origin = Provenance("owl", sampling=sampling)
    input_hash = texts_hash(list(scores)) if input_hash is None else input_hash
    return Row(image, image_hash, origin, outputs, input_hash=input_hash)


def write_rows(folder: Path, stage: str, *rows: Row) -> Path:
    """Appends rows to a stage."""
    with AnnotationWriter(folder, stage) as writer:
        for row in rows:
            writer.append(row)
    return folder


def by_image(folder: Path) -> dict[str, Annotation]:
    """What is said of each image."""
    return {each.image: each for each in read_annotations(folder)}
