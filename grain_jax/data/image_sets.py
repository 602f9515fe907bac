"""Images of any data that commands take, without their labels: records, tars, tables, folders."""

from pathlib import Path

from grain_jax.data.classification.folders import ImageFiles
from grain_jax.data.classification.image_folder import printable, read_folder
from grain_jax.data.classification.parquet_tables import is_parquet, open_table_images
from grain_jax.data.classification.stored import open_stored
from grain_jax.data.classification.stored_classes import DEFAULT_SPLIT, SplitChoice
from grain_jax.data.classification.webdataset_folder import is_webdataset, open_tar_images
from grain_jax.data.records import Source
from grain_jax.paths import nearest_hint

RECORDS = "dataset_info.json"
TRAIN = "train"


def open_images(
    path: Path, split: str | None, *, default_split: str, option: str = "--split"
) -> Source:
    """The images of prepared records, tars, tables, a TFDS set, or of a folder and below.

    Of tars and tables nothing but images is looked at, so that they may have captions, or anything
    else, in place of labels. `default_split`: of records; of tars, tables and TFDS too where it is
    "train", else "test". `option`: that chooses the split, for errors. Raises ValueError where
    there is no image, and where one cannot be reached.
    """
    if (path / RECORDS).is_file():
        from grain_jax.data.tfds_records import RecordSource

        return RecordSource(path, split or default_split, advice=f"Choose one with {option}.")
    default = TRAIN if default_split == TRAIN else DEFAULT_SPLIT
    choice = SplitChoice(split, (default,), option)
    if not (path / "labels.csv").exists():
        if is_parquet(path):
            return open_table_images(path, choice)
        if path.suffix == ".tar" or is_webdataset(path):
            return open_tar_images(path, choice)
    stored = open_stored(path, choice, image_column=None, label_column=None)
    if stored is not None:
        return stored.open_images(("",) * len(stored.classes))
    if not path.is_dir():
        raise ValueError(
            f"There is no folder {str(path)!r}{nearest_hint(path) or '.'} Give records or a folder "
            "of images."
        )
    content = read_folder(path)
    for what, names in (
        ("cannot be reached", content.broken),
        ("cannot be read", content.denied),
        ("are of formats that are not supported", content.unread),
        ("are too large", content.too_large),
    ):
        if names:
            raise ValueError(
                f"{len(names)} files or folders of {str(path)!r} {what}, {printable(names[0])!r} "
                "first. Remove or convert them."
            )
    if not content.images:
        raise ValueError(f"{str(path)!r} holds no images.")
    return ImageFiles(path, tuple(content.images), ("",) * len(content.images))
