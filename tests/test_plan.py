"""`python -m grain_jax.plan` on host devices: what fits, what is exchanged, what is refused."""

import dataclasses
import io
import json
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh
from places import HELPERS
from rich.console import Console
from tiny_run import tiny_config
from training_process import environment

import grain_jax.plan as command
from grain_jax.benchmarking import gpu_compiler
from grain_jax.benchmarking.candidates import Candidate, candidates
from grain_jax.benchmarking.compiled_step import (
    CompiledStep,
    Exchange,
    OutOfMemoryError,
    refusal,
)
from grain_jax.benchmarking.forecast import forecast
from grain_jax.benchmarking.hardware import PEAKS
from grain_jax.benchmarking.pace import paces
from grain_jax.benchmarking.planning import (
    Plan,
    changes,
    images_per_second,
    make_plan,
    sweep,
    verdict,
)
from grain_jax.benchmarking.schedule import Schedule
from grain_jax.benchmarking.topology import Topology, open_topology
from grain_jax.config import MeshConfig
from grain_jax.parallel.sharding import make_mesh
from grain_jax.training.logits import logits_form, tiled_from


@pytest.fixture(autouse=True)
def no_compiler_for_gpus(monkeypatch):
    """The tests' own 8 devices stand for GPUs, whether it is installed or not."""
    monkeypatch.setattr(gpu_compiler, "has_plugin", lambda: False)


TINY = f"--config={HELPERS / 'tiny_world.py'}"


def test_a_step_is_compiled_and_printed(tmp_path, capsys):
    found = tmp_path / "plan.json"
    # cuDNN's attention, which no compiler has without cuDNN, is planned as XLA's.
    half = ["--model.dtype=bfloat16", "--model.attention=cudnn"]
    with jax.numpy_dtype_promotion("standard"):  # which jax's own attention in half needs
        status = command.main([TINY, "--topology=h100x8", *half, f"--json={found}"])
    output = capsys.readouterr()
    printed = " ".join(output.out.split())
    assert status == 0, printed
    assert output.err.startswith("Compiling for h100x8, 8 devices: seconds for a small model")
    assert printed.startswith("Fits: ")
    assert "compiled by XLA for CPUs as a stand-in" in printed
    assert "attention by XLA" in printed
    assert "all-reduce" in printed
    figures = json.loads(found.read_text())
    assert figures["fits"] is True
    assert figures["compiler"] == "XLA for CPUs"
    assert "pip install --no-deps jax-cuda13-plugin==" in figures["compiler_notes"][-1]
    assert figures["config"]["model"]["attention"] == "cudnn"
    step = figures["step"]
    assert figures["memory_bytes"] >= step["arguments"] + step["temporary"]
    assert step["arguments"] >= step["state"] + step["batch"]
    gradients = [one for one in step["exchanges"] if one["kind"] == "all-reduce"]
    assert {one["axes"] for one in gradients} == {"data"}
    assert {one["group"] for one in gradients} == {8}
    # Those of all parameters at least, in float32; the state has them and two moments of Adam.
    assert sum(one["num_bytes"] for one in gradients) >= 0.9 * step["state"] / 3
    times = figures["forecast"]
    assert times["spent_flops"] > times["useful_flops"] > 0
    # The run has a length in steps; GPUs have no cycles.
    assert f"{figures['steps']:,} steps: " in printed
    assert "published rates, without overlap" in printed
    assert times["by_cycles"] is None
    best, worst = times["at_least"], times["one_after_the_other"]
    assert best["images_per_second"] > worst["images_per_second"] > 0
    assert 1 > best["mfu"] > worst["mfu"] > 0
    pallas = [TINY, "--topology=h100x8", "--model.attention=pallas"]
    assert command.main(pallas) == 2  # which a run on GPUs refuses too
    assert "model.attention='pallas' needs a TPU" in capsys.readouterr().err


STEP = CompiledStep(
    seconds=1.0,
    state=2 * 2**30,
    optimizer=2**30,
    batch=2**30,
    arguments=3 * 2**30,
    temporary=3 * 2**30,
    peak=5 * 2**30,
    schedule=Schedule(819e6, 1.5e6, {"vision": {"products": 1.5e6}}, 0),
    exchanges=(
        Exchange("all-reduce", "data", False, 4, 1, 0, 90_000_000, 90_000_000),
        Exchange("collective-permute", "data", True, 4, 1, 0, 9_000_000, 36_000_000),
        Exchange("all-gather", "nothing", False, 1, 1, 0, 10**12, 10**12),
    ),
    largest=(),
)


