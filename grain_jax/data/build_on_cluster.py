"""The shards of a split, built on the machines of a Ray cluster.

A task is a shard: it reads consecutive records and writes files of its own, and nothing but its
statistics comes back. The files are those that one process would write.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grain_jax.cluster import (
    ClusterFailed,
    connected,
    enter,
    import_ray,
    last_line,
    original,
    require_same_files,
    wait_until_seen,
)
from grain_jax.data.build_shard import Shard, build_shard
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.checks import DatasetStatistics
from grain_jax.data.importers import Importer

TRIES = 4  # of a shard whose worker or machine dies


def build_on_cluster(
    address: str,
    at_once: int | None,
    missing: list[Shard],
    spec: DatasetBuildSpec,
    importer: Importer,
) -> Iterator[tuple[Shard, DatasetStatistics]]:
    """A `ShardRunner`, of its last three arguments.

    Args:
        address: of the cluster, as `connected` takes it.
        at_once: shards at once; None: as many as the cluster has cores.

    Raises what `connected` does, ValueError where a machine does not see the files, what
    `build_shard` raises, and `ClusterFailed` where workers die.
    """
    with connected(address) as cluster:
        require_same_files(cluster, _paths(spec), shared=missing[0].path.parent)
        ray = import_ray()
        build = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_build)
        given = ray.put(spec), ray.put(importer)
        waiting, running = missing[::-1], dict[Any, Shard]()
        while waiting or running:
            while waiting and len(running) < (at_once or max(1, cluster.cpus)):
                shard = waiting.pop()
                running[build.remote(os.getcwd(), shard, *given)] = shard
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            shard = running.pop(done)
            statistics = _result(done, shard)
            wait_until_seen(shard.statistics_path)
            yield shard, statistics


def _result(done: Any, shard: Shard) -> DatasetStatistics:
    ray = import_ray()
    try:
        statistics: DatasetStatistics = ray.get(done)
    except ray.exceptions.RayError as error:
        if isinstance(cause := original(error), ValueError | OSError):
            raise cause from None
        raise ClusterFailed(
            f"The records {shard.start} to {shard.stop - 1} could not be built: {last_line(error)} "
            "If a worker died, then perhaps for want of memory; try fewer --workers. The same "
            "command continues; finished shards are kept."
        ) from None
    return statistics


def _build(
    folder: str, shard: Shard, spec: DatasetBuildSpec, importer: Importer
) -> DatasetStatistics:
    enter(folder)
    return build_shard(shard, spec, importer)


def _paths(spec: DatasetBuildSpec) -> dict[str, Path]:
    """What is read, by option."""
    paths = {"--input": spec.input, "--images": spec.images}
    paths["--merge_annotations"] = spec.merge_annotations
    return {name: path for name, path in paths.items() if path is not None}
