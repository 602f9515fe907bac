"""What the detectors of faults see of the images in a folder of annotations."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from grain_jax.annotation.audit.counts import TextCounts
from grain_jax.annotation.audit.faults import AuditedImage
from grain_jax.annotation.detection import OFFICIAL_TEXTS
from grain_jax.data.annotation_files import Annotations
from grain_jax.data.annotation_merge import merged
from grain_jax.data.annotation_rows import Row, content_hash
from grain_jax.data.checks import read_image_file
from grain_jax.data.image_files import SkippedSample

FileHash = Callable[[str], str | None]


def count_texts(annotations: Annotations) -> TextCounts:
    """In how many images each text of `describe` stands, of the rows that count."""

    def texts() -> Iterator[tuple[str, ...]]:
        for _, outputs in annotations.outputs("describe", ("captions", "descriptions")):
            yield (*(outputs["captions"] or ()), *(outputs["descriptions"] or ()))

    return TextCounts(texts())


def hash_of_files(folder: Path | None) -> FileHash:
    """The SHA-256 of each image in a folder, "" where it cannot be read; None for no folder."""

    def of(image: str) -> str | None:
        if folder is None:
            return None
        try:
            return content_hash(read_image_file(image, folder))
        except SkippedSample:
            return ""

    return of


def audited(
    image: str, rows: Mapping[str, Row], counts: TextCounts, file_hash: FileHash
) -> AuditedImage:
    """What is known of an image by some rows of its stages."""
    annotation = merged(image, rows)
    texts = (*annotation.captions, *annotation.descriptions)
    return AuditedImage(
        annotation=annotation,
        best_scores=best_scores(rows.get("ground")),
        repeats={text: counts(text) for text in texts},
        file_hash=file_hash(image),
    )


def best_scores(row: Row | None) -> dict[str, float]:
    """The best score of each text of a row of `ground` that the detector was asked for."""
    if row is None or row.error is not None:
        return {}
    phrases, scores = row.outputs.get("phrases") or (), row.outputs.get("best_scores") or ()
    official = json.loads(row.provenance.sampling).get("official_texts", False)
    asked = OFFICIAL_TEXTS if official else len(phrases)
    return dict(list(zip(phrases, scores, strict=False))[:asked])
