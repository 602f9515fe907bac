"""The embedded procedural world: drawn birds of made-up species, with captions and regions."""

from grain_jax.data.synthetic_birds.language import part_of_description, world_vocabulary
from grain_jax.data.synthetic_birds.source import WorldSource, world_zero_shot_sets

__all__ = ["WorldSource", "part_of_description", "world_vocabulary", "world_zero_shot_sets"]
