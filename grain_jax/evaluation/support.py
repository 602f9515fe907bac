"""Labelled images beside a zero-shot set, for the methods that look at some.

Their labels are bound to the classes of the set by name, so many of each class are drawn, the same
each time, and none of them may be an image of the set.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from grain_jax.data.classification.class_names import equal_but_for_spaces, name_key
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.set_names import TFDS
from grain_jax.data.classification.stored_classes import DEFAULT_SPLIT, SplitChoice
from grain_jax.data.records import Labelled, Selection, Source, ZeroShotSet
from grain_jax.data.text_files import read_texts
from grain_jax.evaluation.content_digests import unordered_sha256
from grain_jax.evaluation.shared_images import BY_OPTIONS, HashedImages, Wording, refuse_shared
from grain_jax.inference.encoder import Encoder, errors_about
from grain_jax.zero_shot.method import Support

CAPTIONS = "captions.json"  # in the folder: {image: caption}
TITLE = "support"  # in notes
TRAIN = "train"


@dataclass(frozen=True)
class LabelledImages:
    """Those that were drawn, not encoded yet."""

    source: Source
    labels: Int[np.ndarray, "S"]  # positions among the classes of the set
    captions: tuple[str, ...] | None  # of each image; None where one has none
    described: Mapping[str, Any]  # what a result says of them


def load_support(
    folder: Path,
    dataset: ZeroShotSet,
    *,
    shots: int | None = None,
    seed: int = 0,
    split: str | None = None,
    classes: str = "",
    keep_names: bool = False,
    classes_by: str = "name",
    allow_equal_names: bool = False,
    wording: Wording = BY_OPTIONS,
    note: Callable[[str], None] = print,
) -> LabelledImages:
    """The labelled images of `folder`, in a layout of `load_zero_shot`, for the classes of a set.

    Labels go through the folder's own file of class names. Without one they are names, or go
    through `classes` or else the set's own file, whichever finds more classes. Classes of the
    folder that the set does not have are left out, and noted, as are classes of the set that have
    no image there.

    Args:
        shots: images of each class, drawn by `seed` and the name of the class alone; None: all.
        split: of tars, tables and TFDS; None: "train", else "test", else the only one.
        wording: what messages call the folder, the set and settings.
        note: called with sentences that a reader of the metrics should know.

    The other arguments are those of `load_zero_shot`. Raises ValueError where no class has an image
    and where an image is, byte for byte, one of the set.
    """

    def load(file: str) -> tuple[ZeroShotSet, list[str]]:
        notes: list[str] = []
        found = load_zero_shot(
            folder,
            name=TITLE,
            classes=file,
            keep_names=keep_names,
            classes_by=classes_by,
            allow_equal_names=allow_equal_names,
            split=choice,
            note=notes.append,
        )
        return found, notes

    choice = SplitChoice(split, (TRAIN, DEFAULT_SPLIT), f"{wording.setting}support_split")
    found, notes = load("")
    file = classes or dataset.text_files.get("classes", "")
    position = _positions(found, dataset)
    if file and "classes" not in found.text_files and len(position) < len(found.class_names):
        try:
            by_file, notes_of_file = load(file)
        except ValueError:
            if not position:
                raise
        else:
            if len(of_file := _positions(by_file, dataset)) > len(position):
                found, notes, position = by_file, notes_of_file, of_file
    for text in notes:
        note(text)
    if found.split:
        note(f"{TITLE}: labelled images are those of split {found.split!r} ({choice.option}).")
    rows = _rows_by_class(found, position)
    _note_unlike(found, dataset, position, rows, wording, note)
    drawn = {k: _drawn(rows[k], shots, seed, dataset.class_names[k]) for k in sorted(rows)}
    if shots is not None and (few := [k for k in drawn if len(rows[k]) < shots]):
        note(
            f"{TITLE}: {len(few)} of {len(drawn)} classes have fewer than {shots} labelled images "
            f"({dataset.class_names[few[0]]!r} has {len(rows[few[0]])}); all of theirs are used."
        )
    chosen = [index for k in drawn for index in drawn[k]]
    labels = np.array([k for k in drawn for _ in drawn[k]], int)
    records = [found.source[index] for index in chosen]
    hashed = HashedImages.of(records)
    where = f"labelled images of {wording.support}"
    refuse_shared(hashed, dataset, where=where, data=wording.data)
    captions = _captions(folder, [record.id for record in records], note)
    named = [dataset.class_names[k] for k in labels]
    described = {
        "folder": str(folder) if str(folder).startswith(TFDS) else str(folder.absolute()),
        "split": found.split or None,
        "images": len(chosen),
        "classes": len(drawn),
        "shots": shots,
        "seed": None if shots is None else seed,
        "sha256": unordered_sha256(zip(hashed.digests, named, strict=True)),
        "captions_sha256": (
            None
            if captions is None
            else unordered_sha256(zip(hashed.digests, captions, strict=True))
        ),
    }
    return LabelledImages(Selection(found.source, chosen), labels, captions, described)


def encode_support(encoder: Encoder, images: LabelledImages) -> Support:
    """Each image once, and its caption where all have one."""
    with errors_about(f"Labelled images of {images.described['folder']}"):
        image = encoder.whole_images(images.source)
        if images.captions is None:
            return Support(image, images.labels)
        return Support(image, images.labels, encoder.texts(images.captions, kind="caption"))


def _positions(found: ZeroShotSet, dataset: ZeroShotSet) -> dict[str, int]:
    """Class of the folder -> that of the set, where the set has it."""
    by_key = {name_key(name): k for k, name in enumerate(dataset.class_names)}
    joined = equal_but_for_spaces(found.class_names, dataset.class_names)
    keys = {name: name_key(name) for name in found.class_names}
    keys |= {name: name_key(joined[name]) for name, key in keys.items() if name in joined}
    return {name: by_key[key] for name, key in keys.items() if key in by_key}


def _rows_by_class(found: ZeroShotSet, position: Mapping[str, int]) -> dict[int, list[int]]:
    """Class of the set -> its images; `position`: class of the folder -> that of the set."""
    source, rows = found.source, dict[int, list[int]]()
    assert isinstance(source, Labelled)
    for index, label in enumerate(source.labels):
        if (k := position.get(label)) is not None:
            rows.setdefault(k, []).append(index)
    return rows


def _note_unlike(
    found: ZeroShotSet,
    dataset: ZeroShotSet,
    position: Mapping[str, int],
    rows: Mapping[int, Sequence[int]],
    wording: Wording,
    note: Callable[[str], None],
) -> None:
    """Says which classes only one of the two has; ValueError where no class of the set has an
    image.
    """
    others = [name for name in found.class_names if name not in position]
    if not rows:
        raise ValueError(
            f"{wording.support} has images of classes like {found.class_names[0]!r}, and none of "
            f"the {len(dataset.class_names)} classes of {dataset.name!r}, like "
            f"{dataset.class_names[0]!r}. Its labels must be their names, or be bound to them by a "
            f"file of class names ({wording.setting}classes, or classes.json in the folder)."
        )
    if others:
        note(
            f"{TITLE}: {len(others)} of its {len(found.class_names)} classes are none of "
            f"{dataset.name!r} ({others[0]!r} first), and their images are not used."
        )
    without = [name for k, name in enumerate(dataset.class_names) if k not in rows]
    if without:
        note(
            f"{TITLE}: {len(without)} of {len(dataset.class_names)} classes have no labelled "
            f"images ({without[0]!r} first)."
        )


def _drawn(rows: Sequence[int], shots: int | None, seed: int, name: str) -> list[int]:
    if shots is None or len(rows) <= shots:
        return list(rows)
    generator = np.random.default_rng([seed, *name.encode()])
    return np.sort(generator.choice(rows, shots, replace=False)).tolist()


def _captions(
    folder: Path, ids: Sequence[str], note: Callable[[str], None]
) -> tuple[str, ...] | None:
    """Those of all images, from `CAPTIONS` in the folder."""
    path = folder / CAPTIONS
    if not path.is_file():
        return None
    given = read_texts(str(path))
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise ValueError(f"{str(path)!r} must hold an object {{image: caption}}.")
    without = [name for name in ids if not given.get(name, "").strip()]
    if without:
        note(
            f"{TITLE}: {len(without)} of {len(ids)} labelled images have no caption in "
            f"{CAPTIONS!r} ({without[0]!r} first), so no captions are used."
        )
        return None
    return tuple(given[name].strip() for name in ids)
