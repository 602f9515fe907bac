"""A batch encoded in parts, one after the other, with one sum of gradients over "data" at the end.

GradCache (arXiv 2101.06983): embeddings of all parts meet in one loss, and the backward pass
encodes each part again, so activations are those of one part and negatives those of the batch.

Partitioned by the compiler alone, the loop over the parts would sum the gradients of all parameters
over all devices in each of its turns. So "data" is a manual axis here: each of its devices adds up
gradients of its own rows, and the transpose of `pcast`, before the loop, is the only sum. "fsdp"
stays with the compiler: a parameter that is split over it is gathered, and its gradient scattered,
in every part; to do that once would keep all of the parameters on every device.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax.linen import spmd
from jax.sharding import PartitionSpec
from jaxtyping import Array

from grain_jax.parallel.sharding import LOGICAL_RULES

AXIS = "data"


def encode_in_parts(
    encode: Callable[..., Any], params: Any, inputs: Any, rng: Array, *, num_parts: int
) -> Any:
    """`encode(params, inputs, rng)` of every part, rows joined in the order of `inputs`.

    Leaves of `inputs` and of what `encode` returns have rows first; their numbers of rows divide by
    `num_parts` and by the devices that share them. All parts get the same `rng`.
    """
    parts = jax.tree.map(lambda values: _split(values, num_parts), inputs)
    mesh = jax.sharding.get_abstract_mesh()

    def run(params: Any, parts: Any, rng: Array) -> Any:
        return jax.lax.map(jax.checkpoint(lambda part: encode(params, part, rng)), parts)

    def run_on_shard(params: Any, parts: Any, rng: Array) -> Any:
        with nn.logical_axis_rules(_rules_within()):
            return run(_varying(params), parts, rng)

    if not mesh.empty and mesh.shape[AXIS] > 1:
        whole, rows = PartitionSpec(), PartitionSpec(None, AXIS)
        run_on_mesh: Any = jax.shard_map(
            run_on_shard, in_specs=(whole, rows, whole), out_specs=rows, axis_names={AXIS}
        )
        stacked = run_on_mesh(params, parts, rng)
    else:
        stacked = run(params, parts, rng)
    return jax.tree.map(_join, stacked)


def _varying(params: Any) -> Any:
    """Parameters as each device of "data" has them; the transpose sums their gradients."""
    lax: Any = jax.lax
    if hasattr(lax, "pcast"):
        return lax.pcast(params, AXIS, to="varying")
    return lax.pvary(params, AXIS)  # its name in jax 0.8


def _rules_within() -> tuple[tuple[str, Any], ...]:
    """The table of logical axes for what one device of "data" does: the others are still shared."""
    return tuple(
        (name, tuple(axis for axis in axes if axis != AXIS) if isinstance(axes, tuple) else axes)
        for name, axes in LOGICAL_RULES
    )


def _split(values: Array, k: int) -> Array:
    """[B, ...] to [k, B/k, ...]: every k-th row, so that each part spans all devices as it lies."""
    parts = values.reshape(values.shape[0] // k, k, *values.shape[1:]).swapaxes(0, 1)
    return spmd.with_logical_constraint(parts, (None, "batch", *(None,) * (values.ndim - 1)))


def _join(parts: Array) -> Array:
    """Undoes `_split`."""
    rows = parts.swapaxes(0, 1)  # [B/k, k, ...]
    return rows.reshape(rows.shape[0] * rows.shape[1], *rows.shape[2:])
