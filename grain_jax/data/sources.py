"""Earlier module of `open_source`, now in `data/source.py`; kept for scripts of users."""

from grain_jax.data.source import open_source

__all__ = ["open_source"]