def test_times_are_those_of_the_published_rates():
    peak = PEAKS["TPU v5 lite"]
    times = forecast(STEP, tiny_config(), num_devices=4, peak=peak, tiled=False)
    assert times.memory == pytest.approx(1e-3)
    # 2 x 3/4 of 90 MB at 90 GB/s, and 36 MB one way round, at half of that; what one device alone
    # exchanges takes no time.
    assert times.network == pytest.approx((135 + 2 * 36) / 90_000)
    assert times.compute == pytest.approx(times.spent_flops / (4 * 197e12))
    assert times.estimated == pytest.approx(1e-3, rel=0.01)  # at 1.5 GHz
    assert times.at_least == max(times.compute, times.memory, times.network)
    mfu = times.mfu(2e-3, num_devices=4, peak=peak)
    assert mfu == pytest.approx(times.useful_flops / (2e-3 * 4 * 197e12))


def timed_plan(*, estimated: bool = True, length: int | None = 7_200) -> Plan:
    """Of eight devices of a v5e; without the compiler's cycles where not `estimated`."""
    plan = plan_of(STEP)
    assert plan.topology.peak is not None
    times = forecast(STEP, plan.config, num_devices=8, peak=plan.topology.peak, tiled=False)
    if not estimated:
        times = dataclasses.replace(times, estimated=None)
    return dataclasses.replace(plan, times=times, length=length)


def printed_rows(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=1_000)
    command.print_plan(plan, console)
    return console.file.getvalue()


def test_pace_and_length_are_by_the_cycles_with_the_network_after_them():
    plan = timed_plan()
    assert plan.times is not None
    assert plan.times.estimated is not None
    found = paces(plan)["by_cycles"]
    assert found is not None
    seconds = plan.times.estimated + plan.times.network
    assert found.seconds == pytest.approx(seconds)
    assert found.images_per_second == pytest.approx(plan.config.batch_size / seconds)
    assert found.images_per_second == pytest.approx(images_per_second(plan))
    assert found.mfu == pytest.approx(plan.times.useful_flops / (seconds * 8 * 197e12))
    assert found.hours == pytest.approx(2 * seconds)
    assert found.device_hours == pytest.approx(16 * seconds)
    stored = json.loads(json.dumps(command.figures(plan)))
    assert stored["forecast"]["by_cycles"]["hours"] == found.hours
    assert stored["forecast"]["at_least"]["hours"] < found.hours
    printed = printed_rows(plan)
    assert f"{1e3 * seconds:.3g} ms a step, {found.images_per_second:,.0f} images/s" in printed
    assert f"7,200 steps: {found.hours:.3g} hours" in printed
    assert "by the compiler's cycles, the network after them; at published rates" in printed


def test_without_cycles_the_run_is_as_long_as_by_the_published_rates_without_overlap():
    plan = timed_plan(estimated=False)
    found = paces(plan)
    assert found["by_cycles"] is None
    assert found["one_after_the_other"] is not None
    printed = printed_rows(plan)
    assert "the network after them" not in printed
    assert f"7,200 steps: {found['one_after_the_other'].hours:.3g} hours" in printed
    assert "by published rates, without overlap" in printed


def test_a_run_of_unknown_length_says_what_to_give():
    assert "give --num_images" in printed_rows(timed_plan(length=None))


def test_steps_that_are_given_are_the_length_also_with_a_warm_up_in_epochs(monkeypatch):
    config = tiny_config()
    config.optim.warmup_steps, config.optim.warmup_epochs = 0, 2.0
    compiled = "grain_jax.benchmarking.planning.compile_step"
    monkeypatch.setattr(compiled, lambda *_, **__: STEP)
    assert make_plan(config, open_topology("h100x8")).length == config.steps > 0
    config.steps, config.epochs = 0, 2.0
    assert make_plan(config, open_topology("h100x8")).length is None
    assert make_plan(config, open_topology("h100x8"), num_images=160).length == 20


def test_parts_that_are_frozen_have_no_mfu():
    plan = timed_plan()
    plan.config.optim.trained_vision_layers = 0
    found = paces(plan)["by_cycles"]
    assert found is not None
    assert found.mfu is None
    assert "MFU" in printed_rows(plan)
    assert "not counted" in printed_rows(plan)


