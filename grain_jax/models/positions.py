"""Sine-cosine positions of a square grid of patches."""

import numpy as np
from jaxtyping import Float


def grid_positions(side: int, width: int) -> Float[np.ndarray, "P D"]:
    """2-D sine-cosine table, row by row, amplitude 1: half of the width for y, half for x.

    Frequencies fall from 1 to 1/10000 (as MoCo v3 and MAE). ValueError unless 4 divides `width`.
    """
    if width % 4:
        raise ValueError(
            f"Sine-cosine positions need a width divisible by 4, got {width}; change the width, or "
            f"use learned or no positions."
        )
    frequency = 10_000.0 ** -(np.arange(width // 4) / (width // 4))  # [D/4]
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    angle_y, angle_x = (np.outer(axis.reshape(-1), frequency) for axis in (y, x))  # [P, D/4]
    table = [np.sin(angle_y), np.cos(angle_y), np.sin(angle_x), np.cos(angle_x)]
    return np.concatenate(table, axis=1).astype(np.float32)
