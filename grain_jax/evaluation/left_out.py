"""Methods that were asked for and cannot be measured on a set."""

from collections.abc import Callable, Collection, Sequence

from grain_jax.data.records import ZeroShotSet
from grain_jax.zero_shot.methods import lacking
from grain_jax.zero_shot.scorers import class_texts


def note_left_out(
    methods: Sequence[str],
    dataset: ZeroShotSet,
    *,
    has_regions: bool,
    note: Callable[[str], None],
    given: Collection[str] = ("unlabeled",),
    required: bool = False,
) -> None:
    """Says in one sentence which of the `methods` a set, a model or what is `given` lack something
    for.

    Raises ValueError where that is all of them and one is `required`.
    """
    texts = class_texts(dataset)
    found = {
        name: needs
        for name in methods
        if (needs := lacking(name, texts, has_regions=has_regions, given=given))
    }
    if not found:
        return
    each = "; ".join(f"{name} needs {' and '.join(needs)}" for name, needs in found.items())
    if required and len(found) == len(methods):
        raise ValueError(f"No method can be measured on {dataset.name!r}: {each}.")
    are = "method is" if len(found) == 1 else "methods are"
    note(f"{dataset.name}: {len(found)} {are} left out: {each}.")
