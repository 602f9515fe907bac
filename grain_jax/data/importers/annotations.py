"""Annotations that `python -m grain_jax.annotate` wrote: captions, and descriptions with boxes.

`--input` is the folder of annotations, `--images` the folder that was annotated. Captions are those
of the file that `ground` was given and those that `describe` wrote; an image with neither, of which
`ground` knows the class, has its name in `--template`. An image without regions is kept for its
caption; one without a caption is dropped as such, and so is one whose file has been replaced since.
What `annotate audit` and `annotate review` dropped is left out. `--holdout` sets a fraction of the
images aside, chosen by a hash of their paths.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from grain_jax.data.annotation_files import read_annotations
from grain_jax.data.annotation_merge import DECIDING, Annotation
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers.columns import check_template
from grain_jax.data.importers.held_out import part_of
from grain_jax.data.importers.item import ImportedImage, ImportedRegion
from grain_jax.data.records import Caption


class AnnotationRows:
    """One image for each that was annotated, in the order of their paths. An `Importer`."""

    def __init__(
        self,
        path: Path,
        *,
        template: str | None = None,
        holdout: float | None = None,
        held_out: bool = False,
    ) -> None:
        """Raises ValueError for another folder or a damaged one, and without pyarrow."""
        if not path.is_dir():
            raise ValueError(
                f"--input={path} is not a folder; expected one that `python -m grain_jax.annotate` "
                "wrote."
            )
        self._template = check_template(template)
        try:
            self._annotations = read_annotations(path)
        except ImportError as error:
            raise ValueError(str(error)) from None
        images = list(self._annotations.images)
        self._places = part_of(images, holdout, held_out=held_out)
        self.notes: list[str] = []
        if outdated := self._annotations.num_outdated():
            self.notes.append(
                f"{outdated:,} images have decisions of `annotate audit` or `review` about rows "
                "that were made anew since; these decisions do not count. Decide again."
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> ImportedImage:
        place = self._places[index]
        found = self._annotations[place]
        if found.dropped is not None:
            by = "review" if found.dropped == "review" else f"audit ({found.dropped})"
            raise SkippedSample(f"rejected by {by}", f"{found.image}: rejected by {by}")
        item = imported_annotation(found)
        captions = item.captions
        if not captions and found.label is not None:
            captions = (Caption(self._template.format(found.label)),)
        hashes = tuple(
            row.image_hash
            for stage, row in self._annotations.rows(place).items()
            if stage not in DECIDING and row.image_hash is not None and any(row.outputs.values())
        )
        return dataclasses.replace(item, captions=captions, image_hashes=hashes)

    def fingerprint(self) -> dict[str, object]:
        folder = str(self._annotations.folder.resolve())
        return {"path": folder, "images": len(self), "sha256": self.checksum(0, len(self))}

    def checksum(self, start: int, stop: int) -> str:
        digest = hashlib.sha256(self._template.encode())
        for place in self._places[start:stop]:
            digest.update(json.dumps(self._annotations.identity(place)).encode())
        return digest.hexdigest()


def imported_annotation(found: Annotation) -> ImportedImage:
    """What all stages found out about an image; its id is its path."""
    return ImportedImage(
        id=found.image,
        image=found.image,
        captions=found.given_captions
        + tuple(Caption(text, "synthetic") for text in found.captions),
        label=found.label,
        regions=tuple(
            ImportedRegion(region.box_xyxy, region.description, region.score)
            for region in found.regions
        ),
    )
