"""Instruction bundles of the attention kernel of short sequences, compiled alone for a TPU.

    python tests/benchmarks/attention_kernel.py --tokens=200 --num_keys=197 --norms

Needs `jax[tpu]` and no TPU. Printed of one chip of a v5e: the bundles that the compiler schedules
for one turn of the kernel, forward and backward, and how many sequences a turn has. Nothing is run.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from grain_jax.benchmarking.topology import open_topology
from grain_jax.models.pallas_attention import pallas_attention, sequences_a_turn

BATCH = 16


def compile_kernel(options: argparse.Namespace) -> None:
    place = SingleDeviceSharding(open_topology("v5e:1x1").devices[0])
    shape = (BATCH, options.tokens, options.num_heads * options.head_size)
    heads = (BATCH, options.tokens, options.num_heads, options.head_size)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
    norms = jax.ShapeDtypeStruct((4, options.head_size), jnp.float32, sharding=place)

    def attend(query: Any, key: Any, value: Any, norms: Any) -> Any:
        arrays = (x.reshape(heads) for x in (query, key, value))
        mixed = pallas_attention(
            *arrays, causal=options.causal, num_keys=options.num_keys, norms=norms
        )
        return mixed.reshape(shape)

    def both(query: Any, key: Any, value: Any, norms: Any, gradient: Any) -> Any:
        output, vjp = jax.vjp(attend, query, key, value, norms)
        return output, vjp(gradient)

    jax.jit(both).lower(x, x, x, norms if options.norms else None, x).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--num_keys", type=int, help="seen of the tokens (default: all)")
    parser.add_argument("--num_heads", type=int, default=2)
    parser.add_argument("--head_size", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--norms", action="store_true", help="of queries and keys, in the kernel")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
            "--xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        compile_kernel(options)
        found = {}
        for file in sorted(Path(folder).glob("*attention_*schedule-analysis_final_bundles.txt")):
            bundles = re.search(r"total scheduled bundles:\s*(\d+)", file.read_text())
            name = re.search("attention_(forward|backward)", file.name)
            if bundles and name and "late-" not in file.name:
                found[name[1]] = bundles[1]
    if lacking := {"forward", "backward"} - found.keys():
        raise SystemExit(
            f"The compiler wrote no bundles of the {' and '.join(sorted(lacking))} kernel; its "
            "files may be named otherwise in this version of libtpu."
        )
    for name, bundles in sorted(found.items()):
        print(f"{name}: {bundles} bundles a turn")
    print(f"{sequences_a_turn(BATCH, options.tokens)} sequences a turn")


if __name__ == "__main__":
    main()
