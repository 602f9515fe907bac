"""Annotations that `python -m grain_jax.annotate` wrote: captions, and descriptions with boxes.

`--input` is the folder of annotations, `--images` the folder that was annotated. An image without
regions is kept for its caption; one that was not described has no caption, and is dropped as such.
What `annotate audit` and `annotate review` dropped is left out.
"""

import hashlib
import json
from pathlib import Path

from grain_jax.data.annotation_files import read_annotations
from grain_jax.data.annotation_merge import Annotation
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers.item import ImportedImage, ImportedRegion
from grain_jax.data.records import Caption


class AnnotationRows:
    """One image for each that was annotated, in the order of their paths. An `Importer`."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for another folder or a damaged one, and without pyarrow."""
        if not path.is_dir():
            raise ValueError(
                f"--input={path} is not a folder; expected one that `python -m grain_jax.annotate` "
                "wrote."
            )
        try:
            self._annotations = read_annotations(path)
        except ImportError as error:
            raise ValueError(str(error)) from None
        self.notes: list[str] = []
        if outdated := self._annotations.num_outdated():
            self.notes.append(
                f"{outdated:,} images have decisions of `annotate audit` or `review` about rows "
                "that were made anew since; these decisions do not count. Decide again."
            )

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int, /) -> ImportedImage:
        found = self._annotations[index]
        if found.dropped is not None:
            by = "review" if found.dropped == "review" else f"audit ({found.dropped})"
            raise SkippedSample(f"rejected by {by}", f"{found.image}: rejected by {by}")
        return imported_annotation(found)

    def fingerprint(self) -> dict[str, object]:
        folder = str(self._annotations.folder.resolve())
        return {"path": folder, "images": len(self), "sha256": self.checksum(0, len(self))}

    def checksum(self, start: int, stop: int) -> str:
        digest = hashlib.sha256()
        for index in range(start, stop):
            digest.update(json.dumps(self._annotations.identity(index)).encode())
        return digest.hexdigest()


def imported_annotation(found: Annotation) -> ImportedImage:
    """What all stages found out about an image; its id is its path."""
    return ImportedImage(
        id=found.image,
        image=found.image,
        captions=tuple(Caption(text, "synthetic") for text in found.captions),
        regions=tuple(
            ImportedRegion(region.box_xyxy, region.description, region.score)
            for region in found.regions
        ),
    )