def test_how_long_it_takes_is_said_before_it_begins(monkeypatch, capsys):
    def refused(config, topology, **_):
        raise ValueError(f"said before: {capsys.readouterr().err}")

    monkeypatch.setattr(command, "make_plan", refused)
    assert command.main([TINY, "--topology=cpu:8"]) == 2
    assert "said before: Compiling for cpu:8, 8 devices: " in capsys.readouterr().err
    plan = timed_plan()
    said = command.compilation_in_words(plan.config, plan.topology, count=1)
    assert said.startswith("Compiling for v5e:2x2, 8 devices: two to six minutes for ViT-B/16")
    assert said.endswith("unrolled layers take longer, as here.")
    plan.config.model.scan_layers = True
    said = command.compilation_in_words(plan.config, plan.topology, count=6)
    assert said.startswith("Compiling up to 6 programs, one after the other, for v5e:2x2")
    assert said.endswith("unrolled layers take longer.")


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 4}, {"tensor": 8}])
@pytest.mark.parametrize("settings", [{}, {"image_caption": "sigmoid"}, {"region_weight": 0.0}])
def test_tiles_are_taken_from_the_least_batch_with_more_than_the_limit(mesh, settings):
    config, sizes = tiny_config(), {"data": 1, "fsdp": 1, "tensor": 1} | mesh
    config.optim.grad_cache_chunks = 2
    config.loss = dataclasses.replace(config.loss, **settings)
    abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    unit = 2 * sizes["data"] * sizes["fsdp"]
    config.batch_size = tiled_from(config, abstract)
    assert config.batch_size % unit == 0
    assert logits_form(config, abstract).tiled
    assert tiled_from(config, abstract) == config.batch_size
    config.batch_size -= unit
    assert not logits_form(config, abstract).tiled


def test_a_plan_says_from_which_batch_on_tiles_are_taken():
    plan = timed_plan()
    least = tiled_from(plan.config, plan.mesh)
    printed = printed_rows(plan)
    # 16 x 16 of images and captions, (3 x 16) squared of regions, in float32 over 8 devices
    size = 4 * (16**2 + 48**2) / 8
    assert command.figures(plan)["logits"] == {
        "tiled": False,
        "dense_bytes": size,
        "tiled_from_batch_size": least,
    }
    assert f"softmax, dense: dense they have {size / 2**30:.3g} GiB" in printed
    assert f"above 1 GiB, here from batch_size {least:,}" in printed
    plan.config.loss.logits = "tiled"
    assert "in tiles, as loss.logits says" in printed_rows(plan)


@pytest.mark.parametrize(
    ("remat", "peak", "noted"),
    [("none", "TPU v5 lite", True), ("full", "TPU v5 lite", False), ("none", "H100", False)],
)
def test_scanned_layers_without_recomputation_are_noted_before(
    remat, peak, noted, monkeypatch, capsys
):
    monkeypatch.setattr(command, "make_plan", lambda config, *_, **__: timed_plan())
    devices = open_topology("cpu:8").devices
    topology = Topology("cpu:8", devices, PEAKS[peak])
    monkeypatch.setattr(command, "open_topology", lambda name, num_slices: topology)
    words = ["--topology=cpu:8", "--model.scan_layers=true", f"--model.remat={remat}"]
    assert command.main([TINY, *words]) == 0
    assert ("add --model.remat=full.\nCompiling" in capsys.readouterr().err) == noted


def test_between_slices_each_device_exchanges_its_part_of_the_slice():
    peak = PEAKS["H100"]
    gradients = Exchange("all-reduce", "data", False, 16, 1, 0, 10**9, 10**9)
    inside, across = 2 * 7 / 8 * 1e9 / 450e9, 2 * 1 / 2 * 1e9 / 8 / 50e9
    assert gradients.seconds(peak, num_slices=2) == pytest.approx(inside + across)
    assert gradients.seconds(peak) == pytest.approx(2 * 15 / 16 * 1e9 / 450e9)
    # Only "data" crosses; where it does nothing else, all of it goes over the network.
    split = Exchange("all-gather", "fsdp", False, 8, 1, 0, 10**9, 10**9)
    assert split.seconds(peak, num_slices=2) == split.seconds(peak)
    # What is passed on goes whole through the device at the edge of a node.
    passed = Exchange("collective-permute", "data", True, 16, 1, 0, 10**9, 10**9)
    assert passed.seconds(peak, num_slices=2) == pytest.approx(1e9 / 450e9 + 1e9 / 50e9)
    alone = Exchange("all-reduce", "data", False, 2, 1, 0, 10**9, 10**9)
    assert alone.seconds(peak, num_slices=2) == pytest.approx(1e9 / 50e9)


