"""Methods that were asked for: which cannot be measured on a set, and which cost more passes."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

from grain_jax.data.image_variants import VARIANTS, VariantKind
from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluation.variants import passes, possible_variants
from grain_jax.zero_shot.methods import METHODS, lacking
from grain_jax.zero_shot.scorers import class_texts

NAMED = 3  # methods that a sentence on the console names
LeftOut = dict[str, dict[str, list[str]]]  # set -> method -> what it needs


def note_left_out(
    methods: Sequence[str],
    dataset: ZeroShotSet,
    *,
    has_regions: bool,
    note: Callable[[str], None],
    num_boxes: int = 0,
    given: Collection[str] = ("unlabeled",),
    left_out: LeftOut,
    kinds: Mapping[str, VariantKind] = VARIANTS,
    draws: int = 1,
) -> None:
    """Adds to `left_out`, under the name of the set, which of the `methods` a set, a model or what
    is `given` lack something for. Says in one sentence which of the others encode each image again,
    and how often.

    `num_boxes` are those that the model predicts for an image; 0: it has no trained boxes. `kinds`
    are the variants that images are encoded as, those that are random in so many `draws`.
    """
    texts = class_texts(dataset)
    given = {*given, *possible_variants(has_boxes=num_boxes > 0)}
    found = {
        name: needs
        for name in methods
        if (needs := lacking(name, texts, has_regions=has_regions, given=given))
    }
    counted = functools.partial(passes, num_boxes=num_boxes, kinds=kinds, draws=draws)
    _note_passes([name for name in methods if name not in found], dataset, counted, note)
    left_out[dataset.name] = found


def left_out_sentences(left_out: LeftOut) -> list[str]:
    """ "colours, pets: 1 method is left out: description needs descriptions."; a sentence for the
    sets that lack the same. Of more than `NAMED` methods the first are named, and where the file of
    results has all.
    """
    sets: dict[str, list[str]] = {}
    for dataset, found in left_out.items():
        if found:
            sets.setdefault(_short(found), []).append(dataset)
    return [f"{', '.join(names)}: {sentence}" for sentence, names in sets.items()]


def _short(found: Mapping[str, Sequence[str]]) -> str:
    are = "method is" if len(found) == 1 else "methods are"
    if len(found) <= NAMED:
        return f"{len(found)} {are} left out: {_needs(found)}."
    first = ", ".join(list(found)[:NAMED])
    return (
        f"{len(found)} {are} left out: {first} and {len(found) - NAMED} more. The JSON has all of "
        'them in "left_out", with what each needs.'
    )


def check_any_left(methods: Sequence[str], left_out: LeftOut) -> None:
    """Raises ValueError where all `methods` are left out of every set."""
    if methods and left_out and all(set(methods) <= found.keys() for found in left_out.values()):
        each = " On ".join(f"{name!r}: {_needs(found)}." for name, found in left_out.items())
        raise ValueError(
            f"No method of those that are named can be measured. On {each} Name another method, or "
            "give what these need."
        )


def _needs(found: Mapping[str, Sequence[str]]) -> str:
    """Methods that need the same in one breath."""
    alike: dict[str, list[str]] = {}
    for name, needs in found.items():
        alike.setdefault(" and ".join(needs), []).append(name)
    return "; ".join(
        f"{', '.join(names)} need{'s' if len(names) == 1 else ''} {needs}"
        for needs, names in alike.items()
    )


def _note_passes(
    methods: Sequence[str],
    dataset: ZeroShotSet,
    passes_of: Callable[[Collection[str]], int],
    note: Callable[[str], None],
) -> None:
    kinds = {name: METHODS[name].variants for name in methods if METHODS[name].variants}
    if not kinds:
        return
    each = ", ".join(f"{name} ({passes_of(own)})" for name, own in kinds.items())
    total = passes_of(frozenset().union(*kinds.values()))
    note(
        f"{dataset.name}: each of the {len(dataset.source):,} images goes through the encoder "
        f"{total} times, not once, for {each}."
    )
