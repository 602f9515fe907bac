"""Published rates, and the clock that follows from them."""

import subprocess
import sys

import pytest
from training_process import environment

from grain_jax.benchmarking.hardware import PEAKS, peak_of


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5p", 459.0),
        ("TPU v6 lite", 918.0),
        ("TPU v4", 275.0),
    ],
)
def test_peak_by_the_name_of_a_device(kind, tera):
    peak = peak_of(kind)
    assert peak is not None
    assert peak.bfloat16 == tera * 1e12


def test_no_peak_is_made_up():
    assert peak_of("cpu") is None


@pytest.mark.parametrize(
    ("kind", "gigahertz"),
    [("TPU v4", 1.05), ("TPU v5 lite", 1.5), ("TPU v5", 1.75), ("TPU v6 lite", 1.75), ("H100", 0)],
)
def test_the_clock_follows_from_the_rate(kind, gigahertz):
    assert PEAKS[kind].clock / 1e9 == pytest.approx(gigahertz, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_compiler_fills_the_matrix_units_of_a_chip(topology):
    """In a process of its own: libtpu can be loaded once. A chip is one device."""
    pytest.importorskip("libtpu")
    program = (
        "import jax, jax.numpy as jnp\n"
        "from grain_jax.benchmarking.schedule import read_schedule\n"
        "from grain_jax.benchmarking.topology import open_topology\n"
        f"found = open_topology('{topology}')\n"
        "assert len(found.devices) == 4, found.devices\n"
        "where = jax.sharding.SingleDeviceSharding(found.devices[0])\n"
        "matrix = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=where)\n"
        "text = jax.jit(jnp.matmul).lower(matrix, matrix).compile().as_text()\n"
        "seconds = read_schedule(text).cycles / found.peak.clock\n"
        "rate = 2 * 4096**3 / seconds / found.peak.bfloat16\n"
        "assert 0.85 < rate <= 1, rate\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())
