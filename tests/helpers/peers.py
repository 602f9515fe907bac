"""Steps of other codes that a process of its own can import, without JAX and torch."""

import os


class Counting:
    """Its loss is the number of steps that were run, in the process that it is in."""

    name, differences = "counting", ("counts",)

    def __init__(self, *, peak: int | None = None) -> None:
        self.peak, self.steps = peak, 0
        self.parameters = os.getpid()

    def run(self) -> None:
        self.steps += 1

    def wait(self) -> float:
        return float(self.steps)

    def peak_bytes(self) -> int | None:
        return self.peak


class Dying(Counting):
    """Ends its process at the first step."""

    def run(self) -> None:
        os._exit(41)


class Large(Counting):
    """Runs out of memory as torch says it of a CPU."""

    def run(self) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.")


def missing() -> Counting:
    """Not to be had."""
    raise ValueError("--counting needs abacus, which is not installed.")
