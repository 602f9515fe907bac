"""The stage `ground`: boxes for the texts of each image, by a detector."""

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.annotation.backends.detector import (
    Detector,
    ImageGuidedDetector,
    ScoredBoxes,
)
from grain_jax.annotation.backends.placement import PreparedImage
from grain_jax.annotation.detecting import (
    BATCHES_AHEAD,
    Detected,
    Detecting,
    DetectorTime,
    Loaded,
)
from grain_jax.annotation.detection import Detections, Selection, official_texts, select
from grain_jax.annotation.examples import ExampleQueries
from grain_jax.annotation.images import load_image
from grain_jax.annotation.queries import TextQueries
from grain_jax.data.annotation_rows import Provenance, Row, sampling_text, texts_hash
from grain_jax.data.image_files import SkippedSample


@dataclass(frozen=True)
class GroundSettings:
    """How boxes are found and which are kept."""

    selection: Selection = field(default_factory=Selection)
    official_images: bool = False  # as the detector was opened
    batch_size: int = 8
    threads: int = min(8, os.cpu_count() or 1)  # that read and resize images


class Ground:
    """The stage, an `Annotator`.

    Args:
        images: folder of the images.
        queries: texts for each image, or example images to look for in all of them, which the
            detector must be able to (`ImageGuidedDetector`).
    """

    stage = "ground"

    def __init__(
        self,
        images: Path,
        detector: Detector,
        queries: TextQueries | ExampleQueries,
        settings: GroundSettings,
    ) -> None:
        if isinstance(queries, ExampleQueries) and not isinstance(detector, ImageGuidedDetector):
            raise ValueError(
                f"{detector.name!r} finds texts only; --example_images needs an OWLv2 or OWL-ViT."
            )
        self._images, self._detector, self._queries = images, detector, queries
        self._ground = settings
        self._input_hashes: dict[str, str] = {}  # of images on their way
        self._times: list[DetectorTime] = []  # of each call of `rows`
        self.shortened_texts = 0  # whose end the detector did not read
        self.settings = self._provenance().settings

    @property
    def images_ahead(self) -> int:
        """See `Annotator.images_ahead`: enough that batches of every size become full."""
        return 2 * BATCHES_AHEAD * self._ground.batch_size + self._ground.threads

    def input_hash(self, image: str) -> str | None:
        """Of what its texts are made of. Raises `SkippedSample` for an image without any."""
        queries = self._queries
        return None if isinstance(queries, ExampleQueries) else text_hash(queries, image)

    def rows(self, images: Iterator[str], /) -> Generator[Row, None, None]:
        """Rows in the order in which the detector is done with the images."""
        detecting = Detecting(
            images,
            texts=self._texts,
            load=self._load,
            detect=self._detect,
            batch_size=self._ground.batch_size,
            threads=self._ground.threads,
        )
        self._times.append(detecting.time)
        with closing(detecting):
            for detected in detecting:
                yield self._row(detected)

    def measured(self) -> dict[str, float]:
        """See `Annotator.measured`."""
        images = sum(time.images for time in self._times)
        return {
            "shortened texts": float(self.shortened_texts),
            "detectors": float(images > 0),  # that had an image; several where there are workers
            "detector images": float(images),
            "detector seconds": sum(time.seconds for time in self._times),
            "detector wall seconds": sum(time.wall_seconds for time in self._times),
        }

    def count_texts(self, images: Sequence[str]) -> int:
        """How many texts would be looked for in some images."""
        count = 0
        for image in images:
            with contextlib.suppress(SkippedSample):
                count += len(self._texts(image))
            self._input_hashes.pop(image, None)
        return count

    def _texts(self, image: str) -> Sequence[str]:
        if isinstance(self._queries, ExampleQueries):
            return self._queries.names
        self._input_hashes[image] = text_hash(self._queries, image)
        return self._queries.texts(image)

    def _load(self, image: str) -> tuple[PreparedImage, str]:
        loaded = load_image(image, self._images)
        return self._detector.prepare(loaded.pixels), loaded.image_hash

    def _detect(self, batch: Sequence[Loaded]) -> list[ScoredBoxes]:
        images = [loaded.prepared for loaded in batch if loaded.prepared is not None]
        if isinstance(self._queries, ExampleQueries):
            assert isinstance(self._detector, ImageGuidedDetector)
            return self._detector.detect_embeddings(images, self._queries.embeddings)
        return self._detector.detect(images, [self._asked(loaded.texts) for loaded in batch])

    def _asked(self, texts: Sequence[str]) -> list[str]:
        """What the detector is asked for; with official texts, more than the image has."""
        return official_texts(texts) if self._ground.selection.official_texts else list(texts)

    def _row(self, detected: Detected) -> Row:
        loaded = detected.loaded
        outputs: dict[str, Any] = {"phrases": list(loaded.texts)}
        if not isinstance(self._queries, ExampleQueries):
            outputs |= self._queries.kept(loaded.image)
        if detected.scored is not None:
            outputs |= self._outputs(loaded.texts, detected.scored)
        return Row(
            image=loaded.image,
            image_hash=loaded.image_hash,
            provenance=self._provenance(),
            outputs=outputs,
            error=detected.error,
            input_hash=self._input_hashes.pop(loaded.image, None),
        )

    def _outputs(self, texts: Sequence[str], scored: ScoredBoxes) -> dict[str, Any]:
        rule = self._ground.selection
        asked = self._asked(texts)
        if not isinstance(self._queries, ExampleQueries):
            self.shortened_texts += sum(not self._detector.reads_whole(text) for text in asked)
        kept = select(scored, rule, num_texts=len(texts))
        best = np.nan_to_num(scored.scores).max(axis=0, initial=0.0)[: len(texts)]
        # Of texts behind the tenth, which the official code does not look for, nothing is known.
        scores = [*best.astype(float).tolist(), *[0.0] * (len(texts) - len(best))]
        return {"regions": _regions(kept, asked), "best_scores": scores}

    def _provenance(self) -> Provenance:
        detector, settings = self._detector, self._ground
        # "queries" is read by `run.select`.
        sampling = asdict(settings.selection) | {
            "dtype": detector.dtype,
            "official_images": settings.official_images,
            "queries": "example images"
            if isinstance(self._queries, ExampleQueries)
            else self._queries.source,
        }
        revision = f"@{detector.revision}" if detector.revision else ""
        return Provenance(
            model=f"{detector.name.partition('@')[0]}{revision}" if revision else detector.name,
            prompt_hash=self._queries.hash if isinstance(self._queries, ExampleQueries) else "",
            sampling=sampling_text(sampling),
        )


def text_hash(queries: TextQueries, image: str) -> str:
    """`Row.input_hash` of the rows of a stage with these queries. Raises `SkippedSample`."""
    return texts_hash(queries.inputs(image))


def _regions(kept: Detections, texts: Sequence[str]) -> list[dict[str, Any]]:
    boxes = kept.boxes_xyxy.astype(np.float64).tolist()
    return [
        {"box_xyxy": box, "description": texts[text], "score": score}
        for box, text, score in zip(
            boxes, kept.text_index.tolist(), kept.scores.astype(float).tolist(), strict=True
        )
    ]
