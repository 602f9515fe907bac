"""Options of `evaluate` that give some zero-shot methods labelled images, or captions of others."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from grain_jax.command_line import OptionalCount, OptionalText, default_is, integer, one_word
from grain_jax.config import DataConfig
from grain_jax.data.classification.stored import is_stored
from grain_jax.data.image_variants import VARIANTS
from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluation.caption_bank import CaptionedImages, encode_bank, load_bank
from grain_jax.evaluation.shared_images import refuse_shared
from grain_jax.evaluation.support import LabelledImages, encode_support, load_support
from grain_jax.inference.encoder import Encoder
from grain_jax.paths import local_path
from grain_jax.zero_shot.method import support_provides
from grain_jax.zero_shot.methods import METHODS, NEEDS

BANK_SPLIT, BANK_SIZE = "train", 20_000
# Option -> the needs of methods that it fulfils.
FULFILS = {
    "support": frozenset(NEEDS) - {"bank", "unlabeled"} - VARIANTS.keys(),
    "bank": frozenset({"bank"}),
}
# Option -> the one without which it says nothing.
GOES_WITH = {
    "support_split": "support",
    "shots": "support",
    "support_seed": "shots",
    "bank_split": "bank",
    "bank_size": "bank",
}

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
    given = [field.name for field in fields(options) if getattr(options, field.name) is not None]
    if given and not is_labelled:
        raise ValueError(f"--{given[0]} goes with labelled images; leave it out or change --data.")
    for name in given:
        if (other := GOES_WITH.get(name, name)) not in given:
            raise ValueError(f"--{name} goes with --{other}; give both, or leave it out.")
    if options.support_seed is not None and options.support_seed < 0:
        raise ValueError(f"--support_seed={options.support_seed} should be 0 or more.")
    for name, needs in FULFILS.items():
        if name in given and not any(METHODS[method].needs & needs for method in methods):
            takers = [method for method, one in METHODS.items() if one.needs & needs]
            raise ValueError(
                f"--{name} is looked at by none of the methods {', '.join(methods)}; name some of "
                f"{', '.join(takers)} with --methods, or leave it out."
            )
    same = options.support and data and options.support.resolve() == data.resolve()
    # Of tars, tables and TFDS, other splits are other images.
    if same and options.support and not is_stored(options.support):
        raise ValueError(
            f"--support={options.support} is the folder of --data: a method would be given the "
            "answers. Give labelled images that are not tested."
        )


@dataclass(frozen=True)
class Given:
    """What was read, not encoded yet."""

    support: LabelledImages | None
    bank: CaptionedImages | None
    fulfilled: frozenset[str]  # of `NEEDS`; images without labels are those that are tested

    @property
    def described(self) -> dict[str, Mapping[str, Any]]:
        """What a result says of them."""
        read = {"support": self.support, "bank": self.bank}
        return {name: images.described for name, images in read.items() if images is not None}

    def encode(self, encoder: Encoder) -> dict[str, Any]:
        """The arguments "support" and "bank" of `evaluate_zero_shot`."""
        return {
            "support": None if self.support is None else encode_support(encoder, self.support),
            "bank": None if self.bank is None else encode_bank(encoder, self.bank),
        }


def read(
    options: SupportOptions,
    dataset: ZeroShotSet,
    data: DataConfig,
    *,
    image_size: int,
    classes: str = "",
    naming: Mapping[str, Any],
    note: Callable[[str], None],
) -> Given:
    """Lists the images and captions that the options name, for the classes of a set.

    Args:
        data: settings that prepared records are read by.
        image_size: pixels a side of images that are drawn.
        classes: file of class names, where one was given.
        naming: further arguments of `load_support` on names.

    Raises ValueError as `load_support` and `load_bank`.
    """
    fulfilled, support, bank = frozenset({"unlabeled"}), None, None
    if options.support is not None:
        support = load_support(
            options.support,
            dataset,
            shots=options.shots,
            split=options.support_split,
            seed=options.support_seed or 0,
            classes=classes,
            **naming,
            note=note,
        )
        captioned = support.captions is not None
        fulfilled |= support_provides(support.labels, len(dataset.class_names), captioned=captioned)
    if options.bank is not None:
        bank = load_bank(
            options.bank,
            data,
            split=options.bank_split or BANK_SPLIT,
            size=options.bank_size or BANK_SIZE,
            image_size=image_size,
            note=note,
        )
        records = (bank.source[index] for index in range(len(bank.source)))
        refuse_shared(records, dataset, where="captioned images of --bank")
        fulfilled |= {"bank"}
    return Given(support, bank, fulfilled)
