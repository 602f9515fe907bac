"""A TFDS data set that was built before, read from its folder without TensorFlow.

`--input` is the folder of a version, with `features.json` and `dataset_info.json`, or one above it
that holds a single version. Files must be ArrayRecord or Parquet, which TFDS reads at random:
`download_and_prepare` writes them with `file_format="array_record"`. An image feature, captions
(texts, or sequences of texts), a class label, and objects with boxes and labels are read. A folder
whose metadata names features of anybody but TFDS is refused, as TFDS would run their code.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from grain_jax.data.importers.columns import ColumnOptions, Columns, TableImporter
from grain_jax.data.importers.input_files import choose_subset, file_states
from grain_jax.data.importers.item import (
    ImagesFolder,
    ImportedImage,
    ImportedRegion,
    InvalidRecordError,
)
from grain_jax.data.records import Caption
from grain_jax.data.tfds_records import foreign_features

INFO = "dataset_info.json"
ID_NAMES = ("id", "image/filename", "filename", "file_name", "image/id", "image_id")
BOX_LABELS = ("description", "label", "category", "name", "class")  # of objects with a box
kinds = tfds.features


class TfdsFolder(TableImporter):
    """One record for each example of a split. An `Importer`."""

    images_folder: ClassVar[ImagesFolder] = "inside"

    def _locate(self, path: Path, split: str, subset: str | None, options: ColumnOptions) -> None:
        self._folder = find_version(path)
        builder = _builder(self._folder)
        self._subset = choose_subset(sorted(builder.info.splits), split, subset)
        self._files = sorted(Path(file) for file in builder.info.splits[self._subset].filepaths)
        # Sorted: TFDS reads them in no fixed order.
        self._features: dict[str, Any] = dict(sorted(builder.info.features.items()))
        where = str(self._folder)
        self._columns = _columns(self._features, where, options)
        label = self._features[self._columns.label] if self._columns.label else None
        self._template = options.caption_template(
            self._columns,
            where,
            label_kind=None if label is None else np.dtype(label.np_dtype).name,
            has_names=_has_names(label),
        )
        self._id = next((name for name in ID_NAMES if name in self._features), None)
        self._objects = list(_objects(self._features))
        self._source: Any = None
        self._length = len(self._opened())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> ImportedImage:
        where = f"{self._folder}, split {self._subset!r}, example {index}"
        try:
            example = self._opened()[index]
        except (RuntimeError, ValueError, OSError) as error:  # of array_record and of protobuf
            raise InvalidRecordError(f"{where}: cannot be read: {error}") from None
        content = example[self._columns.image]
        name = f"{self._subset}/{index}"
        if self._id is not None:
            value = example[self._id]
            name = _text(value, where) if isinstance(value, bytes) else str(value)
        captions = [
            text
            for column in self._columns.captions
            for text in _texts(example[column], f"{where}: {column!r}")
        ]
        label = self._label(example, where)
        if label is not None and not self._columns.captions:
            captions = [self._template.format(label)]
        regions, left_out = self._regions(example, where)
        return ImportedImage(
            id=name,
            image=name,
            captions=tuple(map(Caption, captions)),
            regions=regions,
            label=label,
            content=content,
            left_out=left_out,
        )

    def fingerprint(self) -> dict[str, object]:
        files = [self._folder / INFO, *self._files]
        return {
            "path": str(self._folder.resolve()),
            "split": self._subset,
            "files": file_states(files),
        }

    def checksum(self, start: int, stop: int) -> str:
        made_of = [file_states(self._files), self._subset, start, stop]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_source": None}  # each process opens the files itself

    def _opened(self) -> Any:
        if self._source is None:
            encoded = {self._columns.image: tfds.decode.SkipDecoding()}
            try:
                self._source = _builder(self._folder).as_data_source(self._subset, decoders=encoded)
            except NotImplementedError as error:
                raise ValueError(
                    f"{self._folder} has files that cannot be read at random "
                    f'({_first(error)}). Build it with file_format="array_record", or convert it '
                    "with `tfds convert_format`, which needs TensorFlow."
                ) from None
        return self._source

    def _label(self, example: Mapping[str, Any], where: str) -> str | None:
        if self._columns.label is None:
            return None
        return _class_name(self._features[self._columns.label], example[self._columns.label], where)

    def _regions(
        self, example: Mapping[str, Any], where: str
    ) -> tuple[tuple[ImportedRegion, ...], tuple[str, ...]]:
        regions: list[ImportedRegion] = []
        left_out: list[str] = []
        for name, box_name, label_name in self._objects:
            of_label = self._features[name].feature[label_name]
            values = example[name]
            crowds = values.get("is_crowd", [False] * len(values[box_name]))
            for bbox, value, crowd in zip(
                values[box_name], values[label_name], crowds, strict=True
            ):
                text = _class_name(of_label, value, where)
                if crowd:
                    left_out.append("crowd region")
                elif text is None:
                    left_out.append("region without a label")
                else:
                    ymin, xmin, ymax, xmax = (float(number) for number in bbox)
                    regions.append(ImportedRegion((xmin, ymin, xmax, ymax), text))
        return tuple(regions), tuple(left_out)


def find_version(path: Path) -> Path:
    """The folder of a data set's version. Raises ValueError where there is none, or several."""
    if (path / INFO).is_file():
        return path
    found = sorted(file.parent for file in path.glob(f"**/{INFO}"))
    if len(found) == 1:
        return found[0]
    versions = ", ".join(str(folder.relative_to(path)) for folder in found)
    raise ValueError(
        f"--input={path} holds no data set of TFDS: there is no {INFO} in it."
        if not found
        else f"--input={path} holds several data sets ({versions}); give one of them."
    )


