"""Which form the logits of the contrastive losses take, by their size on a device."""

import math

from jax.sharding import AbstractMesh, Mesh

from grain_jax.config import TrainConfig
from grain_jax.losses.log_sum_exp import LogitsForm
from grain_jax.parallel.sharding import BATCH_AXES

DENSE_BYTES = 2**30  # of a device's dense logits; "auto" computes larger ones in tiles


def logits_form(config: TrainConfig, mesh: Mesh | AbstractMesh) -> LogitsForm:
    """As `loss.logits` says, around the axes of `mesh` that split the batch."""
    tiled = config.loss.logits == "tiled" or (
        config.loss.logits == "auto" and dense_bytes(config, mesh) > DENSE_BYTES
    )
    return LogitsForm(tiled, _batch_axes(mesh), config.loss.logits_precision)


def dense_bytes(config: TrainConfig, mesh: Mesh | AbstractMesh) -> float:
    """Of the logits in float32 that a device has in the dense form, each once."""
    return 4 * num_logits(config) / math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))


def tiled_from(config: TrainConfig, mesh: Mesh | AbstractMesh) -> int:
    """The least batch that this mesh can split and whose logits "auto" computes in tiles."""
    shards = math.prod(mesh.shape[axis] for axis in _batch_axes(mesh))
    unit = shards * config.optim.grad_cache_chunks
    per_pair = num_logits(config) / config.batch_size**2  # all of them grow with its square
    return unit * (math.isqrt(int(DENSE_BYTES * shards / (4 * per_pair))) // unit + 1)


def num_logits(config: TrainConfig) -> int:
    """Pairs that the losses of a batch compare."""
    batch = config.batch_size
    regions = batch * config.data.max_regions
    logits = batch * batch
    if config.model.type == "grain" and config.loss.region_weight:
        logits += regions * regions
    if config.loss.image_description_weight:
        logits += batch * regions
    return logits


def _batch_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    return tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
