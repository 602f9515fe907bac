"""Options of `evaluate` on the random crops that some zero-shot methods look at."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Annotated, Any

from grain_jax.command_line import OptionalCount, default_is, fractions, integer, one_word
from grain_jax.data.image_variants import RandomCrops, crop_numbers
from grain_jax.zero_shot.methods import METHODS, crop_methods

_DEFAULT = RandomCrops()


def _sizes(text: str) -> tuple[float, ...]:
    sizes = fractions(text)
    if len(sizes) != 2 or not 0 < sizes[0] <= sizes[1]:
        raise ValueError(f"{text!r} should be the smallest and the largest, as in 0.7,0.9")
    return sizes


@dataclass(frozen=True)
class CropOptions:
    """What `evaluate` takes for such methods; what is given goes before what a suite says."""

    # random crops of each image, of methods that look at some
    crops: Annotated[OptionalCount, default_is(str(_DEFAULT.number))] = None
    # their sides, smallest and largest, in shorter sides of the image (WCA: 0.7,0.9 on Places)
    crop_sizes: Annotated[
        tuple[float, ...] | None,
        one_word(_sizes, "A,B"),
        default_is(f"{_DEFAULT.smallest},{_DEFAULT.largest}"),
    ] = None
    # which crops are drawn; --text_draws draws with the seeds after it too
    crop_seed: Annotated[int | None, one_word(integer, "N"), default_is(str(_DEFAULT.seed))] = None

    @property
    def numbers(self) -> dict[str, Any]:
        """Fields of `RandomCrops` that are given."""
        return crop_numbers(self.crops, self.crop_sizes, self.crop_seed)

    @property
    def given(self) -> dict[str, Any]:
        """The options that are given, as JSON."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if value is not None}


def check(options: CropOptions, methods: Collection[str]) -> None:
    """Raises ValueError where none of the methods looks at random crops."""
    if options.given and not crop_methods(methods):
        raise ValueError(
            f"--{next(iter(options.given))} is of methods with random crops, and none of those "
            f"that are measured has any; name some of {', '.join(crop_methods(METHODS))} with "
            "--methods, or leave it out."
        )
    if options.crop_seed is not None and options.crop_seed < 0:
        raise ValueError(f"--crop_seed={options.crop_seed} should be 0 or more.")
