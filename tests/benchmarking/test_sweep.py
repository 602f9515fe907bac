"""What a sweep does at settings that do not fit, without compiling any."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from grain_jax.benchmarking import sweep
from grain_jax.benchmarking.candidates import Candidate
from grain_jax.benchmarking.compiled_step import OutOfMemoryError
from grain_jax.config import TrainConfig
from grain_jax.parallel import sharding


@pytest.fixture
def mesh():
    return sharding.make_mesh(TrainConfig().mesh)


@dataclasses.dataclass
class Timing:
    """In place of a timing: the batch, and as if the largest batch were slower."""

    images: int
    peak_bytes: int | None = 5

    @property
    def images_per_second(self) -> float:
        return 100.0 if self.images == 128 else 50.0


@pytest.fixture
def memory_of_two_batches(monkeypatch):
    """Steps of up to 128 images fit, with remat of up to 256."""

    def opened(config: TrainConfig, mesh: Any, *, fits: Any) -> TrainConfig:
        limit = 256 if config.model.remat == "full" else 128
        if config.batch_size > limit:
            raise OutOfMemoryError(10 * config.batch_size, "out of memory, it said")
        return config

    monkeypatch.setattr(sweep, "open_step", opened)
    monkeypatch.setattr(
        sweep, "time_open_step", lambda config, num_steps: Timing(config.batch_size)
    )


def test_batches_double_until_one_does_not_fit(memory_of_two_batches, mesh):
    found = list(
        sweep.sweep(
            TrainConfig(), batch_sizes=None, remats=["none", "full"], num_steps=1, mesh=mesh
        )
    )
    assert [(one.remat, one.batch_size, one.timing is not None) for one in found] == [
        ("none", 64, True),
        ("none", 128, True),
        ("none", 256, False),
        ("full", 64, True),
        ("full", 128, True),
        ("full", 256, True),
        ("full", 512, False),
    ]
    assert found[2].needed_bytes == 2560
    assert "it said" in found[2].reason
    assert found[1].timing is not None
    assert found[1].timing.peak_bytes is None  # the allocator's is that of all before it
    assert sweep.best(found) is found[1]
    assert sweep.best(found[2:3]) is None


def test_the_peak_that_the_compiler_plans_counts_as_memory(monkeypatch, mesh):
    """As `plan` counts it; there it is often more than what is there before and after."""
    compiled = SimpleNamespace(
        memory_analysis=lambda: SimpleNamespace(
            argument_size_in_bytes=1 << 40, temp_size_in_bytes=1 << 40, peak_memory_in_bytes=1 << 50
        )
    )
    monkeypatch.setattr(sweep, "open_step", lambda config, mesh, *, fits: fits(compiled))
    found = sweep.measure(TrainConfig(), num_steps=1, mesh=mesh)
    assert found.timing is None
    assert found.needed_bytes == 1 << 50


def test_a_batch_that_the_devices_do_not_divide_is_refused(memory_of_two_batches, mesh):
    with pytest.raises(ValueError, match="batch_size = 12"):
        list(sweep.sweep(TrainConfig(), batch_sizes=[12], remats=["none"], num_steps=1, mesh=mesh))


def test_what_needs_the_memory_of_one_that_did_not_fit_is_not_tried(memory_of_two_batches, mesh):
    found = list(
        sweep.sweep(
            TrainConfig(), batch_sizes=[512], remats=["full", "none"], num_steps=1, mesh=mesh
        )
    )
    assert [(one.remat, one.batch_size, one.reason) for one in found] == [
        ("full", 512, "out of memory, it said"),
        ("none", 512, sweep.UNTRIED),
    ]


def test_the_settings_that_a_sweep_starts_from_stay_as_they_are():
    config = TrainConfig()
    other = Candidate(None, "full", 3).config(config)
    assert (other.model.remat, other.batch_size) == ("full", 3)
    assert (config.model.remat, config.batch_size) == ("none", TrainConfig().batch_size)
