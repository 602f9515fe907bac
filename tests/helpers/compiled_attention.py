"""Compiles a tower's gradient for four TPUs that are not there: `compiled_attention.py TOWER KIND`.

TOWER is "vision", or "stream" for texts end to end. Prints the shapes, as JSON, that the compiled
program has and that end in queries by keys, and how many kernels of its own it calls.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from grain_jax.benchmarking import hlo
from grain_jax.benchmarking.topology import open_topology
from grain_jax.config import MeshConfig, TextConfig, VisionConfig
from grain_jax.models.text import TextTransformer
from grain_jax.models.text_stream import lay_end_to_end
from grain_jax.models.vit import VisionTransformer
from grain_jax.parallel.sharding import batch_sharding, make_mesh, replicated, use_mesh

TOKENS = {
    "vision": (197, 200),  # of 224 pixels in patches of 16, and as padded
    "stream": (80, 160),  # of one block and of two
}


def tower_and_inputs(tower: str, kind: str) -> tuple[nn.Module, Any]:
    """One layer of four heads, and the shape of what it takes."""
    if tower == "vision":
        vision = VisionConfig(width=256, depth=1, num_heads=4, mlp_ratio=1.0)
        images = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.bfloat16)
        return VisionTransformer(vision, 224, True, "full", kind, jnp.bfloat16), images
    text = TextConfig(vocab_size=512, width=256, depth=1, num_heads=4, mlp_ratio=1.0)
    texts = jax.ShapeDtypeStruct((2, 24, 77), jnp.int32)  # of one shard, and of the other
    stream = jax.eval_shape(lambda rows: lay_end_to_end(rows, blocks=12, length=80), texts)
    return TextTransformer(text, 256, True, "full", kind, jnp.bfloat16), stream


def main(tower: str, kind: str) -> None:
    """`kind`: of `model.attention`."""
    mesh = make_mesh(MeshConfig(data=2, tensor=2), open_topology("v5e:2x2").devices)
    model, inputs = tower_and_inputs(tower, kind)

    def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def loss(params: object, inputs: Any) -> jax.Array:
        return jnp.square(model.apply(params, inputs).astype(jnp.float32)).sum()

    boxed = jax.eval_shape(
        lambda x: model.clone(attention="xla").init(jax.random.key(0), x), inputs
    )
    whole, rows = replicated(mesh), batch_sharding(mesh)
    params = jax.tree.map(lambda leaf: placed(leaf, whole), nn.unbox(boxed))
    inputs = jax.tree.map(lambda leaf: placed(leaf, rows), inputs)
    with use_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params, inputs).compile().as_text()
    found = hlo.instructions(text)
    square = [
        (dtype, *shape)
        for one in found
        for dtype, shape in one.shapes
        if len(shape) > 2 and set(shape[-2:]) <= set(TOKENS[tower])
    ]
    kernels = sum('custom_call_target="tpu_custom_call"' in one.text for one in found)
    json.dump({"square": square, "kernels": kernels}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
