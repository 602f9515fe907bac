"""Compiles a vision tower's gradient for four TPUs that are not there: `compiled_vision.py KIND`.

Prints the shapes, as JSON, that the compiled program has and that end in tokens by tokens, and how
many kernels of its own it calls.
"""

import json
import sys

import jax
import jax.numpy as jnp
from flax import linen as nn

from grain_jax.benchmarking import hlo
from grain_jax.benchmarking.topology import open_topology
from grain_jax.config import MeshConfig, VisionConfig
from grain_jax.models.vit import VisionTransformer
from grain_jax.parallel.sharding import batch_sharding, make_mesh, replicated, use_mesh

TOKENS = (197, 200)  # of 224 pixels in patches of 16, and as padded


def main(kind: str) -> None:
    """`kind`: of `model.attention`."""
    mesh = make_mesh(MeshConfig(data=2, tensor=2), open_topology("v5e:2x2").devices)
    config = VisionConfig(width=256, depth=1, num_heads=4, mlp_ratio=1.0)
    model = VisionTransformer(config, 224, True, "full", kind, jnp.bfloat16)
    whole, rows = replicated(mesh), batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.bfloat16, sharding=rows)

    def loss(params: object, images: jax.Array) -> jax.Array:
        return jnp.square(model.apply(params, images).astype(jnp.float32)).sum()

    boxed = jax.eval_shape(
        lambda x: model.clone(attention="xla").init(jax.random.key(0), x), images
    )
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), nn.unbox(boxed)
    )
    with use_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params, images).compile().as_text()
    found = hlo.instructions(text)
    square = [
        (dtype, *shape)
        for one in found
        for dtype, shape in one.shapes
        if len(shape) > 2 and shape[-1] in TOKENS and shape[-2] in TOKENS
    ]
    kernels = sum('custom_call_target="tpu_custom_call"' in one.text for one in found)
    json.dump({"square": square, "kernels": kernels}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
