"""Memory of the three contrastive losses and their gradients, dense and in tiles; nothing is run.

    python tests/benchmarks/compiled_losses.py --devices=8,64,512
    python tests/benchmarks/compiled_losses.py --topology=v5e:4x4,v5e:8x8,v5e:16x16

The first form compiles for as many host devices with XLA's compiler for CPUs. The second needs
`jax[tpu]` and no TPU. `--images`, `--regions` and `--embed` are of one device: the global batch
grows with the devices. Printed for each number of them: temporary memory of a device, and seconds
of compilation.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

sys.path.append(str(Path(__file__).resolve().parents[1] / "helpers"))
from ring_memory import Shapes, compiled

from grain_jax.losses.log_sum_exp import LogitsForm


def devices_of(options: argparse.Namespace) -> Iterator[Any]:
    """The devices to compile for, smallest number first."""
    jax.config.update("jax_platforms", "cpu")
    if options.topology:
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # this machine is asked nothing about its own TPU
        for name in options.topology.split(","):
            yield list(topologies.get_topology_desc(name, "tpu").devices)
        return
    counts = sorted(map(int, options.devices.split(",")))
    jax.config.update("jax_num_cpu_devices", counts[-1])
    for count in counts:
        yield jax.devices()[:count]


def main() -> None:
    """Prints a line for each form and number of devices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", default="8,64,512", help="numbers of host devices")
    parser.add_argument("--topology", default="", help="TPU topologies, as v5e:4x4")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--regions", type=int, default=5)
    parser.add_argument("--embed", type=int, default=512)
    parser.add_argument("--precision", default="highest", choices=("highest", "high", "default"))
    parser.add_argument("--forms", default="dense,tiled")
    options = parser.parse_args()
    shapes = Shapes(options.images, options.regions, options.embed)
    print(f"jax {jax.__version__}, {options.images} images of {options.regions} regions a device")
    print(f"{'devices':>8} {'batch':>8} {'form':>6} {'temporary MiB':>14} {'seconds':>8}")
    for devices in devices_of(options):
        for form in options.forms.split(","):
            started = time.perf_counter()
            program = compiled(LogitsForm(form == "tiled", (), options.precision), shapes, devices)
            mebibytes = program.memory_analysis().temp_size_in_bytes / 2**20
            print(
                f"{len(devices):>8} {len(devices) * options.images:>8} {form:>6} "
                f"{mebibytes:>14.1f} {time.perf_counter() - started:>8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