@pytest.mark.slow
def test_nodes_of_gpus_exchange_parameters_within_and_gradients_between(tmp_path, capsys):
    """Two nodes of four."""
    found = tmp_path / "plan.json"
    words = [TINY, "--topology=h100x4", "--num_slices=2", "--mesh.preset=fsdp"]
    assert command.main([*words, f"--json={found}"]) == 0
    figures = json.loads(found.read_text())
    assert (figures["num_slices"], figures["mesh"]["data"], figures["mesh"]["fsdp"]) == (2, 2, 4)
    over = {one["axes"] for one in figures["step"]["exchanges"] if one["kind"] == "all-gather"}
    assert "fsdp" in over
    assert command.main([*words, "--mesh.preset=auto", "--mesh.fsdp=8"]) == 2
    assert "would cross the network" in " ".join(capsys.readouterr().err.split())
    assert command.main([TINY, "--topology=h100x4", "--num_slices=0"]) == 2


def test_recomputation_and_precision_are_spent_and_not_useful():
    peak, config = PEAKS["TPU v5 lite"], tiny_config()

    def spent(*, tiled: bool = False) -> float:
        return forecast(STEP, config, num_devices=4, peak=peak, tiled=tiled).spent_flops

    useful = forecast(STEP, config, num_devices=4, peak=peak, tiled=False).useful_flops
    highest = spent()
    config.loss.logits_precision = "default"
    losses = (highest - spent()) / 5  # six passes and one
    assert spent() == pytest.approx(useful)
    assert spent(tiled=True) == pytest.approx(useful + losses / 3)
    config.model.remat = "full"
    assert spent() == pytest.approx(useful + (useful - losses) / 3)
    config.optim.grad_cache_chunks = 2
    assert spent() == pytest.approx(useful + 2 * (useful - losses) / 3)


def plan_of(step, *, limit_name: str = "v5e:2x2", needed=None, **settings):
    config = tiny_config()
    config.model.remat = settings.get("remat", "none")
    config.model.scan_layers = settings.get("scan_layers", False)
    topology = open_topology("h100x8")
    peak = PEAKS["TPU v5 lite"]
    topology = type(topology)(limit_name, topology.devices, peak)
    mesh = make_mesh(MeshConfig(), topology.devices)
    return Plan(config, topology, mesh, step, needed, None, None)


def test_the_first_line_says_whether_it_fits_and_what_to_change():
    plan = plan_of(STEP)
    assert plan.fits
    assert verdict(plan) == "Fits: 6 GiB of 15.75 GiB a device, 62% left."
    large = plan_of(None, needed=48 * 2**30)
    assert large.fits is False
    said = verdict(large)
    assert said.startswith("Does not fit: 48 GiB a device, which has 15.75 GiB.")
    assert "--model.remat=full" in said
    full = plan_of(None, needed=48 * 2**30, remat="full", scan_layers=True)
    assert next(changes(full)).startswith("--mesh.preset=fsdp")


