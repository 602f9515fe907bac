"""Two codes timed in turns, with a code in place of the other that takes a known time."""

import time
from typing import Any, cast

import jax.numpy as jnp
import pytest

from grain_jax.benchmarking import turns
from grain_jax.benchmarking.report import turns_rows
from grain_jax.benchmarking.step import OpenStep


class Sleeping:
    """A step that takes as long as it is told, and notes who ran."""

    name, differences, parameters = "other", ("sleeps",), 7

    def __init__(self, seconds: float, log: list[str]) -> None:
        self.seconds, self.log = seconds, log

    def run(self) -> None:
        time.sleep(self.seconds)
        self.log.append(self.name)

    def wait(self) -> float:
        return 2.5

    def peak_bytes(self) -> int | None:
        return 3 * 2**30


class Own(Sleeping):
    name = "own"

    class state:
        params = {"w": jnp.zeros((2, 3))}  # noqa: RUF012


def test_turns_alternate_and_give_the_ratio_of_the_seconds(monkeypatch):
    monkeypatch.setattr(turns, "REST", 0.0)
    monkeypatch.setattr(turns, "TURN", 0.05)
    log: list[str] = []
    own = cast(OpenStep, Own(0.02, log))
    other: Any = Sleeping(0.08, log)
    found = turns.time_in_turns(own, other, num_turns=3)
    count = found.steps_a_turn
    assert 1 <= count <= 3  # of the faster one make a turn
    assert log[-6 * count :] == (["own"] * count + ["other"] * count) * 3
    assert len(found.own) == len(found.theirs) == 3
    assert found.ratio == pytest.approx(4, rel=0.5)
    assert min(found.ratios) > 1
    assert (found.own_parameters, found.their_parameters, found.their_loss) == (6, 7, 2.5)
    assert (found.own_peak_bytes, found.their_peak_bytes) == (3 * 2**30, 3 * 2**30)
    assert turns_rows(found)["peak memory"].startswith("3.00 GiB grain_jax, 3.00 GiB other")
