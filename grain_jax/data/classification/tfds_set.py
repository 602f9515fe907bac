"""Labelled images of a TFDS data set that was prepared before, read without TensorFlow.

`tfds:NAME`, `tfds:NAME/CONFIG` or `tfds:NAME/CONFIG:VERSION` is looked for in the folder that TFDS
prepares into (`TFDS_DATA_DIR`, else `~/tensorflow_datasets`); `tfds:/FOLDER` is the folder of a
version. Its files must be ArrayRecord, as `download_and_prepare` writes with
`file_format="array_record"`. Nothing is downloaded.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from grain_jax.data.classification.set_names import TFDS
from grain_jax.data.classification.stored_classes import SplitChoice, StoredImages
from grain_jax.data.image_files import MAX_IMAGE_BYTES
from grain_jax.data.records import Record
from grain_jax.data.tfds_records import foreign_features
from grain_jax.paths import expand_home, user_path

INFO = "dataset_info.json"
DATA_DIR = "TFDS_DATA_DIR"  # the variable that names the folder of data sets
ADDRESS = re.compile(r"(?P<name>\w+)(/(?P<config>[\w-][\w.-]*))?(:(?P<version>\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(eq=False)
class TfdsImages:
    """A source of labelled images of a split of a prepared folder, read at each access.

    `__getitem__` raises ValueError for an example that cannot be read and an image that is larger
    than `MAX_IMAGE_BYTES`.
    """

    folder: str
    split: str
    image: str  # name of the feature
    length: int
    labels: tuple[str, ...] = ()  # class name of each image
    _data: Any = field(default=None, repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        """A name for each image: "test/17"."""
        return tuple(f"{self.split}/{index}" for index in range(self.length))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Record:
        name = f"{self.split}/{index}"
        found = self.example(index).features.feature[self.image].bytes_list.value
        if len(found) != 1:
            raise ValueError(f"Image {name!r} of {self.folder!r} is stored as {len(found)} texts.")
        if len(found[0]) > MAX_IMAGE_BYTES:
            raise ValueError(f"Image {name!r} is larger than {MAX_IMAGE_BYTES} bytes.")
        return Record(id=name, image=found[0], label=self.labels[index])

    def example(self, index: int) -> Any:
        """The stored example, a protocol buffer."""
        if self._data is None:
            self._data = _read_at_random(_builder(Path(self.folder)), self.split, self.folder)
        try:
            return tf_example_pb2.Example.FromString(self._data[index])
        except (RuntimeError, ValueError, OSError) as error:  # of array_record and of protobuf
            raise ValueError(
                f"Image '{self.split}/{index}' of {self.folder!r} cannot be read: {error}."
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_data": None}  # each process opens the files itself


def open_tfds(
    path: Path, split: SplitChoice, *, image_column: str | None, label_column: str | None
) -> StoredImages:
    """The labelled images of a split of a TFDS data set; labels are read from every example.

    Raises ValueError where the data set has not been prepared, has several versions or configs to
    choose from, is not stored as ArrayRecord, has no single image and class, or names features of
    others, whose code TFDS would run.
    """
    folder, name = _find(str(path).removeprefix(TFDS))
    where = repr(str(path))
    builder = _builder(folder)
    chosen = split.among(sorted(builder.info.splits), where)
    features = dict(builder.info.features.items())
    image = _only(features, tfds.features.Image, image_column, "--image_column", where)
    label = _only(features, tfds.features.ClassLabel, label_column, "--label_column", where)
    names = tuple(features[label].names)
    if names == tuple(map(str, range(len(names)))):  # what TFDS says where it has no names
        names = ()
    count = builder.info.splits[chosen].num_examples
    if not count:
        raise ValueError(f"Split {chosen!r} of {where} has no example.")
    source = TfdsImages(str(folder), chosen, image, count)
    classes = [_class_of(source, index, label) for index in range(count)]
    names_file = folder / f"{label}.labels.txt"
    return StoredImages(
        classes=classes,
        names=names,
        names_file=str(names_file) if names and names_file.is_file() else "",
        where=where,
        open_images=lambda labels: TfdsImages(str(folder), chosen, image, count, labels),
        split=chosen,
        title=name,
    )


def _class_of(source: TfdsImages, index: int, label: str) -> int:
    found = source.example(index).features.feature[label].int64_list.value
    if len(found) != 1:
        raise ValueError(
            f"Example {index} of {source.folder!r} has {len(found)} classes in {label!r}; expected "
            "one."
        )
    return int(found[0])


def _find(address: str) -> tuple[Path, str]:
    """The folder of the version that an address names, and the name of the set."""
    if address.startswith(("/", ".", "~")):
        folder = user_path(address).resolve()
        if not (folder / INFO).is_file():
            raise ValueError(
                f"'{TFDS}{address}': there is no {INFO} in {str(folder)!r}; give the folder of a "
                "version, such as cifar10/3.0.2."
            )
        return folder, "-".join(part for part in folder.parts[-2:] if not VERSION.fullmatch(part))
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise ValueError(
            f"'{TFDS}{address}' should be {TFDS}NAME, {TFDS}NAME/CONFIG or "
            f"{TFDS}NAME/CONFIG:VERSION, such as {TFDS}eurosat/rgb:2.0.0."
        )
    root = Path(expand_home(os.environ.get(DATA_DIR, "~/tensorflow_datasets")))
    folder = root / parts["name"] / (parts["config"] or "")
    name = "-".join(filter(None, (parts["name"], parts["config"])))
    if parts["version"]:
        folder /= parts["version"]
        if not (folder / INFO).is_file():
            raise ValueError(_not_prepared(address, folder, parts["name"]))
        return folder, name
    versions = sorted(file.parent.name for file in folder.glob(f"*/{INFO}"))
    if len(versions) == 1:
        return folder / versions[0], name
    if versions:
        raise ValueError(
            f"{str(folder)!r} has several versions, {', '.join(versions)}; choose one as "
            f"{TFDS}{address}:{versions[-1]}."
        )
    configs = sorted({file.parent.parent.name for file in folder.glob(f"*/*/{INFO}")})
    if configs and not parts["config"]:
        raise ValueError(
            f"{str(folder)!r} has the configs {', '.join(configs)}; choose one as "
            f"{TFDS}{address}/{configs[0]}."
        )
    raise ValueError(_not_prepared(address, folder, parts["name"]))


def is_prepared(path: Path) -> bool:
    """Whether the version of a data set that `tfds:NAME:VERSION`, or the folder of one, names is
    there. Raises ValueError for an address of another form.
    """
    address = str(path).removeprefix(TFDS)
    if address.startswith(("/", ".", "~")):
        return (user_path(address) / INFO).is_file()
    parts = ADDRESS.fullmatch(address)
    if parts is None or parts["version"] is None:
        raise ValueError(
            f"{str(path)!r} should be {TFDS}NAME:VERSION or {TFDS}NAME/CONFIG:VERSION."
        )
    root = Path(expand_home(os.environ.get(DATA_DIR, "~/tensorflow_datasets")))
    return (root / parts["name"] / (parts["config"] or "") / parts["version"] / INFO).is_file()


def _not_prepared(address: str, folder: Path, name: str) -> str:
    return (
        f"'{TFDS}{address}': {str(folder)!r} holds no prepared data set. Prepare it where "
        f"TensorFlow is installed: tfds build {name} --file_format=array_record --data_dir=DIR, "
        "and set TFDS_DATA_DIR=DIR."
    )


def _builder(folder: Path) -> Any:
    try:
        if foreign := foreign_features(str(folder)):
            raise ValueError(f"it names {foreign[0]}, and TFDS would run the code behind it")
        return tfds.builder_from_directory(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{str(folder)!r} is not a data set of TFDS that can be read: {error}."
        ) from None


def _read_at_random(builder: Any, split: str, where: str) -> Any:
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        return builder.as_data_source(split, deserialize_method=raw)
    except NotImplementedError as error:
        raise ValueError(
            f"{where!r} has files that cannot be read at random "
            f"({str(error).splitlines()[0].partition('. ')[0]}). Prepare it with "
            "--file_format=array_record, or convert it with `tfds convert_format`."
        ) from None


def _only(features: dict[str, Any], kind: Any, wanted: str | None, option: str, where: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if wanted is not None:
        if wanted in found:
            return wanted
        raise ValueError(
            f"{wanted!r} of {where} is not a feature of {kind.__name__}; those are "
            f"{', '.join(found) or 'none'}."
        )
    if len(found) != 1:
        raise ValueError(
            f"{where} has {len(found)} features of {kind.__name__} "
            f"({', '.join(found) or 'none'}); "
            + (f"choose with {option}." if found else "it has no labelled images.")
        )
    return found[0]
