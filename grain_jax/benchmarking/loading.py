"""Times the loader, alone and in front of the training step."""

import dataclasses
import time
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from grain_jax.benchmarking.flops import TextPositions
from grain_jax.benchmarking.step import StepTiming, open_step, percentile
from grain_jax.benchmarking.synthetic_batch import text_positions
from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.batch import Batch
from grain_jax.data.loader import BatchIterator, prefetch_to_device, training_batches
from grain_jax.data.source import open_training_source
from grain_jax.data.tokenizer import build_tokenizer
from grain_jax.parallel import sharding

WARM_UP = 2  # batches beyond those that are made ahead


@dataclass(frozen=True)
class LoaderTiming:
    """What the batches of this process took, with nothing beside them."""

    seconds: tuple[float, ...]  # of each timed batch
    cpu_seconds: float | None  # of this process in that time; None where others load
    first_seconds: float  # until the first batch was there
    images: int  # of a batch
    bytes_of_image: int  # of a row of the batch, texts and boxes included
    plan: str  # threads, processes and memory, in words

    @property
    def images_per_second(self) -> float:
        """Over all timed batches together: single ones wait in a queue, and come in bursts."""
        return self.images * len(self.seconds) / sum(self.seconds)

    def percentile(self, percent: int) -> float:
        """Seconds that `percent` of the batches took at most."""
        return percentile(self.seconds, percent)


def open_batches(config: TrainConfig, loader: DataConfig, mesh: Mesh) -> BatchIterator:
    """The training batches of `config`, made as `loader` says.

    Raises ValueError where the data does not exist or has fewer images than a batch.
    """
    size = config.model.image_size
    return training_batches(
        open_training_source(config.data, image_size=size),
        loader,
        build_tokenizer(config.data, pooling=config.model.text.pooling),
        image_size=size,
        batch_size=config.batch_size,
        seed=config.seed,
        rows=sharding.local_rows(sharding.batch_sharding(mesh), config.batch_size),
    )


def time_loader(
    config: TrainConfig, loader: DataConfig, *, num_batches: int, mesh: Mesh
) -> LoaderTiming:
    """Times `num_batches` after all that were made ahead have been taken."""
    started = time.perf_counter()
    with open_batches(config, loader, mesh) as batches:
        batch = next(batches)
        first = time.perf_counter() - started
        for _ in range(loader.prefetch_batches + WARM_UP):
            next(batches)
        seconds = []
        cpu = time.process_time()
        for _ in range(num_batches):
            started = time.perf_counter()
            batch = next(batches)
            seconds.append(time.perf_counter() - started)
        cpu = time.process_time() - cpu
        rows = len(batch.images)
        return LoaderTiming(
            seconds=tuple(seconds),
            cpu_seconds=None if batches.plan.num_workers else cpu,
            first_seconds=first,
            images=rows,
            bytes_of_image=sum(leaf.nbytes for leaf in jax.tree.leaves(batch)) // rows,
            plan=batches.plan.sentence,
        )


def time_full(config: TrainConfig, loader: DataConfig, *, num_steps: int, mesh: Mesh) -> StepTiming:
    """Times steps on batches of the loader, as training takes them.

    The time of a step is from the end of one to the end of the next, so that it holds the wait for
    data; `data_wait` is the fraction of all of it that went into taking batches.
    """
    step = open_step(config, mesh)
    opened = open_batches(config, loader, mesh)
    # As training does: the copy of the next batch overlaps with the step on this one.
    with prefetch_to_device(
        opened, lambda batch: sharding.put_batch(batch, mesh, batch_size=config.batch_size)
    ) as batches:
        for _ in range(loader.prefetch_batches + WARM_UP):
            metrics = step.run(next(batches))
        jax.block_until_ready(metrics)
        ends = [time.perf_counter()]
        waited, taken = batches.wait_seconds, []
        ahead = None
        for _ in range(num_steps):
            batch = next(batches)
            taken.append(_texts(batch))
            following = step.run(batch)
            if ahead is not None:
                jax.block_until_ready(ahead)
                ends.append(time.perf_counter())
            ahead = metrics = following
        jax.block_until_ready(metrics)
        ends.append(time.perf_counter())
        fraction = (batches.wait_seconds - waited) / (ends[-1] - ends[0])
    shards = sharding.num_batch_shards(mesh)
    used = [text_positions(batch, config, num_shards=shards) for batch in taken]
    seconds = np.diff(ends).tolist()
    return step.timing(seconds, metrics, positions=_mean(used), data_wait=fraction)


def _texts(batch: Batch) -> Batch:
    """The batch without its images, which would stay on the devices."""
    return dataclasses.replace(batch, images=batch.index)


def _mean(positions: list[TextPositions]) -> TextPositions:
    """Of several batches; means over texts are weighted by their number."""
    captions = sum(one.captions for one in positions)
    descriptions = sum(one.descriptions for one in positions)

    def mean(name: str, count: str, total: float) -> float:
        return sum(getattr(p, name) * getattr(p, count) for p in positions) / max(total, 1.0)

    return TextPositions(
        captions=captions / len(positions),
        caption_positions=mean("caption_positions", "captions", captions),
        caption_pairs=mean("caption_pairs", "captions", captions),
        descriptions=descriptions / len(positions),
        description_positions=mean("description_positions", "descriptions", descriptions),
        description_pairs=mean("description_pairs", "descriptions", descriptions),
    )
