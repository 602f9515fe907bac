"""Prototypes of classes among images without labels, by what CLIP takes the images for.

Of DPA, GRIP and S3A, which go on to train towers or prompts, these are the parts that cached
embeddings are enough for. Each scores any image by its cosine with vectors that the unlabeled
images gave.
"""

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.arithmetic import log_softmax, unit
from grain_jax.zero_shot.method import CaptionBank, ClassBanks, Images, Score, Support
from grain_jax.zero_shot.unlabeled import (
    best_images,
    blocks,
    class_vectors,
    images_to_fit,
    log_probabilities,
)

TOP_IMAGES = 16  # of each class
DPA_WEIGHT = 0.5  # of the prototypes against the texts
KMEANS_ITERATIONS = 20


def dpa(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """The pseudo-label rule of DPA, Ali et al. 2025, arXiv 2408.08855: log of half the softmax over
    image prototypes and half the softmax over class texts, the latter over its mean over images.

    Published with a running mean over 32 batches; here the mean over all unlabeled images. A class
    that no image is taken for has the image that is most likely of it as its prototype.
    """
    classes = class_vectors(texts)
    images = images_to_fit(unlabeled, len(classes.vectors))
    logs = log_probabilities(images, classes.vectors, texts.logit_scale)
    prior = np.log(_mean_probability(logs)).astype(np.float32)
    prototypes = class_means(images, logs)
    scale = np.float32(texts.logit_scale)
    weight = np.log(np.array([DPA_WEIGHT, 1 - DPA_WEIGHT], np.float32))

    def score(images: Images, alpha: float | None) -> Float[np.ndarray, "n K"]:
        by_image = log_softmax(scale * (images.image @ prototypes.T))
        by_text = log_softmax(scale * (images.image @ classes.vectors.T) - prior)
        return classes.expand(np.logaddexp(by_image + weight[0], by_text + weight[1]) / scale)

    return score


def top_prototypes(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Cosine with the mean of the 16 images that are most likely of a class (`top_means`): the
    pseudo-labels of GRIP, Menghini et al. 2023, arXiv 2306.01669, which trains prompts with them.
    """
    classes = class_vectors(texts)
    images = images_to_fit(unlabeled, len(classes.vectors))
    logs = log_probabilities(images, classes.vectors, texts.logit_scale)
    prototypes = top_means(images, logs)
    return lambda images, alpha: classes.expand(images.image @ prototypes.T)


def cluster_vote(
    texts: ClassBanks,
    *,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    unlabeled: Images | None = None,
) -> Score:
    """Cosine with the centre of the cluster that got the class's name: k-means, a vote of each
    cluster's images for names, one name a cluster. S3A's, Zhang et al. 2024, arXiv 2308.12960.

    Published over a vocabulary of 21,000 names, with texts written for confused ones; here over the
    classes. k-means starts at `top_means`, nothing random.
    """
    classes = class_vectors(texts)
    images = images_to_fit(unlabeled, len(classes.vectors))
    logs = log_probabilities(images, classes.vectors, texts.logit_scale)
    centres, cluster = k_means(images, top_means(images, logs))
    votes = named_clusters(cluster, logs.argmax(axis=1), centres @ classes.vectors.T)
    named = centres[votes]
    return lambda images, alpha: classes.expand(images.image @ named.T)


def class_means(
    images: Float[np.ndarray, "N E"], logs: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, "D E"]:
    """Unit mean of the images whose likeliest class it is; of a class without any, the image that
    is most likely of it.
    """
    sums, counts = _sums(images, logs.argmax(axis=1), logs.shape[1])
    empty = np.nonzero(counts == 0)[0]
    sums[empty] = images[logs[:, empty].argmax(axis=0)]
    return unit(sums)


def top_means(
    images: Float[np.ndarray, "N E"], logs: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, "D E"]:
    """Unit mean of the `TOP_IMAGES` images that are most likely of each class; of fewer, N / D and
    at least 1, where there are not as many for each: of all images, all means would be the same.
    """
    best = best_images(logs, min(TOP_IMAGES, max(1, len(logs) // logs.shape[1])))
    total = np.zeros((logs.shape[1], images.shape[1]))
    for rows in best:
        total += images[rows]
    return unit(total).astype(np.float32)


def k_means(
    images: Float[np.ndarray, "N E"],
    centres: Float[np.ndarray, "D E"],
    *,
    iterations: int = KMEANS_ITERATIONS,
) -> tuple[Float[np.ndarray, "D E"], Int[np.ndarray, "N"]]:
    """Spherical k-means: unit centres, and the cluster of each image. An empty cluster stays.

    Args:
        centres: to start with.
        iterations: at most; it ends when no image changes its cluster.
    """
    cluster = nearest_centre(images, centres)
    for _ in range(iterations):
        sums, counts = _sums(images, cluster, len(centres))
        centres = np.where(counts[:, None] > 0, unit(sums), centres)
        before, cluster = cluster, nearest_centre(images, centres)
        if (before == cluster).all():
            break
    return centres, cluster


def nearest_centre(
    images: Float[np.ndarray, "N E"], centres: Float[np.ndarray, "D E"]
) -> Int[np.ndarray, "N"]:
    """The centre of largest cosine with each image."""
    found = np.empty(len(images), int)
    for rows in blocks(len(images), len(centres)):
        found[rows] = (images[rows] @ centres.T).argmax(axis=1)
    return found


def named_clusters(
    cluster: Int[np.ndarray, "N"],
    label: Int[np.ndarray, "N"],
    similarity: Float[np.ndarray, "D D"],
) -> Int[np.ndarray, "D"]:
    """The cluster of each class: as many clusters as classes, each with one name, such that most
    votes are kept (Hungarian method).

    Args:
        cluster: of each image.
        label: the class that each image votes for.
        similarity: of cluster and class, [cluster, class], which decides between equal votes.
    """
    from scipy.optimize import linear_sum_assignment  # here: its import takes a command a second

    size = len(similarity)
    votes = np.bincount(cluster * size + label, minlength=size * size).reshape(size, size)
    tie_break = 0.5 * similarity / (size * max(1.0, float(np.abs(similarity).max())))
    clusters, names = linear_sum_assignment(votes + tie_break, maximize=True)
    return clusters[np.argsort(names)]


def _sums(
    images: Float[np.ndarray, "N E"], label: Int[np.ndarray, "N"], size: int
) -> tuple[Float[np.ndarray, "D E"], Int[np.ndarray, "D"]]:
    """Sum of the images of each label, and their number."""
    counts = np.bincount(label, minlength=size)
    order = np.argsort(label, kind="stable")
    there = np.nonzero(counts)[0]
    starts = (np.cumsum(counts) - counts)[there]
    sums = np.zeros((size, images.shape[1]), np.float32)
    if len(there):
        sums[there] = np.add.reduceat(images[order], starts, axis=0)
    return sums, counts


def _mean_probability(logs: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "D"]:
    total = np.zeros(logs.shape[1])
    for rows in blocks(*logs.shape):
        total += np.exp(logs[rows]).sum(axis=0, dtype=np.float64)
    return np.maximum(total / len(logs), 1e-30)
