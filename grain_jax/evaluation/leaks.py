"""Training images that are evaluation images too: by perceptual hash, and by a model's embeddings.

A hash finds an image that was scaled, recompressed or slightly recoloured; embeddings of a model
find other crops of it too, and other images of the same thing, which a person has to tell apart.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt64

from grain_jax.data.inspection.near_duplicates import HASHED_SIDE
from grain_jax.data.inspection.perceptual_hash import HashIndex, perceptual_hashes
from grain_jax.data.loader import evaluation_batches
from grain_jax.data.records import Selection, Source
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.comparison import Answers, Measure
from grain_jax.evaluation.ranking import wilson_interval
from grain_jax.inference.encoder import Encoder

BATCH = 256  # images that are decoded together for their hashes
BLOCK_IMAGES = 8_192  # training images whose embeddings are in memory together
MAX_CELLS = 1 << 24  # cosines at once
KEPT = 5  # closest training images that are told of each evaluation image

OnImages = Callable[[int], None]  # is told how many images are done


@dataclass
class Closest:
    """The closest training images of each of N evaluation images, at most `KEPT` of each.

    Args:
        counts: how many training images are close to each evaluation image, kept or not.
        rows: evaluation image, training image.
        apart: how far apart the two are; small is close.
    """

    counts: Int[np.ndarray, "N"]
    rows: Int[np.ndarray, "P 2"] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    apart: Float[np.ndarray, "P"] = field(default_factory=lambda: np.zeros(0))

    def add(
        self,
        tests: Int[np.ndarray, "p"],
        trainings: Int[np.ndarray, "p"],
        apart: Float[np.ndarray, "p"],
    ) -> None:
        """Takes more pairs in, none of which was there before."""
        self.counts += np.bincount(tests, minlength=len(self.counts))
        rows = np.concatenate([self.rows, np.stack([tests, trainings], axis=1)])
        apart = np.concatenate([self.apart, apart])
        order = np.lexsort((rows[:, 1], apart, rows[:, 0]))
        rows, apart = rows[order], apart[order]
        first = np.searchsorted(rows[:, 0], rows[:, 0], side="left")
        kept = np.arange(len(rows)) - first < KEPT
        self.rows, self.apart = rows[kept], apart[kept]


def hashes_of(
    source: Source, *, num_workers: int, on_images: OnImages = lambda done: None
) -> UInt64[np.ndarray, "N"]:
    """The perceptual hash of every image; 8 bytes an image are kept.

    Raises ValueError for an image that cannot be decoded.
    """
    shrink = Preprocessing(HASHED_SIDE, "squash", "bicubic")
    found, done = [], 0
    for pixels, rows in evaluation_batches(source, shrink, BATCH, num_workers=num_workers):
        found.append(perceptual_hashes(pixels))
        done += len(rows)
        on_images(done)
    return np.concatenate(found)


def close_by_hash(
    tests: UInt64[np.ndarray, "N"], trainings: UInt64[np.ndarray, "M"], max_distance: int
) -> Closest:
    """Pairs whose hashes differ in at most so many bits; `apart` is their number."""
    closest = Closest(np.zeros(len(tests), np.int64))
    for test, training, bits in HashIndex(tests, max_distance).pairs(trainings):
        closest.add(test, training, bits.astype(np.float64))
    return closest


def close_by_embedding(
    encoder: Encoder,
    tests: Source,
    trainings: Source,
    score_threshold: float,
    *,
    on_images: OnImages = lambda done: None,
) -> Closest:
    """Pairs whose image embeddings have at least that cosine; `apart` is one minus it.

    Training images are embedded block by block, and none of their embeddings kept.
    """
    own = encoder.whole_images(tests)
    closest = Closest(np.zeros(len(own), np.int64))
    for start in range(0, len(trainings), BLOCK_IMAGES):
        stop = min(start + BLOCK_IMAGES, len(trainings))
        block = encoder.whole_images(Selection(trainings, range(start, stop)))
        for test, training, cosine in cosine_pairs(own, block, score_threshold):
            closest.add(test, training + start, 1.0 - cosine)
        on_images(stop)
    return closest


def cosine_pairs(
    tests: Float[np.ndarray, "N E"], trainings: Float[np.ndarray, "M E"], score_threshold: float
) -> Iterator[tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], Float[np.ndarray, "p"]]]:
    """Blocks of (row of `tests`, row of `trainings`, cosine) of at least `score_threshold`."""
    step = max(1, MAX_CELLS // len(tests))
    for start in range(0, len(trainings), step):
        cosines = trainings[start : start + step] @ tests.T
        training, test = np.nonzero(cosines >= score_threshold)
        if len(test):
            yield test, training + start, cosines[training, test].astype(np.float64)


@dataclass(frozen=True)
class Leak:
    """A training image that is close to an evaluation image; positions in their sources."""

    test: int
    training: int
    bits: int | None  # that their hashes differ in; None: more, or not among the closest
    cosine: float | None  # None: less than was asked for, not among the closest, or no model


def leaks(by_hash: Closest, by_embedding: Closest | None) -> list[Leak]:
    """The pairs of both searches by evaluation image, the closest by hash first."""
    bits = {
        (test, training): int(apart)
        for (test, training), apart in zip(by_hash.rows.tolist(), by_hash.apart, strict=True)
    }
    cosines: dict[tuple[int, int], float] = {}
    if by_embedding is not None:
        pairs = zip(by_embedding.rows.tolist(), by_embedding.apart.tolist(), strict=True)
        cosines = {(test, training): 1.0 - apart for (test, training), apart in pairs}
    found = [
        Leak(*pair, bits.get(pair), cosines.get(pair)) for pair in dict.fromkeys([*bits, *cosines])
    ]
    return sorted(
        found,
        key=lambda leak: (
            leak.test,
            64 if leak.bits is None else leak.bits,
            -(leak.cosine or 0.0),
            leak.training,
        ),
    )


@dataclass(frozen=True)
class WithoutLeaks:
    """The metric of one method on all images, on those that leaked, and on the others."""

    measure: Measure
    images: int
    leaked_images: int
    value: float
    leaked: float | None  # None where no image leaked
    rest: float | None  # None where all did
    low: float | None  # of the 95 % interval of `rest`, Wilson's, which counts images
    high: float | None


def without_leaks(
    predictions: Mapping[Measure, Answers], leaked: Collection[str], *, known: Collection[str]
) -> list[WithoutLeaks]:
    """Each metric of a file of predictions with and without the images that leaked.

    Args:
        leaked: names of evaluation images.
        known: names of all evaluation images.

    Raises ValueError where an answer is of an image that is not known.
    """
    out, names = set(leaked), set(known)
    found = []
    for measure, answers in predictions.items():
        images = [question[0] for question in answers.questions]
        if unknown := next((image for image in images if image not in names), ""):
            raise ValueError(
                f"The predictions have the image {unknown!r} of {measure.dataset!r}, which is not "
                "among the evaluation images; give the predictions of --test."
            )
        correct = np.array(answers.correct)
        is_out = np.array([image in out for image in images])
        rest = float(correct[~is_out].mean()) if not is_out.all() else None
        left = len(set(images) - out)
        low, high = (None, None) if rest is None else wilson_interval(rest, left)
        found.append(
            WithoutLeaks(
                measure,
                images=len(set(images)),
                leaked_images=len(set(images) & out),
                value=float(correct.mean()),
                leaked=float(correct[is_out].mean()) if is_out.any() else None,
                rest=rest,
                low=low,
                high=high,
            )
        )
    return found


def leaked_names(found: Sequence[Leak], names: Sequence[str]) -> list[str]:
    """Names of the evaluation images that leaked, each once."""
    return list(dict.fromkeys(names[leak.test] for leak in found))
