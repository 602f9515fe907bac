"""What was planned, beside what is measured; the plan of another run is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from tiny_run import tiny_config

import grain_jax.plan as command
from grain_jax.benchmarking import gpu_compiler
from grain_jax.benchmarking.planning import make_plan
from grain_jax.benchmarking.topology import open_topology
from grain_jax.config import MeshConfig
from grain_jax.parallel.sharding import make_mesh
from grain_jax.trainer.planned import Planned, read_plan


def written(folder: Path, **changes) -> Path:
    """Of the tests' model; the times are those of a forecast, made up."""
    config = tiny_config()
    times = {"compute": 0.1, "memory": 0.3, "network": 0.05, "estimated": 0.4}
    figures = {
        "mesh": {"data": 8, "fsdp": 1, "tensor": 1},
        "memory_bytes": 3 * 2**30,
        "forecast": times,
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
    } | changes
    file = folder / "plan.json"
    file.write_text(json.dumps(figures))
    return file


def test_times_and_memory_are_printed_beside_what_was_measured(tmp_path):
    planned = read_plan(written(tmp_path), tiny_config(), make_mesh(MeshConfig()))
    assert planned == Planned(at_least=0.3, estimated=pytest.approx(0.45), memory=3 * 2**30)
    assert planned.beside(0.5, 4 * 2**30) == (
        "Measured: 500 ms a step, 4 GiB. Planned: at least 300 ms by published rates, 450 ms by "
        "the compiler's cycles and the network; 3 GiB a device."
    )
    assert dataclasses.replace(planned, estimated=None).beside(0.5, None) == (
        "Measured: 500 ms a step. Planned: at least 300 ms by published rates; 3 GiB a device."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": {"data": 4, "fsdp": 2, "tensor": 1}}, r"is of the mesh .*'fsdp': 2"),
        ({"forecast": None}, "has no times"),
        ({"forecast": {"compute": "much"}}, "could not convert"),
        ({"config": {}}, "was made with model = None"),
        ({"memory_bytes": None}, "is not a file that"),
    ],
)
def test_the_plan_of_another_run_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_plan(written(tmp_path, **changes), tiny_config(), make_mesh(MeshConfig()))


def test_other_settings_than_planned_are_named(tmp_path):
    config = tiny_config()
    config.batch_size *= 2
    with pytest.raises(ValueError, match="batch_size"):
        read_plan(written(tmp_path), config, make_mesh(MeshConfig()))
    for content in ("", "[]", '{"mesh": 1}'):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(ValueError, match="is not a file that"):
            read_plan(tmp_path / "plan.json", config, make_mesh(MeshConfig()))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optim.moments_dtype", "bfloat16"),
        ("optim.clip_grad_norm", 1.0),
        ("optim.lr_multipliers", ("vision/*=0",)),
        ("optim.trained_vision_layers", 0),
        ("optim.trained_text_layers", 0),
        ("optim.ema_decay", 0.9),
        ("optim.grad_cache_chunks", 2),
        ("model.gradient_dtype", "float32"),
        ("model.text_tokens_per_image", 12.0),
        ("model.remat", "full"),
        ("loss.image_caption", "sigmoid"),
        ("loss.logits", "tiled"),
        ("loss.logits_precision", "default"),
    ],
)
def test_a_setting_that_changes_the_step_is_compared(setting, value, tmp_path):
    config, section, name = tiny_config(), *setting.split(".")
    setattr(getattr(config, section), name, value)
    named = setting if section == "optim" else section
    with pytest.raises(ValueError, match=f"was made with {named} = "):
        read_plan(written(tmp_path), config, make_mesh(MeshConfig()))


def test_settings_that_change_no_step_may_differ(tmp_path):
    config = tiny_config()
    config.seed, config.steps, config.optim.learning_rate = 1, 40, 1e-4
    config.data.num_threads, config.logging.log_interval_steps = 4, 10
    assert read_plan(written(tmp_path), config, make_mesh(MeshConfig())).memory == 3 * 2**30


@pytest.mark.slow
def test_what_plan_writes_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_compiler, "has_plugin", lambda: False)
    config = tiny_config()
    plan = make_plan(config, open_topology("h100x8"))
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(command.figures(plan)))
    planned = read_plan(file, config, make_mesh(MeshConfig(), jax.devices()))
    assert plan.times is not None
    assert planned == Planned(plan.times.at_least, None, plan.memory)
