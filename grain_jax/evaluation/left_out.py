"""Methods that were asked for and cannot be measured on a set."""

from collections.abc import Callable, Collection, Mapping, Sequence

from grain_jax.data.records import ZeroShotSet
from grain_jax.zero_shot.methods import lacking
from grain_jax.zero_shot.scorers import class_texts

LeftOut = dict[str, dict[str, list[str]]]  # set -> method -> what it needs


def note_left_out(
    methods: Sequence[str],
    dataset: ZeroShotSet,
    *,
    has_regions: bool,
    note: Callable[[str], None],
    given: Collection[str] = ("unlabeled",),
    left_out: LeftOut | None = None,
) -> None:
    """Says in one sentence which of the `methods` a set, a model or what is `given` lack something
    for, and adds them to `left_out` under the name of the set.
    """
    texts = class_texts(dataset)
    found = {
        name: needs
        for name in methods
        if (needs := lacking(name, texts, has_regions=has_regions, given=given))
    }
    if left_out is not None:
        left_out[dataset.name] = found
    if found:
        note(left_out_sentence(dataset.name, found))


def left_out_sentence(dataset: str, found: Mapping[str, Sequence[str]]) -> str:
    """ "colours: 1 method is left out: description needs descriptions."."""
    are = "method is" if len(found) == 1 else "methods are"
    return f"{dataset}: {len(found)} {are} left out: {_needs(found)}."


def check_any_left(methods: Sequence[str], left_out: LeftOut) -> None:
    """Raises ValueError where all `methods` are left out of every set."""
    if methods and left_out and all(set(methods) <= found.keys() for found in left_out.values()):
        each = " On ".join(f"{name!r}: {_needs(found)}." for name, found in left_out.items())
        raise ValueError(
            f"No method of those that are named can be measured. On {each} Name another method, or "
            "give what these need."
        )


def _needs(found: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name} needs {' and '.join(needs)}" for name, needs in found.items())
