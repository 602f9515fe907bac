"""What a zero-shot method costs on a set: texts that are encoded, and passes of an image."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from grain_jax.data.image_variants import VARIANTS, VariantKind
from grain_jax.evaluation.variants import passes
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Support
from grain_jax.zero_shot.methods import METHODS, kinds_of
from grain_jax.zero_shot.text_kinds import DRAWN, TEXT_KINDS


@dataclass(frozen=True)
class Cost:
    """Of one method; methods share embeddings, so a sum over methods counts some twice.

    Args:
        texts: different texts that are encoded for it; one that is encoded for the image and for
            its regions counts twice.
        passes: how often an image goes through the image encoder, 1 where it is encoded once.
    """

    texts: int
    passes: int


class EncodedTexts:
    """Which class texts were encoded, by kind."""

    def __init__(self) -> None:
        self._number: dict[tuple[str, str], int] = {}
        self._rows: dict[str, Int[np.ndarray, _]] = {}

    def add(self, banks: ClassBanks) -> None:
        """Those of one draw; of kinds that are not random the first ones are all there are."""
        number = self._number
        for kind, bank in banks.banks.items():
            if kind in self._rows and kind not in DRAWN:
                continue
            encoded_as = TEXT_KINDS[kind].encoded_as
            keys = ((encoded_as, text) for text in bank.texts)
            rows = np.array([number.setdefault(key, len(number)) for key in keys], int)
            before = self._rows.get(kind)
            self._rows[kind] = rows if before is None else np.union1d(before, rows)

    def count(self, method: str) -> int:
        """Different ones among the kinds that a method of `METHODS` takes."""
        own = [self._rows[kind] for kind in kinds_of((method,)) if kind in self._rows]
        if len(own) < 2:
            return sum(map(len, own))
        return len(np.unique(np.concatenate(own)))


def method_costs(
    methods: Collection[str],
    encoded: EncodedTexts,
    *,
    num_boxes: int = 0,
    kinds: Mapping[str, VariantKind] = VARIANTS,
    draws: int = 1,
    bank: CaptionBank | None = None,
    support: Support | None = None,
) -> dict[str, Cost]:
    """The cost of each of the `methods`, which are those that were measured.

    `num_boxes`, `kinds` and `draws` as `variants.passes` takes them. Captions of `bank` and
    `support` count for the methods that need them.
    """
    captions = {"bank": 0, "support_captions": 0}
    if bank is not None:
        captions["bank"] = len(set(bank.captions))
    if support is not None and support.captions is not None:
        captions["support_captions"] = len(np.unique(support.captions, axis=0))
    found = {}
    for name in methods:
        method = METHODS[name]
        further = sum(count for need, count in captions.items() if need in method.needs)
        found[name] = Cost(
            encoded.count(name) + further,
            passes(method.variants, num_boxes, kinds=kinds, draws=draws),
        )
    return found
