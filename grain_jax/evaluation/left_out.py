"""Methods that were asked for: which cannot be measured on a set, and which cost more passes."""

from collections.abc import Callable, Collection, Sequence

from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluation.variants import passes, possible_variants
from grain_jax.zero_shot.methods import METHODS, lacking
from grain_jax.zero_shot.scorers import class_texts


def note_left_out(
    methods: Sequence[str],
    dataset: ZeroShotSet,
    *,
    has_regions: bool,
    note: Callable[[str], None],
    num_boxes: int = 0,
    given: Collection[str] = ("unlabeled",),
    required: bool = False,
) -> None:
    """Says in one sentence which of the `methods` a set, a model or what is `given` lack something
    for, and in one which of the others encode each image again, and how often.

    `num_boxes` are those that the model predicts for an image; 0: it has no trained boxes. Raises
    ValueError where all methods lack something and one is `required`.
    """
    texts = class_texts(dataset)
    given = {*given, *possible_variants(has_boxes=num_boxes > 0)}
    found = {
        name: needs
        for name in methods
        if (needs := lacking(name, texts, has_regions=has_regions, given=given))
    }
    _note_passes([name for name in methods if name not in found], dataset, num_boxes, note)
    if not found:
        return
    each = "; ".join(f"{name} needs {' and '.join(needs)}" for name, needs in found.items())
    if required and len(found) == len(methods):
        raise ValueError(f"No method can be measured on {dataset.name!r}: {each}.")
    are = "method is" if len(found) == 1 else "methods are"
    note(f"{dataset.name}: {len(found)} {are} left out: {each}.")


def _note_passes(
    methods: Sequence[str], dataset: ZeroShotSet, num_boxes: int, note: Callable[[str], None]
) -> None:
    kinds = {name: METHODS[name].variants for name in methods if METHODS[name].variants}
    if not kinds:
        return
    each = ", ".join(f"{name} ({passes(own, num_boxes)})" for name, own in kinds.items())
    total = passes(frozenset().union(*kinds.values()), num_boxes)
    note(
        f"{dataset.name}: each of the {len(dataset.source):,} images goes through the encoder "
        f"{total} times, not once, for {each}."
    )
