"""Into how many parts axes of a mesh split something."""

import math

from jax.sharding import AbstractMesh


def num_parts(mesh: AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    """Product of the sizes of these axes; an axis that the mesh lacks counts 1."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape.get(name, 1) for name in names)
