"""Which columns of a table hold images, captions and class names: found by name, or given."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grain_jax.data.importers.item import InvalidRecordError
from grain_jax.data.importers.json_values import shown
from grain_jax.data.placeholder import PLACEHOLDER, check_placeholder
from grain_jax.data.records import DEFAULT_TEMPLATES

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


@dataclass(frozen=True)
class ColumnOptions:
    """What an importer of a table is told about its columns; None for what is found by itself."""

    image: str | None = None
    captions: Sequence[str] | None = None
    label: str | None = None
    template: str | None = None  # of captions that are made from labels

    def find(self, names: Sequence[str], where: str) -> Columns:
        """See `find_columns`."""
        return find_columns(
            names, where, image=self.image, captions=self.captions, label=self.label
        )

    def caption_template(
        self, columns: Columns, where: str, *, label_kind: str | None, has_names: bool
    ) -> str:
        """The template of captions made from labels. Raises ValueError where there is no use for
        one that was given, and where labels are numbers and none was.

        Args:
            label_kind: the type of the labels, None where there are none.
            has_names: whether their names are known.
        """
        if label_kind is not None and not (columns.captions or has_names or self.template):
            refuse_unnamed(label_kind, columns.label, where)
        return label_template(columns, self.template, where)


class TableImporter(ABC):
    """The constructor of importers of tables, whose keywords are options of `prepare`."""

    def __init__(
        self,
        path: Path,
        *,
        split: str = "",
        subset: str | None = None,
        image_column: str | None = None,
        caption_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        template: str | None = None,
    ) -> None:
        options = ColumnOptions(image_column, caption_columns, label_column, template)
        self._locate(path, split, subset, options)

    @abstractmethod
    def _locate(self, path: Path, split: str, subset: str | None, options: ColumnOptions) -> None:
        """Finds the files and columns. Raises ValueError."""


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


def check_template(template: str | None) -> str:
    """A template with one "{}", or the default. Raises ValueError for another."""
    template = DEFAULT_TEMPLATES[0] if template is None else template
    check_placeholder(template, f"--template={template!r}", takes="the name of the class")
    if set(PLACEHOLDER) & set(template.replace(PLACEHOLDER, "")):
        raise ValueError(
            f"--template={template!r} needs exactly one {PLACEHOLDER!r} and no other braces."
        )
    return template


def label_template(columns: Columns, template: str | None, where: str) -> str:
    """The template of captions made from labels. Raises ValueError where captions are there."""
    if template is not None and columns.captions:
        raise ValueError(
            f"--template={template!r} makes captions from labels, and {where} has captions in "
            f"{', '.join(columns.captions)}; leave it out."
        )
    return check_template(template)


def refuse_unnamed(kind: str, column: str | None, where: str) -> None:
    """Raises ValueError for labels that are whole numbers, which would be captions as such."""
    if kind.startswith(("int", "uint")):
        raise ValueError(
            f"{where} has classes as numbers in {column!r}, without their names, and no captions. "
            "Give a column with the names as --label_column, one of texts as --caption_columns, or "
            "a --template in which numbers are right."
        )


def texts_of(value: Any, where: str) -> list[str]:
    """The texts of a cell: one, a list, or none. Raises `InvalidRecordError`."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in found):
        raise InvalidRecordError(f"{where} must be a text or a list of texts, got {shown(value)}.")
    return found
