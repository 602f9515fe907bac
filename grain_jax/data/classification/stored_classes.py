"""Classes that a file of labelled images numbers from 0, and which of its splits is evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grain_jax.data.classification.class_names import name_key
from grain_jax.data.records import Source

DEFAULT_SPLIT = "test"


@dataclass(frozen=True)
class StoredImages:
    """The labelled images of files that hold many of them; no image has been read.

    Args:
        classes: number of each image's class, or its name where `names` is None.
        names: of the classes, by their numbers; () where the files have none.
        names_file: the file that the names are from; "" where no file is of names alone.
        where: what to call the images in errors.
        open_images: the source of the images, given the class name of each.
        title: name of the set; "" for that of its path.
        templates_file: prompts that come with the images; "" without.
        split: the one that was read; "" where there is none.
        beside: folder whose `classes.json`, `descriptions.json` and the like are of these images;
            None where there is none.
    """

    classes: Sequence[int] | Sequence[str]
    names: tuple[str, ...] | None
    names_file: str
    where: str
    open_images: Callable[[tuple[str, ...]], Source]
    title: str = ""
    templates_file: str = ""
    beside: Path | None = None
    split: str = ""


@dataclass(frozen=True)
class Labels:
    """The label of each image, all labels, and {label: name} where the images know names."""

    of_images: tuple[str, ...]
    all: tuple[str, ...]
    names: dict[str, str] | None = None


def labels_of(images: StoredImages, given: Any, binding: str) -> Labels:
    """The labels of stored images: the names of their classes, or the numbers.

    Numbers are the labels where names are bound by order, where the keys of the given names are
    numbers, and where two classes have the same name.

    Args:
        given: content of a file of class names, a list or {label: name}; None without one.
        binding: how a list is bound, as in `names_of_labels`.

    Raises ValueError for a class number without a name, and where nothing tells the names.
    """
    if images.names is None:  # texts, as the names of folders are
        texts = tuple(map(str, images.classes))
        return Labels(texts, tuple(sorted(set(texts))))
    if given is None and binding != "name":
        raise ValueError(
            f"{images.where} has class names of its own, by their numbers; --classes_by goes with "
            "a list of others (--classes)."
        )
    numbers = [int(number) for number in images.classes]
    count = len(images.names) or max(numbers, default=-1) + 1
    _check_numbers(numbers, count, images)
    if not images.names and given is None:
        raise ValueError(
            f"{images.where} numbers its classes and does not name them. Give --classes: a JSON "
            'object {number: name}, such as {"0": "owl"}, or a list with --classes_by=order.'
        )
    by_number = tuple(map(str, range(count)))
    distinct = len(set(map(name_key, images.names))) == count
    keyed = isinstance(given, dict) and set(by_number) <= set(given)
    if not images.names or binding == "order" or keyed or not distinct:
        names = dict(zip(by_number, images.names, strict=True)) if images.names else None
        return Labels(tuple(by_number[number] for number in numbers), by_number, names)
    return Labels(tuple(images.names[number] for number in numbers), images.names)


def _check_numbers(numbers: Sequence[int], count: int, images: StoredImages) -> None:
    odd = next((number for number in numbers if not 0 <= number < count), None)
    if odd is None:
        return
    if odd < 0:
        raise ValueError(
            f"{images.where}: an image has the class {odd}, which stands for no label. Choose a "
            "split with labels (--split)."
        )
    raise ValueError(
        f"{images.where}: an image has the class {odd}, and only {count} names are there"
        f"{f' ({images.names_file})' if images.names_file else ''}. Add those that lack."
    )


@dataclass(frozen=True)
class SplitChoice:
    """Which split of tars, tables or TFDS is read."""

    wanted: str | None = None
    defaults: tuple[str, ...] = (DEFAULT_SPLIT,)  # where none is wanted: the first that is there
    option: str = "--split"  # that a user chooses it with

    def among(self, splits: Sequence[str], where: str) -> str:
        """The one wanted, else a default, else the only one there is.

        Raises ValueError where none is meant.
        """
        listed = ", ".join(sorted(splits))
        if self.wanted is not None:
            if self.wanted in splits:
                return self.wanted
            raise ValueError(
                f"{where} has no split {self.wanted!r}; it has {listed} ({self.option})."
            )
        if found := [name for name in self.defaults if name in splits]:
            return found[0]
        if len(splits) == 1:
            return splits[0]
        raise ValueError(f"{where} has several splits ({listed}); choose one with {self.option}.")

    def refuse(self, why: str, *, instead: str = "") -> None:
        """Raises ValueError where one is wanted of what has none."""
        if self.wanted is not None:
            raise ValueError(f"{why}; leave {self.option} out{instead}.")
