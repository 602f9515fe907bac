"""Synthetic birds: a procedural data set of made-up species, with captions and regions."""

from grain_jax.data.synthetic_birds.language import bird_vocabulary, part_of_description
from grain_jax.data.synthetic_birds.source import SyntheticBirdSource, bird_zero_shot_sets

__all__ = ["SyntheticBirdSource", "bird_vocabulary", "bird_zero_shot_sets", "part_of_description"]
