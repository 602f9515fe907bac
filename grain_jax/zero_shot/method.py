"""What a zero-shot method is: what it needs, and how it is fitted to the texts of some classes.

A method is a pure function of cached embeddings, `Fit`. It is called once for a set of classes and
returns a `Score`, which is called with block after block of images. `METHODS` in `methods.py` has
all of them.
"""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from grain_jax.data.image_variants import VARIANTS
from grain_jax.zero_shot.scorers import ClassTexts, TextBank

Made = TypeVar("Made")
Unit = Literal["cosine", "log_probability", "probability", "other"]
Score = Callable[["Images", float | None], Float[np.ndarray, "n K"]]  # higher is more similar


@dataclass(frozen=True, eq=False)  # so that they can be a key, which keeps them
class Images:
    """Embeddings of n images, of unit length."""

    image: Float[np.ndarray, "n E"]
    regions: Float[np.ndarray, "n Q E"] | None = None  # None: the model has none
    # by kind (`VARIANTS` of data/image_variants.py): of each image's V variants, those methods need
    variants: Mapping[str, Float[np.ndarray, "n V E"]] = field(default_factory=dict)
    _made: dict[Hashable, object] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.image)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What several methods make of these images, made by the first of them.

        The key is kept with it: an object in it, unlike its `id`, stays the one that it was.
        """
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]  # type: ignore[assignment]
        return made


@dataclass(frozen=True)
class Support:
    """Labelled images: embeddings of unit length, and the class of each."""

    image: Float[np.ndarray, "S E"]
    labels: Int[np.ndarray, "S"]  # in the order of the classes
    captions: Float[np.ndarray, "S E"] | None = None  # of each image's caption, where it has one

    def provides(self, num_classes: int) -> frozenset[str]:
        """What of `Method.needs` it fulfils where there are so many classes."""
        return support_provides(self.labels, num_classes, captioned=self.captions is not None)


def support_provides(
    labels: Int[np.ndarray, "S"], num_classes: int, *, captioned: bool
) -> frozenset[str]:
    """What of `Method.needs` labelled images fulfil; `captioned`: whether all have captions."""
    counts = np.bincount(labels, minlength=num_classes)
    found = {
        "support": (counts > 0).all(),
        "several_shots": (counts > 0).all() and (counts > 1).any(),
        "support_captions": captioned,
        "classes_without_images": (counts > 0).sum() > 1 and (counts == 0).any(),
    }
    return frozenset(need for need, there in found.items() if there)


@dataclass(frozen=True, eq=False)  # so that it can be a key, which keeps it
class CaptionBank:
    """Captions of images that have nothing to do with the classes, such as training images."""

    captions: tuple[str, ...]
    text: Float[np.ndarray, "M E"]  # embeddings of the captions
    # called once, by the first method that looks at the images
    encode_images: Callable[[], Float[np.ndarray, "M E"]]
    encode: Callable[[Sequence[str]], Float[np.ndarray, "T E"]]  # further texts, as captions

    @functools.cached_property
    def image(self) -> Float[np.ndarray, "M E"]:
        """Embeddings of the images that they are captions of."""
        return self.encode_images()


def required(given: Made | None, *, what: str, option: str) -> Made:
    """What a method was given. Raises ValueError for None, with `what` it takes and by which
    `option` of `Fit`.
    """
    if given is None:
        raise ValueError(f"This method takes {what} and was given none; pass {option}.")
    return given


def labelled_images(support: Support | None) -> Support:
    """The labelled images of a method that takes some; ValueError where it was given none."""
    return required(support, what="labelled images of the classes", option="support=")


def variants_of(images: Images, kind: str) -> Float[np.ndarray, "n V E"]:
    """Embeddings of the images' variants of a kind; ValueError where there are none."""
    given = images.variants.get(kind)
    return required(given, what=f"embeddings of variants, {kind!r}", option="Images.variants")


def caption_bank(bank: CaptionBank | None) -> CaptionBank:
    """The captions of a method that takes some; ValueError where it was given none."""
    return required(bank, what="images of a caption bank", option="bank=")


@dataclass(frozen=True)
class ClassBanks:
    """The encoded texts of K classes by their kind (`TEXT_KINDS`), and how they are combined."""

    texts: ClassTexts
    banks: Mapping[str, TextBank]
    # See `scorers.global_scores`; of methods that score the names' prompts (`docs/zero-shot.md`)
    prompt_ensembling: str = "embedding"
    region_aggregation: str = "max_over_queries"  # see `scorers.region_scores`
    logit_scale: float = 100.0  # what cosines are multiplied by where a method takes a softmax

    def __getitem__(self, kind: str) -> TextBank:
        return self.banks[kind]

    @property
    def scoring(self) -> dict[str, str]:
        """How texts and regions are combined, by the names of the settings."""
        return {
            "prompt_ensembling": self.prompt_ensembling,
            "region_aggregation": self.region_aggregation,
        }

    def get(self, kind: str) -> TextBank | None:
        """None where the model or the classes have no such texts."""
        return self.banks.get(kind)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.texts.names)

    @property
    def num_texts(self) -> int:
        """Different texts, over all kinds."""
        return sum(len(bank.embed) for bank in self.banks.values())


@runtime_checkable
class Fit(Protocol):
    """A method's function.

    Args:
        texts: of the classes, with the kinds that the method needs.
        bank: captions, of a method that needs them.
        support: labelled images, likewise.
        unlabeled: images without labels; those that are tested, unless others are given.
    """

    def __call__(
        self,
        texts: ClassBanks,
        *,
        bank: CaptionBank | None = None,
        support: Support | None = None,
        unlabeled: Images | None = None,
    ) -> Score: ...


@runtime_checkable
class Alphas(Protocol):
    """Those of the `given` alphas at which a method is measured; None: it has no alpha."""

    def __call__(self, given: Sequence[float], *, has_regions: bool) -> Sequence[float | None]: ...


def no_alpha(given: Sequence[float], *, has_regions: bool) -> Sequence[float | None]:
    """A method that does not weigh the image against its regions."""
    return (None,)


@dataclass(frozen=True)
class Method:
    """An entry of `METHODS`.

    Args:
        title: in tables.
        source: the paper that it is from.
        texts: kinds of class texts that it needs (`TEXT_KINDS`).
        fit: see `Fit`.
        alphas: where it is measured.
        optional_texts: kinds that it uses where there are any.
        regions: whether it needs region embeddings.
        needs: what else `fit` takes: "bank", "unlabeled", and of labelled images "support",
            "several_shots", "support_captions", "classes_without_images" (`NEEDS`). Kinds of
            `VARIANTS`: `Score` takes images with embeddings of such variants, each of which is a
            further pass through the image encoder.
        unit: of scores: "cosine", also where something is added that was divided by the logit
            scale; "log_probability"; "probability", with a sum of 1 over the classes; or "other",
            which says nothing but the order.
        prompt_ensembling: whether scores of names are combined as `ClassBanks.prompt_ensembling`
            has it; all others do as their formulas say.
    """

    title: str
    source: str
    texts: frozenset[str]
    fit: Fit
    alphas: Alphas = no_alpha
    optional_texts: frozenset[str] = frozenset()
    regions: bool = False
    needs: frozenset[str] = frozenset()
    unit: Unit = "cosine"
    prompt_ensembling: bool = False

    @property
    def variants(self) -> frozenset[str]:
        """Kinds of variants of images that it needs; none: each image is encoded once."""
        return frozenset(self.needs & VARIANTS.keys())
