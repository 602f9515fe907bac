"""What `python -m grain_jax.plan` found of this run, to print beside what the run measures."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from grain_jax.config import TrainConfig

MAX_BYTES = 16 * 2**20  # of the file
GIB = 2**30
# Settings that change the time or the memory of a step; a section stands for all of its settings.
PLANNED = (
    *("model", "loss", "batch_size", "data.max_regions"),
    *("data.caption_length", "data.description_length"),
    *("optim.grad_cache_chunks", "optim.ema_decay", "optim.moments_dtype"),
    "optim.clip_grad_norm",  # all gradients wait for their norm
    # What is frozen has no gradient and no optimizer state.
    *("optim.lr_multipliers", "optim.trained_vision_layers", "optim.trained_text_layers"),
)


@dataclass(frozen=True)
class Planned:
    """Of one step on one device."""

    at_least: float  # seconds, by published rates
    estimated: float | None  # seconds by the TPU compiler's cycles, with the network after them
    memory: int  # bytes

    def beside(self, seconds: float, memory: int | None) -> str:
        """A sentence: what was measured, and what was planned."""
        planned = f"at least {1e3 * self.at_least:,.3g} ms by published rates"
        if self.estimated is not None:
            planned += f", {1e3 * self.estimated:,.3g} ms by the compiler's cycles and the network"
        measured = f"{1e3 * seconds:,.3g} ms a step"
        room = f"{self.memory / GIB:.3g} GiB"
        if memory is None:
            return f"Measured: {measured}. Planned: {planned}; {room} a device."
        return f"Measured: {measured}, {memory / GIB:.3g} GiB. Planned: {planned}; {room} a device."


def read_plan(file: Path, config: TrainConfig, mesh: Mesh) -> Planned:
    """What one step of this run is planned to take: figures that `plan --json` wrote.

    Raises ValueError, which names `logging.plan`, for another file or the plan of another run.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
        planned_mesh, planned_config = found["mesh"], found["config"]
        memory, times = int(found["memory_bytes"]), found["forecast"]
        if times is None:
            raise ValueError("it has no times, as it does not fit or is of CPU devices")
        parts = [float(times[name]) for name in ("compute", "memory", "network")]
        cycles = times["estimated"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"logging.plan = {str(file)!r} is not a file that `python -m grain_jax.plan "
            f"--json=FILE` writes for one step: {error!r}"
        ) from error
    if planned_mesh != dict(mesh.shape):
        raise ValueError(
            f"logging.plan = {str(file)!r} is of the mesh {planned_mesh}, and this run has "
            f"{dict(mesh.shape)}; plan again for these devices."
        )
    for name in PLANNED:
        planned, own = _value(planned_config, name), _value(_as_json(config), name)
        if planned != own:
            raise ValueError(
                f"logging.plan = {str(file)!r} was made with {name} = {planned}, and this run has "
                f"{own}; plan again with the settings of the run."
            )
    estimated = None if cycles is None else float(cycles) + parts[2]
    return Planned(max(parts), estimated, memory)


def device_memory() -> int | None:
    """Most bytes in use on a device so far; None where the backend does not tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def _as_json(config: TrainConfig) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config
