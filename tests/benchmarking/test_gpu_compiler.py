"""Plans by XLA's compiler for GPUs, which is in jax's plugin for CUDA and needs no GPU."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from jax.experimental import topologies
from places import HELPERS
from training_process import environment

from grain_jax.benchmarking import gpu_compiler
from grain_jax.benchmarking.gpu_compiler import OPTIONS, TARGETS, compiler_options
from grain_jax.benchmarking.topology import GPUS, open_topology


@pytest.fixture
def asked(monkeypatch):
    """What the plugin is asked for: in its place, something that keeps it."""
    found = []

    def describe(kind, platform, **more):
        found.append((kind, platform, more))
        devices = [SimpleNamespace(platform="gpu")] * 8
        return SimpleNamespace(devices=devices)

    monkeypatch.setattr(gpu_compiler, "has_plugin", lambda: True)
    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    yield found
    jax.config.update("jax_enable_compilation_cache", True)


def test_every_gpu_that_plan_knows_is_described():
    assert set(TARGETS) == set(GPUS)
    assert "device_memory_size: 151397597184" in TARGETS["h200"].text
    assert 'device_description_str: "NVIDIA H100 80GB HBM3"' in TARGETS["h100"].text


def test_nodes_are_described_to_the_compiler(asked, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    topology = open_topology("h200x4", 2)
    [(kind, platform, more)] = asked
    assert (kind, platform, more["topology"]) == ("h200", "cuda", "2x1x4")
    assert (topology.compiler, topology.is_stand_in) == ("XLA for GPUs", False)
    assert topology.compiler_options == OPTIONS
    assert len(topology.devices) == 8


def test_flags_of_the_user_stay(asked, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true --xla_dump_to=x")
    assert compiler_options() == {"xla_gpu_autotune_level": 0}
    assert open_topology("h100x8").compiler_options == {"xla_gpu_autotune_level": 0}


def test_without_the_compiler_hosts_stand_for_gpus_and_why_is_said(monkeypatch):
    monkeypatch.setattr(gpu_compiler, "has_plugin", lambda: False)
    topology = open_topology("h100x8")
    assert (topology.compiler, topology.is_stand_in) == ("XLA for CPUs", True)
    version = jax.lib.__version__
    assert f"--no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt==" in topology.no_compiler


def test_a_compiler_that_refuses_the_devices_is_quoted(asked, monkeypatch):
    def refuse(*arguments, **more):
        raise RuntimeError("INVALID_ARGUMENT: no such field\nstack")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    topology = open_topology("h100x8")
    assert topology.is_stand_in
    said = topology.no_compiler
    assert "refuses h100 (INVALID_ARGUMENT: no such field); it should be of jaxlib's" in said
    assert said.endswith(gpu_compiler.how_to_install())


@pytest.mark.slow
@pytest.mark.skipif(not gpu_compiler.has_plugin(), reason="jax-cuda13-plugin is not installed")
@pytest.mark.parametrize(("topology", "num_nodes"), [("h100x8", 1), ("h200x2", 2)])
def test_the_gpu_compiler_needs_no_gpu(topology, num_nodes, tmp_path):
    """In a process of its own: the plugin reads XLA_FLAGS once."""
    found, text = tmp_path / "plan.json", tmp_path / "step.txt"
    words = [f"--config={HELPERS / 'tiny_world.py'}", "--model.dtype=bfloat16"]
    words += [f"--topology={topology}", f"--num_slices={num_nodes}"]
    run = subprocess.run(
        [sys.executable, "-m", "grain_jax.plan", *words, f"--json={found}", f"--hlo={text}"],
        check=True,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert "compiled by XLA for GPUs" in " ".join(run.stdout.split())
    figures = json.loads(found.read_text())
    assert figures["fits"] is True
    assert figures["compiler"] == "XLA for GPUs"
    assert figures["compiler_options"] == OPTIONS
    assert any("attention by XLA" in note for note in figures["compiler_notes"])
    assert "__cublas" in text.read_text()
    # Each product has 32 MiB of workspace, which are not moved.
    assert 0 < figures["step"]["schedule"]["num_bytes"] < 2**25
    gradients = [one for one in figures["step"]["exchanges"] if one["kind"] == "all-reduce"]
    assert {one["axes"] for one in gradients} == {"data"}
    # Those of all parameters, in bfloat16 at least; the state has them in float32, and two moments.
    assert sum(one["num_bytes"] for one in gradients) >= 0.9 * figures["step"]["state"] / 6
