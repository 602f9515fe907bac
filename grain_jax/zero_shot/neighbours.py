"""Nearest neighbours of images, exact, in blocks: nothing of images by images is held.

A search costs images times images times the width, so each is made once for all methods, and an
image whose neighbours are known already is not searched again when it is scored.
"""

import numpy as np
from jaxtyping import Float, Int

from grain_jax.zero_shot.method import Images
from grain_jax.zero_shot.unlabeled import blocks

MOST_NEIGHBOURS = 20  # the most that a method takes; those of each image are searched once
KEY_BLOCK = 4096  # keys that are compared with queries at once
_GROUP = 64  # columns whose maximum bounds the k-th best from below
_UNKNOWN = -1

Near = tuple[Int[np.ndarray, "_ _"], Float[np.ndarray, "_ _"]]  # indices, products


def nearest(
    queries: Float[np.ndarray, "n E"],
    keys: Float[np.ndarray, "M E"],
    count: int,
    *,
    others: bool = False,
) -> Near:
    """The `count` keys of largest dot product with each query, best first, the first of equal ones
    first; fewer where there are not as many.

    Args:
        others: query i is key i, and not a neighbour of itself.

    Returns: indices, products.
    """
    width = min(len(keys), KEY_BLOCK)
    count = max(0, min(count, len(keys) - others))
    found = np.zeros((len(queries), count), int)
    products = np.zeros((len(queries), count), np.float32)
    for rows in blocks(len(queries), width) if count else ():
        block = queries[rows]
        numbers = np.full((len(block), count), -1)
        best = np.full((len(block), count), -np.inf, np.float32)
        for start in range(0, len(keys), width):
            similarity = block @ keys[start : start + width].T
            if others:
                own = np.arange(rows.start, rows.stop) - start
                there = (own >= 0) & (own < similarity.shape[1])
                similarity[there, own[there]] = -np.inf
            best, numbers = _merged(best, numbers, similarity, start)
        found[rows], products[rows] = numbers, best
    return found, products


def _merged(
    best: Float[np.ndarray, "n k"],
    numbers: Int[np.ndarray, "n k"],
    similarity: Float[np.ndarray, "n m"],
    start: int,
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The best so far with further columns, whose first is key `start`.

    Only what exceeds the last of the best is sorted: after the first columns, few do.
    """
    num_rows, count = best.shape
    bound, whole = best[:, -1], similarity.shape[1] // _GROUP * _GROUP
    if start == 0 and whole // _GROUP > count:
        tops = similarity[:, :whole].reshape(num_rows, -1, _GROUP).max(axis=2)
        lowest = np.partition(tops, -count, axis=1)[:, -count]
        further = similarity >= lowest[:, None]
    else:
        further = similarity > bound[:, None]
    # Of one axis: numpy takes ten times as long to find what is true over two.
    row, column = np.divmod(np.flatnonzero(further), similarity.shape[1])
    row = np.concatenate([np.repeat(np.arange(num_rows), count), row])
    values = np.concatenate([best.ravel(), similarity[row[best.size :], column]])
    keys = np.concatenate([numbers.ravel(), column + start])
    order = np.lexsort((keys, -values, row))
    row = row[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    order = order[place < count]
    return values[order].reshape(best.shape), keys[order].reshape(best.shape)


def neighbours_within(unlabeled: Images, keys: Float[np.ndarray, "N E"], count: int) -> Near:
    """Other images that each of `keys` (`images_to_fit`) is most like, and the cosines; searched
    once for all methods.
    """
    found, cosines = unlabeled.once(
        ("within", len(keys)), lambda: nearest(keys, keys, MOST_NEIGHBOURS, others=True)
    )
    return found[:, :count], cosines[:, :count]


def neighbours_among(
    images: Images, unlabeled: Images, keys: Float[np.ndarray, "N E"], count: int
) -> Near:
    """Those of `keys` that each image is most like, itself where it is one of them, and the
    cosines; once for all methods. `neighbours_within` has those of images that are keys.
    """

    def search() -> Near:
        own = rows_of(images, unlabeled, keys)
        within = neighbours_within(unlabeled, keys, MOST_NEIGHBOURS)
        return nearest_or_known(images.image, keys, within, own, MOST_NEIGHBOURS)

    found, cosines = images.once(("among", unlabeled, len(keys)), search)
    return found[:, :count], cosines[:, :count]


def rows_of(
    images: Images, unlabeled: Images, keys: Float[np.ndarray, "N E"]
) -> Int[np.ndarray, "n"]:
    """Which of `keys` (`images_to_fit`) each image is, bit for bit, the last of equal ones; -1:
    none.
    """
    known = unlabeled.once(
        ("rows", len(keys)),
        lambda: {hash(row.tobytes()): i for i, row in enumerate(np.ascontiguousarray(keys))},
    )
    image = np.ascontiguousarray(images.image, keys.dtype)
    own = np.array([known.get(hash(row.tobytes()), _UNKNOWN) for row in image], int)
    there = np.nonzero(own != _UNKNOWN)[0]
    other = (image[there] != keys[own[there]]).any(axis=1)  # of one hash, not the same
    own[there[other]] = _UNKNOWN
    return own


def nearest_or_known(
    queries: Float[np.ndarray, "n E"],
    keys: Float[np.ndarray, "M E"],
    within: Near,
    own: Int[np.ndarray, "n"],
    count: int,
) -> Near:
    """`nearest`; looked up, not searched, for queries that are keys themselves.

    Args:
        within: the `count` other keys nearest to each key, or all of them.
        own: which key each query is; -1: none.
    """
    count = min(count, len(keys))
    found = np.empty((len(queries), count), int)
    products = np.empty((len(queries), count), np.float32)
    new, known = np.nonzero(own == _UNKNOWN)[0], np.nonzero(own != _UNKNOWN)[0]
    if len(new):
        found[new], products[new] = nearest(queries[new], keys, count)
    if len(known):
        rows = own[known]
        itself = np.einsum("ne,ne->n", queries[known], keys[rows])
        numbers = np.concatenate([rows[:, None], within[0][rows]], axis=1)
        values = np.concatenate([itself[:, None], within[1][rows]], axis=1)
        order = np.lexsort((numbers, -values), axis=1)[:, :count]
        found[known] = np.take_along_axis(numbers, order, axis=1)
        products[known] = np.take_along_axis(values, order, axis=1)
    return found, products
