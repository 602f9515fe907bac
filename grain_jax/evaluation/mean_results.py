"""Means over answers as results, with intervals over images."""

import numpy as np
from jaxtyping import Float, Int

from grain_jax.evaluation.statistics import mean_interval
from grain_jax.results import Result


def mean_result(
    dataset: str,
    method: str,
    metric: str,
    values: Float[np.ndarray, "n"],
    images: Int[np.ndarray, "n"],
    *,
    interval: bool = True,
) -> Result:
    """The mean of values in [0, 1], with its `mean_interval` unless `interval` is False.

    Args:
        values: how right each answer is.
        images: the image of each answer, a number; its answers stay together.
    """
    low, high = (mean_interval(values, images) if interval else None) or (None, None)
    return Result(dataset, method, None, metric, float(values.mean()), low, high, len(values))
