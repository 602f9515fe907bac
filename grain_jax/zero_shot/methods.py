"""Zero-shot methods: which texts of a class an image is compared with, and how scores are made.

A method is an entry of `METHODS`; `method.py` says what it consists of. A contract test runs over
every entry (`tests/zero_shot/test_methods.py`).
"""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from grain_jax.data import image_variants
from grain_jax.results import keyed
from grain_jax.zero_shot import (
    by_adapter,
    by_captions,
    by_support,
    by_text,
    classifier_injection,
)
from grain_jax.zero_shot.class_text_methods import CLASS_TEXT_METHODS
from grain_jax.zero_shot.method import (
    CaptionBank,
    ClassBanks,
    Images,
    Method,
    Score,
    Support,
    no_alpha,
)
from grain_jax.zero_shot.scorers import ClassTexts
from grain_jax.zero_shot.second_pass import SECOND_PASS_METHODS
from grain_jax.zero_shot.text_kinds import (
    DESCRIPTIONS,
    DRAWN,
    IN_TEMPLATE,
    NAMES,
    OF_DESCRIPTIONS,
    REGIONS,
    TEXT_KINDS,
    UNPROMPTED,
    EncodeTexts,
    encode_kinds,
    source_of,
)
from grain_jax.zero_shot.unlabeled_methods import UNLABELED_METHODS

CLIP = "Radford et al. 2021, arXiv 2103.00020"
GRAIN = "GRAIN, WACV 2026, arXiv 2412.04429"

METHODS: Mapping[str, Method] = {
    "name": Method(
        "name",
        CLIP,
        frozenset({NAMES}),
        by_text.by_name,
        prompt_ensembling=True,
    ),
    "description": Method(
        "description",
        "Menon & Vondrick 2023, arXiv 2210.07183, and " + GRAIN,
        frozenset({DESCRIPTIONS}),
        by_text.by_description,
        by_text.every_alpha,
        optional_texts=frozenset({REGIONS}),
    ),
    "name_and_regions": Method(
        "name + regions",
        GRAIN,
        frozenset({NAMES, REGIONS}),
        by_text.by_name_and_regions,
        by_text.mixed_alphas,
        regions=True,
        prompt_ensembling=True,
    ),
    **CLASS_TEXT_METHODS,
    # With labelled images, so not zero-shot.
    "examples": Method(
        "names and examples",
        "mean images and names on one scale, measured on the examples",
        frozenset({NAMES}),
        by_support.by_examples,
        needs=frozenset({"support"}),
        prompt_ensembling=True,
    ),
    "knn": Method(
        "kNN + name",
        "Jia et al. 2021, arXiv 2112.08459",
        frozenset({NAMES}),
        by_support.by_neighbours,
        needs=frozenset({"support"}),
        unit="probability",
        prompt_ensembling=True,
    ),
    "gda": Method(
        "GDA + name",
        "Wang et al. 2024, arXiv 2402.04087",
        frozenset({NAMES}),
        by_support.by_gaussians,
        needs=frozenset({"support", "several_shots"}),
        prompt_ensembling=True,
    ),
    "tip_x": Method(
        "TIP-X",
        "Udandarao et al. 2023, arXiv 2211.16198",
        frozenset({NAMES}),
        by_adapter.by_tip_x,
        needs=frozenset({"support"}),
        prompt_ensembling=True,
    ),
    "caps_adapter": Method(
        "CapS-Adapter",
        "Wang et al. 2024, arXiv 2405.16591",
        frozenset({NAMES}),
        by_adapter.by_caps_adapter,
        needs=frozenset({"support", "support_captions"}),
        prompt_ensembling=True,
    ),
    "icis": Method(
        "ICIS",
        "Christensen et al. 2023, arXiv 2308.10599",
        frozenset({NAMES}),
        classifier_injection.by_classifier_injection,
        needs=frozenset({"classes_without_images"}),
    ),
    # With captions of other images.
    "x_more": Method(
        "X-MoRe",
        "Eom et al. 2023, arXiv 2308.15273",
        frozenset({NAMES}),
        by_captions.by_x_more,
        needs=frozenset({"bank"}),
        unit="probability",
        prompt_ensembling=True,
    ),
    "cased": Method(
        "CaSED over the classes",
        "Conti et al. 2023, arXiv 2306.00917",
        frozenset({NAMES}),
        by_captions.by_cased,
        needs=frozenset({"bank"}),
        unit="probability",
        prompt_ensembling=True,
    ),
    **UNLABELED_METHODS,
    # With a second pass of the image encoder.
    **SECOND_PASS_METHODS,
}
NEEDS = {
    "bank": "captions of other images (--bank)",
    "support": "labelled images of every class (--support)",
    "several_shots": "two labelled images or more of a class (--support, --shots)",
    "support_captions": "a caption of every labelled image (captions.json in --support)",
    "classes_without_images": "labelled images of some classes only, two or more (--support)",
    "unlabeled": "images without labels",
    "random_crops": "images that can be encoded again",
    "box_crops": "a model with trained boxes",
    "box_blurs": "a model with trained boxes",
}
# What a method with such a need looks at beside the class texts, in words.
USES = {
    "support": "labelled images",
    "classes_without_images": "labelled images",
    "support_captions": "their captions",
    "unlabeled": "all test images",
    "bank": "captions of other images",
    "random_crops": "random crops",
    "box_crops": "crops at its boxes",
    "box_blurs": "blur outside its boxes",
}
# A setting of `evaluate` that only some methods read -> whether one does. The region score is there
# to be mixed in.
READ_BY: Mapping[str, Callable[[Method], bool]] = {
    "alphas": lambda method: method.alphas is not no_alpha,
    "region_aggregation": lambda method: method.alphas is not no_alpha,
    "prompt_ensembling": lambda method: method.prompt_ensembling,
    "description_template": lambda method: bool(method.texts & IN_TEMPLATE),
    "descriptions": lambda method: bool((method.texts | method.optional_texts) & OF_DESCRIPTIONS),
    "templates": lambda method: bool((method.texts | method.optional_texts) - UNPROMPTED),
}
DEFAULT_METHODS = ("name", "description", "name_and_regions")


