"""How long a compiled step takes at best, by published rates of the devices; a roofline.

Nothing is timed. It ranks settings; it does not predict a time, as no device reaches its rates.
"""

from dataclasses import dataclass

from grain_jax.benchmarking.compiled_step import CompiledStep
from grain_jax.benchmarking.flops import padded_positions, step_flops
from grain_jax.benchmarking.hardware import Peak
from grain_jax.config import TrainConfig
from grain_jax.data.region_coverage import needs_descriptions

# What a float32 product costs in bfloat16 products, by `loss.logits_precision`: a TPU makes it of
# as many; an H100 has 67 TFLOP/s in float32, and half its bfloat16 rate in TF32.
TPU_PASSES = {"highest": 6, "high": 3, "default": 1}
GPU_PASSES = {"highest": 15, "high": 6, "default": 2}
# Forward passes that are computed once more for the backward pass, by `model.remat`. "dots" keeps
# the products and computes the rest again, which counts nothing here.
RECOMPUTED = {"none": 0, "dots": 0, "full": 1}


@dataclass(frozen=True)
class Forecast:
    """Seconds of a step, each as if it were alone."""

    compute: float  # of the matrix products that are spent
    memory: float  # of what is read and written
    network: float  # of the collectives
    useful_flops: float  # of the global batch, as MFU counts them
    spent_flops: float  # with recomputation, and products of several passes
    text_flops: float = 0.0  # of the useful ones: the text tower's, padding included
    # By the cycles that the TPU compiler estimates, and the roofline of kernels, without network
    estimated: float | None = None

    @property
    def at_least(self) -> float:
        """If all three ran beside each other."""
        return max(self.compute, self.memory, self.network)

    @property
    def one_after_the_other(self) -> float:
        """If none ran beside another."""
        return self.compute + self.memory + self.network

    @property
    def cycles_and_network(self) -> float | None:
        """By the compiler's cycles, and the network after them; None without cycles."""
        return None if self.estimated is None else self.estimated + self.network

    def mfu(self, seconds: float, *, num_devices: int, peak: Peak) -> float:
        """Model FLOPs utilization of a step of that length."""
        return self.useful_flops / (seconds * num_devices * peak.bfloat16)


def forecast(
    step: CompiledStep,
    config: TrainConfig,
    *,
    num_devices: int,
    peak: Peak,
    tiled: bool,
    num_slices: int = 1,
    num_shards: int = 1,
) -> Forecast:
    """Of a step that was compiled for as many devices of these rates. `tiled`: its logits are.

    `num_shards`: devices, or groups of them, with rows of the batch of their own.
    """
    positions = padded_positions(config, num_shards=num_shards)
    flops = step_flops(config, positions, with_descriptions=needs_descriptions(config))
    passes = TPU_PASSES if peak.is_tpu else GPU_PASSES
    # The gradient of tiles computes them anew: four products, not three.
    losses = passes[config.loss.logits_precision] * flops.losses * (4 / 3 if tiled else 1.0)
    encoded = flops.total - flops.losses
    schedule = step.schedule
    cycles = schedule.cycles
    kernels = 0.0
    if schedule.kernels:
        rate, memory_rate = peak.bfloat16, peak.memory_rate
        kernels = max(schedule.kernel_flops / rate, schedule.kernel_bytes / memory_rate)
    # Forward passes, each one of three: recomputed layers, and in micro-batches all once more.
    again = RECOMPUTED[config.model.remat] + (config.optim.grad_cache_chunks > 1)
    spent = losses + encoded * (1 + again / 3)
    return Forecast(
        compute=spent / (num_devices * peak.bfloat16),
        memory=step.schedule.num_bytes / peak.memory_rate,
        network=sum(
            one.seconds(peak, num_slices=num_slices) for one in step.exchanges if one.group > 1
        ),
        useful_flops=flops.total,
        spent_flops=spent,
        text_flops=flops.texts,
        estimated=cycles / peak.clock + kernels if cycles and peak.clock else None,
    )
