"""A block of the text tower on a stream of texts, compiled for TPUs with its gradients.

    python tests/benchmarks/stream_attention.py --attention=pallas

`--attention`: "xla", "pallas" (grain_jax's kernel), or "splash" (jax's own, with the mask of a
window, segment ids and its fused backward pass, heads first as it wants them). Needs `jax[tpu]`
and no TPU. Printed of one of four chips of a v5e, each with a stream of its own: cycles that the
compiler estimates of what XLA makes, temporary memory, and of each kernel the instruction bundles
of one turn; of grain_jax's, the turns too. Nothing is run.
"""

import argparse
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from grain_jax.benchmarking.schedule import read_schedule
from grain_jax.benchmarking.topology import open_topology
from grain_jax.config import MeshConfig, TextConfig
from grain_jax.models import layers
from grain_jax.models.pallas_stream import windows
from grain_jax.parallel.sharding import batch_sharding, make_mesh, replicated, use_mesh

CHIPS = 4
TILE = 384  # queries and keys that splash attention takes in a turn


def splash(query: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array) -> jax.Array:
    """As `attention.attend_in_stream`, each chip its own stream."""
    streams, tokens, heads, size = query.shape
    padding = -tokens % TILE
    reach = positions.shape[2]
    texts = (positions == 0).reshape(streams, tokens).astype(jnp.int32).cumsum(axis=1)

    def local(query: Any, key: Any, value: Any, texts: Any) -> Any:
        def heads_first(x: Any) -> Any:
            x = x.transpose(0, 2, 1, 3)
            return jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))

        texts = jnp.pad(texts, ((0, 0), (0, padding)), constant_values=-1)
        mask = masks.LocalMask((tokens + padding,) * 2, (reach, 0), 0)
        kernel = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=kernels.BlockSizes(*[TILE] * 6, use_fused_bwd_kernel=True),
        )
        scaled = query * jnp.asarray(size**-0.5, query.dtype)
        mixed = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, kernels.SegmentIds(ids, ids)))(
            heads_first(scaled), heads_first(key), heads_first(value), texts
        )
        return mixed[:, :, :tokens].transpose(0, 2, 1, 3)

    if jax.sharding.get_abstract_mesh().empty:  # parameters are asked for their shapes
        return query
    rows = PartitionSpec("data")
    with jax.numpy_dtype_promotion("standard"):
        return jax.shard_map(local, in_specs=(rows,) * 4, out_specs=rows, check_vma=False)(
            query, key, value, texts
        )


def compiled_block(attention: str, blocks: int, length: int) -> Any:
    """The compiled program of a block of ViT-B/16's text tower, forward and backward."""
    config = TextConfig()
    mesh = make_mesh(MeshConfig(data=CHIPS), open_topology("v5e:2x2").devices)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    hidden = round(config.width * config.mlp_ratio)
    block = layers.Block(
        config.num_heads,
        hidden,
        config.activation,
        config.norm_eps,
        layers.clip_text_init(config.width, hidden, config.depth),
        causal=True,
        attention="pallas" if attention == "pallas" else "xla",
        dtype=jnp.bfloat16,
    )
    if attention == "splash":
        layers.attend_in_stream = splash
    shape = (CHIPS, blocks * length, config.width)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=rows)
    positions = jax.ShapeDtypeStruct((CHIPS, blocks, length), jnp.int32, sharding=rows)

    def shaped(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    initialize = block.clone(attention="xla").init
    boxed = jax.eval_shape(initialize, jax.random.key(0), x, positions)
    params = jax.tree.map(shaped, nn.unbox(boxed)["params"])

    def both(params: Any, x: Any, positions: Any, gradient: Any) -> Any:
        def forward(params: Any, x: Any) -> Any:
            return block.apply({"params": params}, x, positions)[0]

        output, vjp = jax.vjp(forward, params, x)
        return output, vjp(gradient)

    with use_mesh(mesh):
        return jax.jit(both).lower(params, x, positions, x).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--attention", choices=("xla", "pallas", "splash"), default="pallas")
    parser.add_argument("--blocks", type=int, default=61, help="of a stream: 128 images of 37")
    parser.add_argument("--length", type=int, default=80, help="tokens of a block")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
            "--xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        started = time.monotonic()
        program = compiled_block(options.attention, options.blocks, options.length)
        seconds = time.monotonic() - started
        found = read_schedule(program.as_text())
        assert found.cycles is not None
        temporary = program.memory_analysis().temp_size_in_bytes
        print(
            f"{options.attention}: {found.cycles / 1e6:.3f} million cycles of XLA's part, "
            f"{temporary / 2**20:.1f} MiB temporary, compiled in {seconds:.0f} s"
        )
        for file in sorted(Path(folder).glob("*schedule-analysis_final_bundles.txt")):
            bundles = re.search(r"total scheduled bundles:\s*(\d+)", file.read_text())
            if re.search("attention_|splash_", file.name) and "late-" not in file.name and bundles:
                name = re.sub(r"^\d+-|(\.\d+)?-\d+-schedule.*", "", file.name)
                print(f"  {name}: {bundles[1]} bundles a turn")
    if options.attention == "pallas":
        config = TextConfig()
        size = config.width // config.num_heads
        tokens = options.blocks * options.length
        turns = -(-tokens // windows(size, tokens, options.length).chunk) * config.width // 128
        print(f"  {turns} turns")


if __name__ == "__main__":
    main()
