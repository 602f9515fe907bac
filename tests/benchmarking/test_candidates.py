"""Which settings a sweep tries, and which it need not."""

import typing

import pytest

from grain_jax.benchmarking.candidates import (
    LEAST_MEMORY_FIRST,
    Candidate,
    candidates,
    cannot_fit,
)
from grain_jax.config import TrainConfig
from grain_jax.config.schema import Remat


def test_what_needs_least_memory_comes_first():
    assert set(LEAST_MEMORY_FIRST) == set(typing.get_args(Remat))
    found = candidates(presets=["dp"], remats=["none", "full"], batch_sizes=[32, 16])
    assert [(one.remat, one.batch_size) for one in found] == [
        ("full", 16),
        ("none", 16),
        ("full", 32),
        ("none", 32),
    ]


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Candidate("dp", "dots", 16), True),
        (Candidate("dp", "none", 16), True),
        (Candidate("dp", "dots", 32), True),
        (Candidate("dp", "full", 16), False),
        (Candidate("dp", "full", 32), False),
        (Candidate("dp", "none", 8), False),
        (Candidate("fsdp", "none", 32), False),
    ],
)
def test_less_recomputation_and_a_larger_batch_need_more(candidate, expected):
    assert cannot_fit(candidate, [Candidate("dp", "dots", 16)]) is expected
    assert not cannot_fit(candidate, [])


def test_without_a_preset_the_mesh_of_the_config_stays():
    config = TrainConfig()
    config.mesh.fsdp = 2
    setting = Candidate(None, "full", 16)
    assert setting.flags == "--model.remat=full --batch_size=16"
    assert setting.config(config).mesh == config.mesh
