"""Images of any data that commands take, without their labels: records, tars, tables, folders."""

from pathlib import Path

from grain_jax.data.classification.folders import ImageFiles
from grain_jax.data.classification.image_folder import printable, read_folder
from grain_jax.data.classification.stored import open_stored
from grain_jax.data.records import Source

RECORDS = "dataset_info.json"


def open_images(path: Path, split: str | None, *, default_split: str) -> Source:
    """The images of prepared records, of what `open_stored` reads, or of a folder and below.

    `default_split`: of records. Raises ValueError where there is no image, and where one cannot be
    reached.
    """
    if (path / RECORDS).is_file():
        from grain_jax.data.tfds_records import RecordSource

        return RecordSource(path, split or default_split)
    stored = open_stored(path, split, image_column=None, label_column=None)
    if stored is not None:
        return stored.open_images(("",) * len(stored.classes))
    if not path.is_dir():
        raise ValueError(f"There is no folder {str(path)!r}; give records or a folder of images.")
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
