"""How fast a planned run would be, by each of the estimates of its step."""

from dataclasses import dataclass

from grain_jax.benchmarking.planning import Plan
from grain_jax.config import TrainConfig
from grain_jax.models.image_text import abstract_params
from grain_jax.training.trainable import split_frozen


@dataclass(frozen=True)
class Pace:
    """What follows from the time of a step."""

    seconds: float  # of a step
    images_per_second: float
    mfu: float | None  # None where parameters are frozen, so that less is computed than it counts
    hours: float | None = None  # of the run; None where its length is not known
    device_hours: float | None = None


def paces(plan: Plan) -> dict[str, Pace | None]:
    """By the published rates, all beside each other and one after the other, and by the compiler's
    cycles with the network after them, None where there are none. Empty without times.
    """
    times, peak = plan.times, plan.topology.peak
    if times is None or peak is None:
        return {}
    frozen, count = has_frozen(plan.config), plan.mesh.size

    def pace(seconds: float) -> Pace:
        mfu = None if frozen else times.mfu(seconds, num_devices=count, peak=peak)
        hours = None if plan.length is None else plan.length * seconds / 3600
        return Pace(
            seconds=seconds,
            images_per_second=plan.config.batch_size / seconds,
            mfu=mfu,
            hours=hours,
            device_hours=None if hours is None else hours * count,
        )

    cycles = times.cycles_and_network
    return {
        "at_least": pace(times.at_least),
        "one_after_the_other": pace(times.one_after_the_other),
        "by_cycles": None if cycles is None else pace(cycles),
    }


def has_frozen(config: TrainConfig) -> bool:
    """Whether less is computed than `step_flops` counts."""
    shapes = abstract_params(
        config.model,
        scan_layers=config.model.scan_layers,
        sigmoid=config.loss.image_caption == "sigmoid",
    )
    return bool(split_frozen(shapes, config.optim)[1])
