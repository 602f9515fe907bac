"""Example images of labels, from a folder of labelled images."""

from collections.abc import Callable, Sequence
from pathlib import Path

from grain_jax.data.classification.class_names import clean_names, name_key
from grain_jax.data.classification.folders import ImageFiles, load_zero_shot
from grain_jax.data.records import Labelled
from grain_jax.inference.inputs import ImageInput

TITLE = "examples"  # in notes


def read_examples(
    folder: Path, labels: Sequence[str], *, note: Callable[[str], None]
) -> dict[str, list[ImageInput]]:
    """The images of each class of a folder, in a layout of `load_zero_shot`; one class is enough.

    Its classes are bound to `labels` by name, up to case, spacing and underscores; where there is
    no such label the class keeps its name, with spaces for underscores. Raises ValueError as
    `load_zero_shot`.
    """
    found = load_zero_shot(folder, name=TITLE, keep_names=True, single_class=True, note=note)
    source = found.source
    assert isinstance(source, Labelled)
    cleaned = clean_names({name: name for name in found.class_names}, lambda _: None, keep=False)
    label_of = {name_key(label): label for label in labels}
    examples: dict[str, list[ImageInput]] = {}
    for index, name in enumerate(source.labels):
        image: ImageInput
        if isinstance(source, ImageFiles):
            image = source.root / source.files[index]
        else:
            image = source[index].image
        examples.setdefault(label_of.get(name_key(name), cleaned[name]), []).append(image)
    return examples
