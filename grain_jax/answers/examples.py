"""Example images of labels, from a folder of labelled images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from grain_jax.data.classification.class_names import clean_names, listed, name_key, with_nearest
from grain_jax.data.classification.folders import ImageFiles, load_zero_shot
from grain_jax.data.records import Labelled
from grain_jax.inference.inputs import ImageInput

TITLE = "examples"  # in notes


def read_examples(
    folder: Path, labels: Sequence[str], *, note: Callable[[str], None]
) -> dict[str, list[ImageInput]]:
    """The images of each class of a folder, in a layout of `load_zero_shot`; one class is enough.

    Its classes are bound to `labels` by name, up to case, spacing and underscores. Other classes
    are left out, unread, with a note, as entries of a file of descriptions are. Without labels
    every class keeps its name, with spaces for underscores. Raises ValueError as `load_zero_shot`,
    and where no class is a label.
    """
    found = load_zero_shot(folder, name=TITLE, keep_names=True, single_class=True, note=note)
    source = found.source
    assert isinstance(source, Labelled)
    cleaned = clean_names({name: name for name in found.class_names}, lambda _: None, keep=False)
    label_of = {name_key(label): label for label in labels}
    if labels:
        _check_labels(folder, found.class_names, label_of, note)
    examples: dict[str, list[ImageInput]] = {}
    for index, name in enumerate(source.labels):
        if labels and name_key(name) not in label_of:
            continue
        image: ImageInput
        if isinstance(source, ImageFiles):
            image = source.root / source.files[index]
        else:
            image = source[index].image
        examples.setdefault(label_of.get(name_key(name), cleaned[name]), []).append(image)
    return examples


def _check_labels(
    folder: Path,
    classes: Sequence[str],
    label_of: Mapping[str, str],
    note: Callable[[str], None],
) -> None:
    """Says which classes of the folder are no labels; raises ValueError where none is one."""
    known = {name_key(name) for name in classes}
    others = [name for name in classes if name_key(name) not in label_of]
    free = [label for key, label in label_of.items() if key not in known]
    if not others:
        return
    if len(others) == len(classes):
        raise ValueError(
            f"None of the {len(classes)} classes of --examples={folder} ({listed(classes)}) is "
            f"among the {len(label_of)} labels; nearest to these: {with_nearest(free, others)}. "
            "Name its folders and --labels alike, or leave out --labels to take the classes of "
            "the folder."
        )
    missed = ""
    if free:
        missed = (
            f"; the nearest of them to labels without examples are {with_nearest(free, others)}. "
            "Where the same label is meant, name both alike"
        )
    note(
        f"{TITLE}: {len(others)} of {len(classes)} classes of {str(folder)!r} are not among the "
        f"{len(label_of)} labels and are left out ({listed(others)}){missed}."
    )
