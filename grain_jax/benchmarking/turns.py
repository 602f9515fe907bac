"""Times a training step and the same step of another code in turns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from grain_jax.benchmarking.memory import peak_bytes_of_process
from grain_jax.benchmarking.step import OpenStep

REST = 0.5  # seconds before each turn, so that no thread of the other still spins for work
TURN = 1.0  # seconds that a turn takes at least, in whole steps


class Peer(Protocol):
    """A training step of another code, on the random batch of a configuration."""

    name: str
    differences: tuple[str, ...]  # from the model and the step of the configuration, in words
    parameters: int  # that are trained

    def run(self) -> None:
        """Starts one step."""
        ...

    def wait(self) -> float:
        """Waits for all steps that were started; the loss of the last."""
        ...

    def peak_bytes(self) -> int | None:
        """Most memory of its device that it has held; None where that is not known."""
        ...


@dataclass(frozen=True)
class Turns:
    """Seconds a step of both codes, turn by turn: own[i] was measured right before theirs[i]."""

    peer: str
    own: tuple[float, ...]
    theirs: tuple[float, ...]
    steps_a_turn: int
    differences: tuple[str, ...]
    own_parameters: int
    their_parameters: int
    their_loss: float
    their_peak_bytes: int | None
    own_peak_bytes: int | None  # as theirs: of the device, on a CPU of the process

    @property
    def ratios(self) -> tuple[float, ...]:
        """Of their seconds to grain_jax's, turn by turn: more than 1 is faster than theirs."""
        return tuple(b / a for a, b in zip(self.own, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.theirs) / statistics.median(self.own)


def time_in_turns(step: OpenStep, peer: Peer, *, num_turns: int) -> Turns:
    """Runs both codes in turns: grain_jax, the other, grain_jax, ...

    Both warm up before, and take as many steps a turn as make the faster one last a second.
    """
    codes: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
        (step.run, jax.block_until_ready),
        (peer.run, lambda _: peer.wait()),
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    quickest = min(min(_turn(*code, 1) for _ in range(2)) for code in codes)
    count = max(1, round(TURN / quickest))
    for _ in range(num_turns):
        for taken, code in zip(seconds, codes, strict=True):
            time.sleep(REST)
            taken.append(_turn(*code, count))
    return Turns(
        peer=peer.name,
        own=tuple(seconds[0]),
        theirs=tuple(seconds[1]),
        steps_a_turn=count,
        differences=peer.differences,
        own_parameters=sum(leaf.size for leaf in jax.tree.leaves(step.state.params)),
        their_parameters=peer.parameters,
        their_loss=peer.wait(),
        their_peak_bytes=peer.peak_bytes(),
        own_peak_bytes=step.peak_bytes() or peak_bytes_of_process(),
    )


def _turn(run: Callable[[], Any], wait: Callable[[Any], Any], count: int) -> float:
    """Seconds a step."""
    started = time.perf_counter()
    for _ in range(count):
        last = run()
    wait(last)
    return (time.perf_counter() - started) / count
