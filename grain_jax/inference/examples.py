"""Example images of classes: checked, embedded once where equal, and fitted with the texts."""

import functools
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from grain_jax.data.transforms import Preprocessing
from grain_jax.inference.inputs import (
    ACCEPTED_IMAGES,
    ImageInput,
    ImageInputs,
    check_known,
    checked_mapping,
)
from grain_jax.inference.results import ImageEmbeddings
from grain_jax.inference.text_cache import RowCache
from grain_jax.zero_shot.examples import (
    EXAMPLE_WEIGHT,
    ExampleClasses,
    fit_examples,
    tells_nothing,
)
from grain_jax.zero_shot.method import Images, Score, Support

MAX_CACHED_EXAMPLES = 10_000  # images, each with its regions
TEXTS, EXAMPLES, BOTH = "texts", "examples", "both"  # what defines a class

ExampleImages = Mapping[str, Sequence[ImageInput] | ImageEmbeddings]


@dataclass(frozen=True, eq=False)
class EmbeddedExamples:
    """S different example images of classes, embedded by a model; those of a class together."""

    labels: tuple[str, ...]  # classes, each with at least one
    of: Int[np.ndarray, "S"]  # positions in `labels`
    image: Float[np.ndarray, "S E"]
    regions: Float[np.ndarray, "S Q E"] | None
    sha256: str  # of all of these

    def counts(self) -> dict[str, int]:
        """Images of each class; equal ones of a class are one."""
        return {
            label: int(count)
            for label, count in zip(self.labels, np.bincount(self.of), strict=True)
        }

    def shared(self) -> tuple[str, str] | None:
        """Two classes that have an example in common, if there are any."""
        first: dict[bytes, int] = {}
        for row, k in zip(self.image, self.of.tolist(), strict=True):
            other = first.setdefault(row.tobytes(), k)
            if other != k:
                return self.labels[other], self.labels[k]
        return None