def test_what_changes_the_values_of_training_is_advised_last():
    plan = plan_of(None, needed=48 * 2**30)
    names = [change.split("=")[0].removeprefix("--") for change in changes(plan)]
    assert names == [
        *("model.remat", "model.scan_layers", "mesh.preset"),
        *("optim.grad_cache_chunks", "optim.moments_dtype"),
    ]
    # Of a state and batch that leave no room, parts of the batch would change nothing.
    large = dataclasses.replace(STEP, state=15 * 2**30, arguments=16 * 2**30)
    plan = dataclasses.replace(plan, step=large)
    assert not any("grad_cache_chunks" in change for change in changes(plan))
    assert list(changes(plan))[-1].startswith("--optim.moments_dtype=bfloat16")
    assert verdict(plan).startswith("Does not fit: 19 GiB")


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("", "expected a name such as"),
        ("v5e", "expected a name such as"),
        ("v9e:2x2", "expected one of"),
        ("v5e:2x2x2", "2 sides"),
        ("v5p:4x4", "3 sides"),
        ("v4:8x8", "3 sides"),
        ("h100x16", "1 to 8 GPUs"),
        ("h100x0", "1 to 8 GPUs"),
        ("cpu:0", "at least one CPU device"),
    ],
)
def test_other_topologies_are_refused(topology, message, capsys):
    assert command.main([TINY, f"--topology={topology}"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_tpu_compiler_needs_no_tpu(tmp_path):
    """In a process of its own: libtpu can be loaded once."""
    pytest.importorskip("libtpu")
    found = tmp_path / "plan.json"
    command_line = ["-m", "grain_jax.plan", TINY, "--topology=v5e:2x2", f"--json={found}"]
    subprocess.run([sys.executable, *command_line], check=True, env=environment())
    figures = json.loads(found.read_text())
    assert figures["fits"] is True
    assert figures["limit_bytes"] == 15.75 * 2**30
    assert {one["axes"] for one in figures["step"]["exchanges"]} == {"data"}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_finds_the_program_that_was_saved(tmp_path):
    """Compiled for the two devices of the host that the run makes; it compiles all but its step."""
    folder, workdir = tmp_path / "programs", tmp_path / "run"
    length = ["--steps=12", "--optim.warmup_steps=2"]
    variables = environment() | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)

    def run(*words: str) -> None:
        subprocess.run([sys.executable, "-m", *words, TINY, *length], check=True, env=variables)

    run("grain_jax.plan", "--topology=cpu:2", f"--save={folder}")
    saved = {path.name for path in folder.glob("jit_step*")}
    assert len(saved) == 1
    cache = f"--logging.compilation_cache={folder}"
    run("grain_jax.train", f"--workdir={workdir}", "--max_steps_this_run=1", cache)
    assert {path.name for path in folder.glob("jit_step*")} == saved
    assert len(list(folder.iterdir())) > 1  # the run did use the folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=cpu:8", "--sweep"], "give --hlo and --save for one"),
        (["--topology=h100x8", "--steps=12", "--optim.warmup_steps=2"], "GPUs cannot run that"),
        (["--topology=cpu:8", "--steps=0", "--epochs=2"], "--num_images"),
    ],
)
def test_a_program_that_no_run_would_find_is_not_saved(words, message, tmp_path, capsys):
    assert command.main([TINY, *words, f"--save={tmp_path / 'programs'}"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "programs").exists()


@pytest.mark.slow
def test_a_sweep_compiles_each_setting_and_ranks_them(tmp_path, capsys):
    found = tmp_path / "sweep.json"
    words = [TINY, "--topology=h100x8", "--sweep", "--sweep_presets", "dp", f"--json={found}"]
    assert command.main([*words, "--sweep_batch_sizes", "16"]) == 0
    printed = capsys.readouterr()
    assert "3 of 3" in printed.err
    assert printed.out.startswith("Best: --mesh.preset=dp --model.remat=")
    rows = json.loads(found.read_text())
    assert {row["config"]["model"]["remat"] for row in rows} == {"none", "dots", "full"}
    assert {row["mesh"]["data"] for row in rows} == {8}
    assert all(row["fits"] for row in rows)
    rates = []
    for row in rows:
        times = row["forecast"]
        rates.append(1 / (times["compute"] + times["memory"] + times["network"]))
    assert rates == sorted(rates, reverse=True)
    # None recomputes nothing, so it spends least.
    spent = {row["config"]["model"]["remat"]: row["forecast"]["spent_flops"] for row in rows}
    assert spent["none"] < spent["full"]


def test_what_needs_more_than_what_did_not_fit_is_not_compiled(monkeypatch):
    asked = []

    def of_size(config, topology, *, num_images):
        asked.append((config.batch_size, config.model.remat))
        fitting = config.batch_size == 16 and config.model.remat != "none"
        return plan_of(STEP if fitting else None)

    monkeypatch.setattr("grain_jax.benchmarking.planning.make_plan", of_size)
    settings = candidates(presets=["dp"], remats=["none", "dots", "full"], batch_sizes=[32, 16])
    found = dict(sweep(tiny_config(), open_topology("h100x8"), settings))
    assert asked == [(16, "full"), (16, "dots"), (16, "none"), (32, "full")]
    assert found[Candidate("dp", "dots", 32)] is None
    assert images_per_second(found[Candidate("dp", "none", 16)]) == 0.0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "mesh dp fsdp, remat dots full none, batch 16"),
        (["--model.remat=full"], "mesh dp fsdp, remat full, batch 16"),
        (["--model.remat=none"], "mesh dp fsdp, remat none, batch 16"),  # as it is by default
        (["--batch_size=32"], "mesh dp fsdp, remat dots full none, batch 32"),
        (["--mesh.preset=fsdp"], "mesh None, remat dots full none, batch 16"),
        (["--mesh.preset=auto"], "mesh None, remat dots full none, batch 16"),
        (["--mesh.fsdp=2", "--mesh.data=-1"], "mesh None, remat dots full none, batch 16"),
        (
            ["--sweep_presets", "dp", "--sweep_batch_sizes", "8"],
            "mesh dp, remat dots full none, batch 8",
        ),
    ],
)
def test_what_the_command_line_gives_stays_in_a_sweep(words, expected, monkeypatch):
    asked = []

    def nothing(config, topology, settings, *, num_images):
        asked.extend(settings)
        return iter([(one, plan_of(STEP)) for one in settings])

    monkeypatch.setattr(command, "sweep", nothing)
    assert command.main([TINY, "--topology=h100x8", "--sweep", *words]) == 0
    presets = " ".join(sorted({str(one.preset) for one in asked}))
    remats = " ".join(sorted({one.remat for one in asked}))
    batches = " ".join(sorted({str(one.batch_size) for one in asked}))
    assert f"mesh {presets}, remat {remats}, batch {batches}" == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_images=-1"], "--num_images=-1"),
        (["--json=."], "is a folder"),
        (["--hlo=nowhere/step.txt"], "make it first"),
        (["--sweep_batch_sizes", "16"], "is of --sweep"),
        (["--sweep", "--sweep_presets"], "at least one"),
        (["--sweep", "--sweep_presets", "dp", "--mesh.fsdp=2"], "give either"),
        (["--sweep", "--sweep_batch_sizes", "16", "17"], "batch_size = 17"),
        (["--sweep", "--sweep_batch_sizes", "16", "--batch_size=16"], "give either"),
        (["--sweep", "--sweep_presets", "dp", "fsdp", "--mesh.fsdp=2"], "give either"),
        (["--sweep_presets", "dp", "fsdp"], "is of --sweep"),
        (["--num_images=9"], "--num_images has no effect"),
        (["--mesh.cpu_devices=8"], "--topology=cpu:N"),
        (["--logging.compilation_cache=programs"], "--save=FOLDER"),
        (["--logging.plan=plan.json"], "--json=FILE"),
    ],
)
def test_what_would_fail_late_or_be_ignored_is_refused(words, message, capsys):
    assert command.main([TINY, "--topology=h100x8", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 48.52G of 15.75G hbm. Exceeded hbm capacity by 32.77G.",
            int(48.52 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: of a form that says no size", None),
    ],
)
def test_what_a_refused_step_needs_is_read_from_the_refusal(text, needed):
    found = refusal(text)
    assert isinstance(found, OutOfMemoryError)
    assert found.needed == needed


def test_another_refusal_is_no_lack_of_memory_of_the_chip():
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 130.00M of 128.00M vmem."
    )
    assert not isinstance(refusal(text), OutOfMemoryError)
    assert "vmem" in str(refusal(text))
    assert "INTERNAL" in str(refusal("INTERNAL: Mosaic failed"))


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:16x16", "v5p:8x8x8", "v5p:4x8x8", "v6e:8x8", "v4:4x4x8"])
def test_the_mesh_of_a_pod_can_be_laid_over_its_chips(topology):
    """In a process of its own, as above. `AbstractMesh` knows no grid of chips."""
    pytest.importorskip("libtpu")
    program = (
        "from grain_jax.benchmarking.planning import check_mesh\n"
        "from grain_jax.benchmarking.topology import open_topology\n"
        "from grain_jax.config import TrainConfig\n"
        f"mesh = check_mesh(TrainConfig(batch_size=4096), open_topology('{topology}'))\n"
        "assert mesh.shape['fsdp'] in (8, 16), mesh.shape\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())
