"""The input, output and options of one split to build, and the checks of them."""

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from grain_jax.data.decoded_cache import DecodedCache
from grain_jax.data.importers import IMPORTERS, ImagesFolder, Importer
from grain_jax.data.importers.input_files import is_pattern
from grain_jax.data.merging import MergeBy, MergedImporter

OnError = Literal["raise", "skip"]  # at an `InvalidRecordError`
GIVEN_BY_BUILD = ("split", "held_out")  # keywords of importers that are not options of a user


@dataclass(frozen=True)
class DatasetBuildSpec:
    """The input, output and options of one split to build."""

    format: str  # a name in `IMPORTERS`
    input: Path
    images: Path | None  # None where the images are not files in a folder of their own
    out: Path
    split: str = "train"
    max_image_side: int = 0  # 0: images are stored as they are
    on_error: str = "raise"  # one of `OnError`
    captions_from_regions: bool = False  # for images without a caption of their own
    options: Mapping[str, Any] = field(default_factory=dict)  # of the importer, those given
    merge_annotations: Path | None = None  # captions and regions to add: JSON lines, or a folder
    merge_by: str | None = None  # one of `MergeBy`; None: the id
    decoded_cache: DecodedCache | None = None  # store pixels of this size, not encoded images
    held_out: bool = False  # build the part of the input that the option "holdout" sets aside

    def __post_init__(self) -> None:
        if self.on_error == "stop":  # the name before version 0.2
            object.__setattr__(self, "on_error", "raise")

    @property
    def images_folder(self) -> Path | None:
        """The folder that paths of images start from; None where there are none."""
        return self.input if images_folder(self.format) == "input" else self.images

    def validate(self) -> None:
        """Raises ValueError for an option that is invalid, named as on the command line."""
        if self.format not in IMPORTERS:
            raise ValueError(f"Unknown --from={self.format}; choose one of {sorted(IMPORTERS)}.")
        if not self.input.exists() and not is_pattern(self.input):
            raise ValueError(f"--input={self.input} does not exist.")
        self._check_options()
        self._check_images()
        self._check_merging()
        if os.path.lexists(self.out) and not self.out.is_dir():
            raise ValueError(
                f"--output={self.out} is not a folder; give a new one, or that of an earlier build."
            )
        try:
            os.fspath(self.out).encode()
        except UnicodeEncodeError:  # array_record cannot open files there
            raise ValueError(
                f"--output={self.out!r} is not UTF-8; give a folder whose whole path is UTF-8."
            ) from None
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.split) or self.split == "all":
            raise ValueError(
                f"--split={self.split!r} must be lower-case letters, digits and '_', not 'all'."
            )
        if self.max_image_side < 0:
            raise ValueError("--max_image_side must be a number of pixels, or 0 for any.")
        if self.max_image_side and self.decoded_cache:
            raise ValueError(
                f"--max_image_side={self.max_image_side} and --decoded_cache={self.decoded_cache} "
                "both say how large images are stored; give one of them."
            )
        if self.on_error not in get_args(OnError):
            raise ValueError(f"--on-error must be 'raise' or 'skip', given {self.on_error!r}.")

    def _check_options(self) -> None:
        for name in self.options:
            if name not in importer_options(self.format):
                taking = [other for other in IMPORTERS if name in importer_options(other)]
                raise ValueError(
                    f"--{name} is not an option of --from={self.format}; "
                    + (f"it is one of {', '.join(taking)}." if taking else "no format has it.")
                )

    def _check_images(self) -> None:
        kind = images_folder(self.format)
        if self.images is None:
            if kind == "required":
                raise ValueError(
                    f"--from={self.format} needs --images=DIR, the folder that paths of images "
                    "start from."
                )
        elif kind in ("input", "inside"):
            where = "are those of --input" if kind == "input" else "are inside the files of --input"
            raise ValueError(
                f"--images={self.images} is not read by --from={self.format}, whose images {where};"
                " leave --images out."
            )
        elif not self.images.is_dir():
            raise ValueError(f"--images={self.images} is not a folder.")

    def _check_merging(self) -> None:
        if self.merge_annotations is None:
            if self.merge_by is not None:
                raise ValueError(
                    f"--merge_by={self.merge_by} needs --merge_annotations=PATH, the annotations "
                    "to join."
                )
        elif not self.merge_annotations.exists():
            raise ValueError(f"--merge_annotations={self.merge_annotations} does not exist.")
        if self.merge_by not in (None, *get_args(MergeBy)):
            raise ValueError(
                f"--merge_by must be one of {get_args(MergeBy)}, given {self.merge_by!r}."
            )

    def importer(self) -> Importer:
        """The importer on the input. Raises ValueError where the input is not of its format."""
        takes = _keywords(self.format)
        by_build = {"split": self.split, "held_out": self.held_out}
        given = {name: value for name, value in by_build.items() if name in takes}
        importer = IMPORTERS[self.format](self.input, **given, **self.options)
        if self.images is not None and getattr(importer, "holds_images", bool)():
            raise ValueError(
                f"--images={self.images} is not read: the images are inside the files of "
                f"--input={self.input}; leave --images out."
            )
        if self.merge_annotations is None:
            return importer
        return MergedImporter(
            importer,
            self.merge_annotations,
            by=cast(MergeBy, self.merge_by or "id"),
            images=self.images_folder,
            skip=self.on_error == "skip",
        )


def importer_options(name: str) -> list[str]:
    """The options that an entry of `IMPORTERS` takes."""
    return [keyword for keyword in _keywords(name) if keyword not in GIVEN_BY_BUILD]


def images_folder(name: str) -> ImagesFolder:
    """Where the images of an entry of `IMPORTERS` are."""
    kind: ImagesFolder = getattr(IMPORTERS[name], "images_folder", "required")
    return kind


def _keywords(name: str) -> list[str]:
    parameters = inspect.signature(IMPORTERS[name]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
