"""Where `load_zero_shot` was before `data/classification/`; kept for the scripts of users."""

from grain_jax.data.classification.folders import load_zero_shot

__all__ = ["load_zero_shot"]
