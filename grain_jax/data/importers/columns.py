"""Which columns of a table hold images, captions and class names: found by name, or given."""

from collections.abc import Sequence
from dataclasses import dataclass

# Names that tables of others use, the usual first.
IMAGE_NAMES = (
    *("filepath", "file_path", "image", "image_path", "img_path", "path", "filename", "file_name"),
    *("image_file", "img", "file", "jpg", "png", "webp"),
)
CAPTION_NAMES = (
    *("title", "caption", "captions", "text", "texts", "txt", "sentence", "sentences"),
    *("alt_text", "description", "comment"),
)
LABEL_NAMES = ("label", "labels", "class", "class_name", "category")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    image: str
    captions: tuple[str, ...]  # may be empty where there is a label
    label: str | None

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for n in (self.image, *self.captions, self.label) if n))


def find_columns(
    names: Sequence[str],
    where: str,
    *,
    image: str | None,
    captions: Sequence[str] | None,
    label: str | None,
) -> Columns:
    """The columns among `names` that are given, or else have a usual name.

    Raises ValueError that lists the columns where a given one does not exist, no image is found,
    neither a caption nor a label is found, or several columns could be meant.
    """
    wanted = [*([image] if image else []), *(captions or ()), *([label] if label else [])]
    if absent := [name for name in wanted if name not in names]:
        raise ValueError(f"{where} has no column {absent[0]!r}; it has {', '.join(names)}.")
    image = image or _one(names, IMAGE_NAMES, where, "--image_column", "images")
    if image is None:
        raise ValueError(
            f"{where} has no column of images with a usual name; it has {', '.join(names)}. "
            "Give --image_column."
        )
    if captions is None:
        found = _one(names, CAPTION_NAMES, where, "--caption_columns", "captions")
        captions = () if found is None else (found,)
    label = label or _one(names, LABEL_NAMES, where, "--label_column", "class names")
    if not captions and label is None:
        raise ValueError(
            f"{where} has no column of captions with a usual name; it has {', '.join(names)}. "
            "Give --caption_columns."
        )
    return Columns(image, tuple(captions), label)


def _one(
    names: Sequence[str], usual: Sequence[str], where: str, option: str, what: str
) -> str | None:
    found = [name for name in names if name.casefold() in usual]
    if len(found) > 1:
        raise ValueError(
            f"{where} has several columns that could hold {what}: {', '.join(found)}. Choose with "
            f"{option}."
        )
    return found[0] if found else None
