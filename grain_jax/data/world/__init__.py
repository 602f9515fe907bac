"""The embedded procedural world: drawn birds of made-up species, with captions and regions."""

from grain_jax.data.world.language import part_of_description, world_vocabulary
from grain_jax.data.world.source import WorldSource, world_zero_shot_sets

__all__ = ["WorldSource", "part_of_description", "world_vocabulary", "world_zero_shot_sets"]