class ExampleCache:
    """Embeddings of example images by their content, and the classes that were fitted last."""

    def __init__(
        self,
        encode: Callable[[ImageInputs], tuple[np.ndarray, np.ndarray | None]],
        preprocessing: Preprocessing,
    ):
        """`encode` gives the embeddings of images, and of their regions if the model has any."""
        self._encode, self._preprocessing, self._rows = encode, preprocessing, RowCache()
        self._fitted: tuple[object, ExampleClasses] | None = None

    def embed(self, examples: ExampleImages) -> EmbeddedExamples:
        """The examples of all classes, in one pass over what was not kept.

        Raises ValueError for what is no list of images, and `ImageError` for an image that cannot
        be read; both name the class.
        """
        images: list[ImageInput] = []
        names: list[str] = []
        for label, group in checked_examples(examples).items():
            if isinstance(group, ImageEmbeddings):
                continue
            images += group
            names += [_name_of(one, i, label) for i, one in enumerate(group)]
        inputs = ImageInputs(images, self._preprocessing, skip=False, names=names)
        rows = iter(self._embedded(inputs) if images else ())
        parts = {
            label: (group.image, group.regions)
            if isinstance(group, ImageEmbeddings)
            else _stacked([next(rows) for _ in group])
            for label, group in examples.items()
        }
        return _joined(parts)

    def fitted(self, key: object, make: Callable[[], ExampleClasses]) -> ExampleClasses:
        """What was fitted last if it was for this key, or is fitted now."""
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = key, make()
        return self._fitted[1]

    def _embedded(self, inputs: ImageInputs) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Embedding and regions of each image."""

        def make(missing: Sequence[Hashable]) -> Sequence[np.ndarray]:
            chosen = [first[key] for key in missing]
            image, regions = self._encode(inputs.part(chosen))
            if regions is None:
                return list(image[:, None])
            return list(np.concatenate([image[:, None], regions], axis=1))

        keys = [inputs.sha256(i) for i in range(len(inputs))]
        first: dict[Hashable, int] = {key: i for i, key in reversed(list(enumerate(keys)))}
        found = self._rows.get(keys, make, limit=MAX_CACHED_EXAMPLES)
        return [(row[0], row[1:] if len(row) > 1 else None) for row in found]


@dataclass(frozen=True)
class Definitions:
    """What defines each of K labels."""

    labels: tuple[str, ...]
    by_texts: Bool[np.ndarray, "K"]
    examples: EmbeddedExamples | None
    weight: float

    @property
    def named(self) -> tuple[str, ...]:
        """Labels that texts have a part in."""
        return tuple(label for label, told in zip(self.labels, self.by_texts, strict=True) if told)

    @property
    def one_tells_nothing(self) -> bool:
        """Whether one example is all that there is, which does not count."""
        return self.examples is not None and tells_nothing(len(self.examples.of), len(self.labels))

    @functools.cached_property
    def num_examples(self) -> tuple[int, ...]:
        """Of each label, examples that count."""
        given = self.examples
        counts = {} if given is None or self.one_tells_nothing else given.counts()
        return tuple(
            counts.get(label, 0) if self.weight > 0 or not told else 0
            for label, told in zip(self.labels, self.by_texts, strict=True)
        )

    @property
    def with_examples(self) -> bool:
        """Whether any label is scored by examples."""
        return any(self.num_examples)

    def defined_by(self, k: int) -> str | None:
        """`TEXTS`, `EXAMPLES` or `BOTH` of label k; None where no examples were given."""
        if self.examples is None:
            return None
        if not self.by_texts[k]:
            return EXAMPLES
        if not self.num_examples[k]:
            return TEXTS
        return BOTH if self.weight < 1 else EXAMPLES

    def scores(
        self,
        by_texts: Score | None,
        images: Images,
        alpha: float,
        cache: ExampleCache,
        *,
        key: object,
        logit_scale: float,
    ) -> Float[np.ndarray, "n K"]:
        """Scores of images for the labels.

        Args:
            by_texts: scores of the `named` labels; None where there are none.
            key: of the texts and the method, by which fitted classes are kept.
        """
        place = np.flatnonzero(self.by_texts)

        def text_scores(of: Images) -> Float[np.ndarray, "n K"]:
            if by_texts is None:
                return np.zeros((len(of), len(self.labels)), np.float32)
            found = by_texts(of, alpha)
            if len(place) == len(self.labels):
                return found
            spread = np.zeros((len(of), len(self.labels)), found.dtype)
            spread[:, place] = found
            return spread

        if self.examples is None or not self.with_examples:
            return text_scores(images)
        given = self.examples

        def fit() -> ExampleClasses:
            position = {label: k for k, label in enumerate(self.labels)}
            of = np.array([position[label] for label in given.labels])[given.of]
            return fit_examples(
                text_scores(Images(given.image, given.regions)),
                Support(given.image, of),
                self.by_texts,
                weight=self.weight,
                logit_scale=logit_scale,
            )

        whole = (key, self.labels, self.by_texts.tobytes(), given.sha256, self.weight)
        return cache.fitted(whole, fit)(text_scores(images), images.image)


def define(
    labels: Sequence[str],
    described: Mapping[str, Any],
    examples: EmbeddedExamples | None,
    *,
    weight: float | None = None,
    examples_only: Sequence[str] = (),
) -> Definitions:
    """What defines each label: its texts, its examples, or both.

    Raises ValueError for examples of what is no label, and for options that would change nothing.
    """
    if examples is None and (weight is not None or examples_only):
        option = "example_weight" if weight is not None else "examples_only"
        raise ValueError(f"{option} is about examples; give some, or leave it out.")
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(
            f"example_weight is the weight of examples against texts, given {weight:g}, expected 0 "
            "to 1."
        )
    if isinstance(examples_only, str):
        raise ValueError(f"examples_only takes a list of labels, not one: [{examples_only!r}].")
    with_examples = () if examples is None else examples.labels
    check_known(with_examples, labels, "examples")
    check_known(examples_only, labels, "examples_only")
    for label in examples_only:
        if label not in with_examples:
            raise ValueError(f"examples_only has {label!r}, which has no examples; give it some.")
        if label in described:
            raise ValueError(
                f"examples_only has {label!r}, which has descriptions; leave out one of the two."
            )
    only = frozenset(examples_only)
    defined = Definitions(
        tuple(labels),
        np.array([label not in only for label in labels], bool),
        examples,
        EXAMPLE_WEIGHT if weight is None else weight,
    )
    if defined.one_tells_nothing and (only or defined.weight == 1):
        option = "examples_only" if only else "example_weight=1"
        raise ValueError(
            f"{with_examples[0]!r} has the only example, and is to be found by it alone "
            f"({option}): how similar images of a label are is not known from one. Give it another "
            f"example, or one to another label, or leave out {option}."
        )
    return defined


def labels_of(
    descriptions: Mapping[str, Any] | None, examples: ExampleImages | EmbeddedExamples | None
) -> tuple[str, ...]:
    """The labels that have descriptions, and after them those that have examples alone."""
    if examples is None:
        return tuple(checked_mapping(descriptions))
    known = tuple(() if descriptions is None else checked_mapping(descriptions))
    given = examples.labels if isinstance(examples, EmbeddedExamples) else tuple(examples)
    return tuple(dict.fromkeys(known + given))


def checked_examples(examples: Any) -> Mapping[str, Any]:
    """Raises ValueError unless they are {label: [image, ...]}, none of the lists empty."""
    if not isinstance(examples, Mapping):
        raise ValueError(
            f"examples takes {{label: [image, ...]}}, not a {type(examples).__name__}."
        )
    if not examples:
        raise ValueError("examples holds no class; leave it out to classify by texts.")
    for label, images in examples.items():
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"examples has the label {label!r}; expected a text.")
        if not isinstance(images, list | tuple | ImageEmbeddings):
            raise ValueError(
                f"The examples of {label!r} must be a list of images, each {ACCEPTED_IMAGES}; got "
                f"{type(images).__name__}."
            )
        if len(images) == 0:
            raise ValueError(f"The list of examples of {label!r} is empty; give at least one.")
    return examples


def _name_of(image: ImageInput, position: int, label: str) -> str:
    if isinstance(image, str | Path):
        return f"{image} (example of {label})"
    return f"example {position} of {label}"


def _stacked(
    rows: Sequence[tuple[np.ndarray, np.ndarray | None]],
) -> tuple[np.ndarray, np.ndarray | None]:
    regions = [of_regions for _, of_regions in rows if of_regions is not None]
    return np.stack([image for image, _ in rows]), np.stack(regions) if regions else None


def _joined(parts: Mapping[str, tuple[np.ndarray, np.ndarray | None]]) -> EmbeddedExamples:
    """Equal images of a class are one."""
    found = hashlib.sha256()
    image, regions, of = [], [], []
    for k, (label, (embed, of_regions)) in enumerate(parts.items()):
        different = {row.tobytes(): i for i, row in reversed(list(enumerate(embed)))}
        rows = sorted(different.values())
        image.append(embed[rows])
        if of_regions is not None:
            regions.append(of_regions[rows])
        of += [k] * len(rows)
        found.update(repr((label, len(rows))).encode("utf-8", "surrogatepass"))
        found.update(np.ascontiguousarray(embed[rows]).tobytes())
        if of_regions is not None:  # texts are scored by them, to which examples are fitted
            found.update(repr(of_regions.shape[1:]).encode())
            found.update(np.ascontiguousarray(of_regions[rows]).tobytes())
    return EmbeddedExamples(
        tuple(parts),
        np.array(of, int),
        np.concatenate(image),
        np.concatenate(regions) if regions else None,
        found.hexdigest(),
    )
