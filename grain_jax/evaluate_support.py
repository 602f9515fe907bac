"""Options of `evaluate` that give some zero-shot methods labelled images, or captions of others."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from grain_jax.command_line import OptionalCount, OptionalText, default_is, integer, one_word
from grain_jax.data.classification.stored import is_stored
from grain_jax.evaluation.given_images import (
    BANK_SIZE,
    BANK_SPLIT,
    FULFILS,
    GOES_WITH,
    takers,
)
from grain_jax.paths import local_path

_no_default = arg(help_behavior_hint="")
_Folder = Annotated[Path | None, one_word(local_path, "PATH"), _no_default]


@dataclass(frozen=True)
class SupportOptions:
    """What `evaluate` takes for such methods."""

    # labelled images that are not tested, for methods that look at some
    support: _Folder = None
    # of --support in tars, tables or TFDS
    support_split: Annotated[OptionalText, default_is("train, or test")] = None
    # of --support, images of each class
    shots: Annotated[OptionalCount, default_is("all")] = None
    # of --shots, which images are drawn
    support_seed: Annotated[int | None, one_word(integer, "N"), default_is("0")] = None
    # prepared records with captions, for methods that look at captions of other images
    bank: _Folder = None
    # of --bank
    bank_split: Annotated[OptionalText, default_is(BANK_SPLIT)] = None
    # of --bank, most images
    bank_size: Annotated[OptionalCount, default_is(str(BANK_SIZE))] = None

    @property
    def given(self) -> dict[str, Any]:
        """Those that were given, arguments of `read_given_images`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def check(
    options: SupportOptions,
    *,
    data: Path | None,
    is_labelled: bool,
    methods: Collection[str],
) -> None:
    """Raises ValueError for what would say nothing, before anything is loaded.

    Args:
        data: what is tested; `is_labelled`: it is labelled images.
        methods: those that are measured.
    """
    given = list(options.given)
    if given and not is_labelled:
        raise ValueError(f"--{given[0]} goes with labelled images; leave it out or change --data.")
    for name in given:
        if (other := GOES_WITH.get(name, name)) not in given:
            raise ValueError(f"--{name} goes with --{other}; give both, or leave it out.")
    if options.support_seed is not None and options.support_seed < 0:
        raise ValueError(f"--support_seed={options.support_seed} should be 0 or more.")
    for name in FULFILS:
        if name in given and not takers(name, methods):
            raise ValueError(
                f"--{name} is looked at by none of the methods {', '.join(methods)}; name some of "
                f"{', '.join(takers(name))} with --methods, or leave it out."
            )
    same = options.support and data and options.support.resolve() == data.resolve()
    # Of tars, tables and TFDS, other splits are other images.
    if same and options.support and not is_stored(options.support):
        raise ValueError(
            f"--support={options.support} is the folder of --data: a method would be given the "
            "answers. Give labelled images that are not tested."
        )