# Those of `--methods=all`: with the others every image is encoded again, some tens of times.
ONE_PASS = tuple(name for name, method in METHODS.items() if not method.variants)


def named_methods(names: Sequence[str]) -> tuple[str, ...]:
    """The methods of a list, each once; "all" stands for those that encode an image once.

    Raises ValueError for a method that there is not.
    """
    every = [each for name in names for each in (ONE_PASS if name == "all" else (name,))]
    found = tuple(dict.fromkeys(every))
    check_methods(found)
    return found


def check_methods(names: Collection[str]) -> None:
    """Raises ValueError for a method that there is not."""
    if unknown := sorted(set(names) - set(METHODS)):
        near = difflib.get_close_matches(unknown[0], METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown method {unknown[0]!r}; choose among {', '.join(METHODS)}.{hint}")


def lacking(
    name: str, texts: ClassTexts, *, has_regions: bool, given: Collection[str] = ()
) -> list[str]:
    """What a method needs and these classes, the model and what is `given` (keys of `NEEDS`) do
    not have, in words; empty where it can be measured.
    """
    method = METHODS[name]
    missing = [kind for kind in sorted(method.texts) if TEXT_KINDS[kind].make(texts) is None]
    found = list(dict.fromkeys(map(source_of, missing)))
    if not has_regions and (
        method.regions or any(TEXT_KINDS[kind].encoded_as == "description" for kind in method.texts)
    ):
        found.append("a model with trained regions")
    found += [NEEDS[need] for need in sorted(method.needs - set(given))]
    return list(dict.fromkeys(found))


def given_needs(
    num_classes: int,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
    variants: Collection[str] = (),
) -> frozenset[str]:
    """Which of `NEEDS` are fulfilled where these are given for so many classes."""
    found = {"bank": bank, "unlabeled": unlabeled}
    there = frozenset(need for need, what in found.items() if what is not None) | set(variants)
    return there if support is None else there | support.provides(num_classes)


def titled(name: str) -> str:
    """The key and title of a method with what it looks at beside the class texts."""
    method = METHODS[name]
    used = dict.fromkeys(USES[need] for need in USES if need in method.needs)
    title = keyed(name, method.title)
    return f"{title} ({', '.join(used)})" if used else title


def kinds_of(methods: Collection[str]) -> frozenset[str]:
    """Kinds of texts that the `methods` compare images with."""
    chosen = [METHODS[name] for name in methods]
    return frozenset().union(*(one.texts | one.optional_texts for one in chosen))


def readers(setting: str, names: Collection[str]) -> tuple[str, ...]:
    """Those of the methods whose scores a setting of `READ_BY` can change."""
    return tuple(name for name in names if READ_BY[setting](METHODS[name]))


def crop_methods(names: Collection[str]) -> tuple[str, ...]:
    """Those of the methods that look at random crops of an image."""
    return tuple(name for name in names if image_variants.RANDOM_CROPS in METHODS[name].variants)


def drawn_methods(names: Collection[str]) -> tuple[str, ...]:
    """Those of the methods whose texts, or variants of images, are drawn at random."""
    return tuple(
        name
        for name in names
        if METHODS[name].texts & DRAWN or METHODS[name].variants & image_variants.DRAWN
    )


def encode_banks(
    encode_texts: EncodeTexts,
    texts: ClassTexts,
    *,
    methods: Collection[str],
    has_regions: bool,
    prompt_ensembling: str = "embedding",
    region_aggregation: str = "max_over_queries",
    logit_scale: float = 100.0,
) -> ClassBanks:
    """Encodes what the `methods` compare images with; `has_regions`: whether the model has any.

    Kinds that the classes have no texts of are left out.
    """
    banks = encode_kinds(encode_texts, texts, kinds_of(methods), has_regions=has_regions)
    return ClassBanks(texts, banks, prompt_ensembling, region_aggregation, logit_scale)


class FittedMethods:
    """The methods that can score K classes, fitted to them; those whose texts or images there are
    not are left out.

    Args:
        banks: texts of the classes.
        methods: keys of `METHODS`.
        alphas: weights of the global score against the region score, for methods that mix them.
        has_regions: whether the images have region embeddings.
        bank, support, unlabeled: see `Fit`.
        variants: kinds of `VARIANTS` that images come with (`variants_needed` says which of them
            the fitted methods look at).
    """

    def __init__(
        self,
        banks: ClassBanks,
        *,
        methods: Collection[str],
        alphas: Sequence[float],
        has_regions: bool,
        bank: CaptionBank | None = None,
        support: Support | None = None,
        unlabeled: Images | None = None,
        variants: Collection[str] = (),
    ):
        there = given_needs(
            banks.num_classes, bank=bank, support=support, unlabeled=unlabeled, variants=variants
        )
        self.num_classes = banks.num_classes
        self.scores: dict[str, Score] = {}
        self.alphas: dict[str, Sequence[float | None]] = {}
        for name, method in METHODS.items():
            if (
                name not in methods
                or not method.texts <= banks.banks.keys()
                or not method.needs <= there
                or (method.regions and not has_regions)
            ):
                continue
            mixes = has_regions and method.optional_texts <= banks.banks.keys()
            if measured := method.alphas(alphas, has_regions=mixes):
                self.alphas[name] = measured
                self.scores[name] = method.fit(
                    banks, bank=bank, support=support, unlabeled=unlabeled
                )

    @property
    def variants_needed(self) -> frozenset[str]:
        """Kinds of variants that images must come with."""
        return frozenset().union(*(METHODS[name].variants for name in self.scores))

    def __call__(self, images: Images) -> dict[tuple[str, float | None], Float[np.ndarray, "n K"]]:
        """Scores of n images for K classes by method and alpha."""
        return {
            (name, alpha): score(images, alpha)
            for name, score in self.scores.items()
            for alpha in self.alphas[name]
        }
