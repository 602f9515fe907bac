"""A layer of the region decoder, compiled for TPUs with its gradients.

    python tests/benchmarks/decoder_attention.py --heads=rows

`--heads`: "rows" (as on TPUs: all heads of a query are rows of one product) or "apart" (a product
per head, as elsewhere). Needs `jax[tpu]` and no TPU. Printed of one of four chips of a v5e, each
with its images: cycles that the compiler estimates, of what, and temporary memory. Nothing is run.
"""

import argparse
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from grain_jax.benchmarking.hardware import PEAKS
from grain_jax.benchmarking.schedule import read_schedule
from grain_jax.benchmarking.topology import open_topology
from grain_jax.config import DecoderConfig, MeshConfig
from grain_jax.models.attention import TOKENS_MULTIPLE
from grain_jax.models.decoder import DecoderLayer
from grain_jax.models.layers import xavier_init
from grain_jax.parallel.sharding import batch_sharding, make_mesh, replicated, use_mesh

CHIPS = 4


def compiled_layer(
    *, images: int, tokens: int, queries: int, remat: bool, as_rows: bool, pads: bool
) -> Any:
    """The compiled program of a layer, forward and backward, with dropout."""
    config = DecoderConfig(num_queries=queries)
    mesh = make_mesh(MeshConfig(data=CHIPS), open_topology("v5e:2x2").devices)
    split, whole = batch_sharding(mesh), replicated(mesh)
    kind = DecoderLayer
    layer = (nn.remat(kind) if remat else kind)(
        config.num_heads,
        config.mlp_dim,
        xavier_init(config.width, config.mlp_dim, torch_mlp_bias=True),
        config.dropout,
        train=True,
        num_tokens=tokens,
        heads_as_rows=as_rows,
        dtype=jnp.bfloat16,
    )
    padding = -tokens % TOKENS_MULTIPLE if pads else 0

    def shaped(shape: tuple[int, ...], dtype: Any = jnp.bfloat16, sharding: Any = split) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    batch = images * CHIPS
    x = shaped((batch, queries + 1, config.width))
    positions = shaped((1, queries + 1, config.width), sharding=whole)
    memory = shaped((batch, tokens + padding, config.width))
    rows = shaped((batch,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    inputs = (x, positions, memory, rows)
    boxed = jax.eval_shape(layer.init, {"params": key, "dropout": key}, *inputs)
    params = jax.tree.map(
        lambda leaf: shaped(leaf.shape, leaf.dtype, whole), nn.unbox(boxed)["params"]
    )

    def both(params: Any, x: Any, positions: Any, memory: Any, rows: Any, gradient: Any) -> Any:
        def forward(params: Any, x: Any, positions: Any, memory: Any) -> Any:
            streams = {"dropout": jax.random.key(0)}
            return layer.apply({"params": params}, x, positions, memory, rows, rngs=streams)[0]

        output, vjp = jax.vjp(forward, params, x, positions, memory)
        return output, vjp(gradient)

    with use_mesh(mesh):
        return jax.jit(both).lower(params, *inputs, x).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", choices=("rows", "apart"), default="rows")
    parser.add_argument("--images", type=int, default=128, help="of a chip")
    parser.add_argument("--tokens", type=int, default=197, help="of an image")
    parser.add_argument("--queries", type=int, default=5, help="of regions")
    parser.add_argument("--unpadded", action="store_true", help="tokens, with heads as rows")
    parser.add_argument("--remat", action="store_true", help="recompute all in the backward pass")
    options = parser.parse_args()
    if options.unpadded and options.heads == "apart":
        parser.error("--unpadded is of --heads=rows; heads apart are never padded.")
    started = time.monotonic()
    program = compiled_layer(
        images=options.images,
        tokens=options.tokens,
        queries=options.queries,
        remat=options.remat,
        as_rows=options.heads == "rows",
        pads=options.heads == "rows" and not options.unpadded,
    )
    seconds = time.monotonic() - started
    found = read_schedule(program.as_text())
    assert found.cycles is not None
    temporary = program.memory_analysis().temp_size_in_bytes
    kinds: Counter[str] = Counter()  # cycles
    for part in found.by_part.values():
        kinds.update(part)
    by_kind = {kind: round(cycles / 1e6, 2) for kind, cycles in kinds.items()}
    clock = PEAKS["TPU v5 lite"].clock
    print(
        f"{options.heads}: {found.cycles / 1e6:.2f} million cycles, "
        f"{found.cycles / clock * 1e3:.2f} ms, of it million {by_kind}, "
        f"{temporary / 2**20:.1f} MiB temporary, compiled in {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
