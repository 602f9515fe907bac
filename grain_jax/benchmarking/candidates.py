"""Settings that a sweep tries one after the other, and which of them need not be tried."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from grain_jax.config import TrainConfig
from grain_jax.config.schema import Preset, Remat

LEAST_MEMORY_FIRST: tuple[Remat, ...] = ("full", "dots", "none")


@dataclass(frozen=True)
class Candidate:
    """One setting of a sweep, as flags, and what it changes in the config."""

    preset: Preset | None  # None: the mesh that the config gives
    remat: Remat
    batch_size: int

    @property
    def flags(self) -> str:
        """To give to `python -m grain_jax.train`."""
        preset = f"--mesh.preset={self.preset} " if self.preset else ""
        return f"{preset}--model.remat={self.remat} --batch_size={self.batch_size}"

    def config(self, base: TrainConfig) -> TrainConfig:
        """`base` with these settings."""
        mesh = replace(base.mesh, preset=self.preset) if self.preset else base.mesh
        model = replace(base.model, remat=self.remat)
        return replace(base, mesh=mesh, model=model, batch_size=self.batch_size)


def candidates(
    *, presets: Sequence[Preset | None], remats: Sequence[Remat], batch_sizes: Sequence[int]
) -> list[Candidate]:
    """All settings of a sweep; those that need least memory come first."""
    by_memory = sorted(remats, key=LEAST_MEMORY_FIRST.index)
    return [
        Candidate(preset, remat, batch_size)
        for preset, batch_size, remat in itertools.product(presets, sorted(batch_sizes), by_memory)
    ]


def cannot_fit(candidate: Candidate, refused: Iterable[Candidate]) -> bool:
    """Whether it needs at least the memory of one that did not fit: as large a batch or a larger
    one, with as little recomputation or less, on the same mesh.
    """
    rank = LEAST_MEMORY_FIRST.index
    return any(
        before.preset == candidate.preset
        and before.batch_size <= candidate.batch_size
        and rank(before.remat) <= rank(candidate.remat)
        for before in refused
    )
