"""Which layout labelled images have that are not a folder of image files."""

from pathlib import Path

from grain_jax.data.classification.parquet_tables import is_parquet, open_parquet
from grain_jax.data.classification.set_names import TFDS
from grain_jax.data.classification.stored_classes import SplitChoice, StoredImages
from grain_jax.data.classification.webdataset_folder import is_webdataset, open_webdataset


def is_stored(path: Path) -> bool:
    """Whether a path is tars, tables or a TFDS data set, which may have splits."""
    if str(path).startswith(TFDS):
        return True
    return not (path / "labels.csv").exists() and (is_parquet(path) or is_webdataset(path))


def open_stored(
    path: Path, split: SplitChoice, *, image_column: str | None, label_column: str | None
) -> StoredImages | None:
    """The images of tars, tables or a TFDS data set; None for a folder of image files.

    Raises ValueError as the reader of the layout, and for an option that it does not have.
    """
    columns = {"image_column": image_column, "label_column": label_column}
    if str(path).startswith(TFDS):
        from grain_jax.data.classification.tfds_set import open_tfds  # TFDS is slow to import

        return open_tfds(path, split, **columns)
    if is_parquet(path) and not (path / "labels.csv").exists():
        return open_parquet(path, split, **columns)
    if given := [name for name, value in columns.items() if value is not None]:
        raise ValueError(f"--{given[0]} is of tables and TFDS, and {str(path)!r} is neither.")
    if is_webdataset(path) and not (path / "labels.csv").exists():
        return open_webdataset(path, split)
    split.refuse(
        f"{str(path)!r} is a folder of image files, without splits",
        instead=", or give the folder of one split",
    )
    return None
