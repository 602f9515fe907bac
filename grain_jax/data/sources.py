"""Where `open_source` was before `data/source.py`; kept for the scripts of users."""

from grain_jax.data.source import open_source

__all__ = ["open_source"]
