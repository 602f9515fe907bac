"""Images beside a zero-shot set, for the methods that look at some: labelled ones, and captioned
ones of other things.
"""

from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grain_jax.config import DataConfig
from grain_jax.data.image_variants import VARIANTS
from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluation.caption_bank import CaptionedImages, encode_bank, load_bank
from grain_jax.evaluation.shared_images import BY_OPTIONS, Wording, refuse_shared
from grain_jax.evaluation.support import LabelledImages, encode_support, load_support
from grain_jax.inference.encoder import Encoder
from grain_jax.zero_shot.method import CaptionBank, support_provides
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

Banks = MutableMapping[tuple[Path, str, int], CaptionedImages]


@dataclass(frozen=True, kw_only=True)
class GivenImages:
    """What was read, not encoded yet."""

    support: LabelledImages | None = None
    bank: CaptionedImages | None = None
    # of `NEEDS`; images without labels are those that are tested
    fulfilled: frozenset[str] = frozenset({"unlabeled"})

    @property
    def described(self) -> dict[str, Mapping[str, Any]]:
        """What a result says of them."""
        read = {"support": self.support, "bank": self.bank}
        return {name: images.described for name, images in read.items() if images is not None}

    def encode(
        self, encoder: Encoder, banks: MutableMapping[int, CaptionBank] | None = None
    ) -> dict[str, Any]:
        """The arguments "support" and "bank" of `evaluate_zero_shot`.

        `banks`: those that were encoded before, by the identity of their images, so that a bank of
        several sets is encoded once. Labelled images are encoded for each set.
        """
        banks = {} if banks is None else banks
        if self.bank is not None and id(self.bank) not in banks:
            banks[id(self.bank)] = encode_bank(encoder, self.bank)
        return {
            "support": None if self.support is None else encode_support(encoder, self.support),
            "bank": None if self.bank is None else banks[id(self.bank)],
        }


def of_option(name: str) -> str:
    """Which of `FULFILS` an option says more of; itself, if it is one."""
    return of_option(GOES_WITH[name]) if name in GOES_WITH else name


def takers(name: str, methods: Collection[str] = METHODS.keys()) -> list[str]:
    """Which of the methods look at what an option of `FULFILS` gives."""
    return [method for method in methods if METHODS[method].needs & FULFILS[name]]


def read_given_images(
    dataset: ZeroShotSet,
    data: DataConfig,
    *,
    image_size: int,
    support: Path | None = None,
    support_split: str | None = None,
    shots: int | None = None,
    support_seed: int | None = None,
    bank: Path | None = None,
    bank_split: str | None = None,
    bank_size: int | None = None,
    classes: str = "",
    naming: Mapping[str, Any],
    banks: Banks | None = None,
    wording: Wording = BY_OPTIONS,
    note: Callable[[str], None],
) -> GivenImages:
    """Lists labelled images and captions, for the classes of a set.

    Args:
        data: settings that prepared records are read by.
        image_size: pixels a side of images that are drawn.
        support: labelled images, their split, how many of each class, drawn by which seed (0).
        bank: prepared records with captions, their split (train) and most images (20,000).
        classes: file of class names, where one was given.
        naming: further arguments of `load_support` on names.
        banks: those that were read before, of which none is read or hashed again.
        wording: what messages call the set, what it is given, and settings.

    Raises ValueError as `load_support` and `load_bank`, and where an image is one of the set.
    """
    fulfilled, labelled, captioned = frozenset({"unlabeled"}), None, None
    if support is not None:
        labelled = load_support(
            support,
            dataset,
            shots=shots,
            split=support_split,
            seed=support_seed or 0,
            classes=classes,
            **naming,
            wording=wording,
            note=note,
        )
        fulfilled |= support_provides(
            labelled.labels, len(dataset.class_names), captioned=labelled.captions is not None
        )
    if bank is not None:
        banks = {} if banks is None else banks
        split, size = bank_split or BANK_SPLIT, bank_size or BANK_SIZE
        key = bank.absolute(), split, size
        if key not in banks:
            banks[key] = load_bank(
                bank,
                data,
                split=split,
                size=size,
                image_size=image_size,
                wording=wording,
                note=note,
            )
        captioned = banks[key]
        where = f"captioned images of {wording.bank}"
        refuse_shared(captioned.hashed, dataset, where=where, data=wording.data)
        fulfilled |= {"bank"}
    return GivenImages(support=labelled, bank=captioned, fulfilled=fulfilled)
