"""GRAIN in JAX/Flax: CLIP-like pretraining that grounds textual descriptions in image regions."""

__version__ = "0.1.0"