def _builder(folder: Path) -> Any:
    try:
        if foreign := foreign_features(str(folder)):
            raise ValueError(f"it names {foreign[0]}, and TFDS would run the code behind it")
        return tfds.builder_from_directory(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not a data set of TFDS that can be read: {error}.") from None


def _columns(features: Mapping[str, Any], where: str, options: ColumnOptions) -> Columns:
    images = [name for name, feature in features.items() if isinstance(feature, kinds.Image)]
    if options.image is None and len(images) == 1:
        options = dataclasses.replace(options, image=images[0])
    found = options.find(list(features), where)
    if found.image not in images:
        raise ValueError(
            f"{found.image!r} of {where} is not an image feature; there are {images or 'none'}."
        )
    return found


def _objects(features: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Names of sequences of objects, and in each of the box and of the label."""
    for name, feature in features.items():
        inner = getattr(feature, "feature", None)
        if not isinstance(inner, kinds.FeaturesDict):
            continue
        boxes = [key for key, value in inner.items() if isinstance(value, kinds.BBoxFeature)]
        labels = [key for key in BOX_LABELS if key in inner]
        if boxes and labels:
            yield name, boxes[0], labels[0]


def _class_name(feature: Any, value: Any, where: str) -> str | None:
    """The name of a class, or a text as it is; None for -1, which stands for no label."""
    if isinstance(value, bytes):
        return _text(value, where) or None
    if int(value) < 0:
        return None
    names = getattr(feature, "names", None)
    if names is not None and int(value) >= len(names):
        raise InvalidRecordError(f"{where}: class {int(value)} of {len(names)}.")
    return str(names[int(value)] if names is not None else int(value))


def _has_names(feature: Any) -> bool:
    """Whether classes have names; TFDS calls them "0", "1", ... where it was given none."""
    names: list[str] = getattr(feature, "names", None) or []
    return bool(names) and names != [str(number) for number in range(len(names))]


def _texts(value: Any, where: str) -> list[str]:
    """The texts of a feature: one, several, or those under "text" of a dictionary."""
    if isinstance(value, dict):
        if "text" not in value:
            raise InvalidRecordError(f"{where} has no 'text', but {', '.join(value)}.")
        value = value["text"]
    if isinstance(value, bytes):
        return [_text(value, where)]
    try:
        return [text for element in value for text in _texts(element, where)]
    except TypeError:
        raise InvalidRecordError(f"{where} is not a text: {value!r}.") from None


def _text(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRecordError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start})."
        ) from None


def _first(error: Exception) -> str:
    return str(error).splitlines()[0].partition(". ")[0]
