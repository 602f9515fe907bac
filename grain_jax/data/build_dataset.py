"""Build one split of a prepared data set, in parallel and resumable after an interruption.

The input is cut into shards of consecutive records. Each shard is written atomically under
`OUT/.building/<split>/`, with its statistics beside it, under a name that is a hash of its input
and options. A later run keeps the shards whose records, options and skipped images have not
changed, so that a corrected input rebuilds only the shards it changes. At the end the shards move
to their final names and the metadata of all splits is written. A lock lets several processes build
different splits of one folder at once.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.data.build_shard import (
    Shard,
    build_in_worker,
    build_shard,
    is_current,
    read_json,
    start_worker,
    write_json,
)
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.checks import DatasetStatistics
from grain_jax.data.decoded_size import decoded_size_note
from grain_jax.data.image_files import MISSING_FILE
from grain_jax.data.importers import Importer
from grain_jax.data.merging import MergedImporter
from grain_jax.data.tfds_records import (
    SplitShards,
    shard_path,
    shard_paths,
    stored_splits,
    write_metadata,
)
from grain_jax.disk import write_whole

logger = logging.getLogger(__name__)

MAX_SHARDS = 1_000
MIN_SHARD = 500  # records; small enough that an interrupted run loses little
MOVING = "moving.json"  # beside the shards: identity of the build whose shards are being moved
CHECKS = 3  # raise when checks or stored fields change, so that unfinished shards are rebuilt
LOCK = ".lock"  # in the folder, held while its metadata is written


@dataclass(frozen=True)
class Progress:
    """The progress of a build, reported after each shard."""

    entries: int  # records read so far, including those of earlier runs
    total: int  # records of the input
    statistics: DatasetStatistics  # of the records read so far


# Who builds shards: gets those that are missing, and yields each with its statistics when its files
# are there, in any order.
ShardRunner = Callable[
    [list[Shard], DatasetBuildSpec, Importer], Iterator[tuple[Shard, DatasetStatistics]]
]


def report_path(out: Path, split: str) -> Path:
    """The file that holds the statistics of a finished split."""
    return out / f"report-{split}.json"


def descriptions_path(out: Path, split: str) -> Path:
    """The file that holds the descriptions of the classes of a split, if there are any."""
    return out / f"class_descriptions-{split}.json"


def is_built(spec: DatasetBuildSpec) -> bool:
    """Whether the split is finished, so that `build_split` only checks it."""
    return report_path(spec.out, spec.split).exists()


def build_split(
    spec: DatasetBuildSpec,
    *,
    workers: int = 1,
    runner: ShardRunner | None = None,
    progress: Callable[[Progress], None] = lambda state: None,
    note: Callable[[str], None] = lambda text: None,
) -> DatasetStatistics:
    """Builds the split, or the rest of an interrupted build; returns the statistics of the split.

    Args:
        spec: input, output and options.
        workers: processes; 1 builds in this process.
        runner: builds the shards instead of processes of this machine.
        progress: called after each shard.
        note: called before anything is built, with what to know of it.

    Raises ValueError for an invalid `spec`, for a split that is finished with another input or
    options, for one that another process is building, for an invalid record with
    `spec.on_error` "raise", and where every image is skipped.
    """
    spec.validate()
    importer = spec.importer()
    if not len(importer):
        raise ValueError(f"--input={spec.input} has no entries.")
    identity = _identity(spec, importer)
    folder = spec.out / ".building" / spec.split
    folder.mkdir(parents=True, exist_ok=True)
    taken = (
        f"Another process is building split {spec.split!r} in {spec.out}; wait until it is done, "
        "or choose another --split or --output."
    )
    with _locked(folder / "lock", taken=taken):
        run = functools.partial(build_in_processes, workers) if runner is None else runner
        return _build_rest(spec, importer, identity, folder, run, progress, note)


def _build_rest(
    spec: DatasetBuildSpec,
    importer: Importer,
    identity: dict[str, Any],
    folder: Path,
    runner: ShardRunner,
    progress: Callable[[Progress], None],
    note: Callable[[str], None],
) -> DatasetStatistics:
    if (report := read_json(report_path(spec.out, spec.split))) is not None:
        _remove_work(spec)
        _require_same(report["plan"], identity, spec, report_path(spec.out, spec.split))
        with _locked(spec.out / LOCK):
            _list_splits(spec.out)
        return DatasetStatistics.from_json(report["figures"])
    if sentence := decoded_size_note(spec, importer):
        note(sentence)
    shards = _cut(spec, importer, folder)
    # True after an interruption while shards moved: some are at their final names already.
    moved = read_json(folder / MOVING) == json.loads(json.dumps(identity))
    if not moved:
        (folder / MOVING).unlink(missing_ok=True)
    statistics, entries = DatasetStatistics(), 0
    for shard, part in _build_shards(shards, spec, importer, runner, moved=moved):
        statistics.add(part)
        entries += shard.stop - shard.start
        progress(Progress(entries, len(importer), statistics))
    if not statistics.images:
        _remove_work(spec)
        reasons = ", ".join(f"{n} {reason}" for reason, n in statistics.dropped_images.items())
        where = ""
        if set(statistics.dropped_images) == {MISSING_FILE}:
            where = f" No file is where --images={spec.images_folder} says: give its folder."
        raise ValueError(f"No image is left ({reasons}), first: {statistics.examples[0]}.{where}")
    statistics = DatasetStatistics()  # again, so that examples are in the order of the input
    for shard in shards:
        statistics.add(
            DatasetStatistics.from_json(
                json.loads(shard.statistics_path.read_text(encoding="utf-8"))["figures"]
            )
        )
    statistics.repeated_ids, statistics.repeated_images = _count_repeated(shards)
    if isinstance(importer, MergedImporter):
        statistics.annotations = importer.num_annotations
        statistics.merged_annotations = _count_merged(shards)
    statistics.notes = list(getattr(importer, "notes", ()))
    write_json(folder / MOVING, identity)
    _move_to_final_names(shards, spec, importer, identity, statistics)
    return statistics


def _count_repeated(shards: list[Shard]) -> tuple[int, int]:
    """The number of records with the id of another, and with the image of another."""
    hashes = [np.frombuffer(shard.ids_path.read_bytes(), np.uint64) for shard in shards]
    ids, images = np.concatenate(hashes).reshape(-1, 2).T
    return int(ids.size - np.unique(ids).size), int(images.size - np.unique(images).size)


def _count_merged(shards: list[Shard]) -> int:
    """The number of annotations that some image got."""
    rows = [np.frombuffer(shard.merged_path.read_bytes(), np.uint32) for shard in shards]
    return int(np.unique(np.concatenate(rows)).size)


def _identity(spec: DatasetBuildSpec, importer: Importer) -> dict[str, Any]:
    return {
        "from": spec.format,
        "input": importer.fingerprint(),
        "images": _images(spec),
        **_options(spec),
    }


def _images(spec: DatasetBuildSpec) -> str:
    return str(spec.images_folder.resolve()) if spec.images_folder else ""


def _options(spec: DatasetBuildSpec) -> dict[str, Any]:
    """The options that change records; those that are off are left out, as earlier versions did."""
    changed: dict[str, Any] = {"max_image_side": spec.max_image_side}
    if spec.captions_from_regions:
        changed["captions_from_regions"] = True
    if spec.decoded_cache:
        changed["decoded_cache"] = str(spec.decoded_cache)
    if spec.options:
        changed["options"] = {name: str(spec.options[name]) for name in sorted(spec.options)}
    if spec.held_out:
        changed["held_out"] = True
    return changed


def _require_same(
    earlier: dict[str, Any], identity: dict[str, Any], spec: DatasetBuildSpec, where: Path
) -> None:
    identity = json.loads(json.dumps(identity))
    if earlier != identity:
        names = {**earlier, **identity}
        different = [name for name in names if earlier.get(name) != identity.get(name)]
        raise ValueError(
            f"Split {spec.split!r} in {spec.out} is finished, and was built from something else "
            f"(different: {', '.join(different)}). Choose another --split or --output. To rebuild "
            f"this split in place, delete {where}; other splits are not changed."
        )


def _cut(spec: DatasetBuildSpec, importer: Importer, folder: Path) -> list[Shard]:
    count = len(importer)
    size = max(MIN_SHARD, -(-count // MAX_SHARDS))
    made_by = [CHECKS, spec.format, _images(spec), _options(spec)]
    shards = []
    for number, start in enumerate(range(0, count, size)):
        stop = min(start + size, count)
        made_of = json.dumps([*made_by, importer.checksum(start, stop), stop - start])
        key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        shards.append(Shard(number, start, stop, folder / f"{number:05d}-{key}.array_record"))
    return shards


def _build_shards(
    shards: list[Shard],
    spec: DatasetBuildSpec,
    importer: Importer,
    runner: ShardRunner,
    *,
    moved: bool,
) -> Iterator[tuple[Shard, DatasetStatistics]]:
    """Each shard with its statistics when it is done, those of an earlier run first.

    `moved`: an earlier run may have moved its shards to their final names.
    """
    missing = []
    for shard in shards:
        done = read_json(shard.statistics_path)
        if done is not None and (moved or (shard.path.exists() and is_current(done, spec))):
            yield shard, DatasetStatistics.from_json(done["figures"])
        else:
            missing.append(shard)
    if missing:
        yield from runner(missing, spec, importer)


def build_in_processes(
    workers: int, missing: list[Shard], spec: DatasetBuildSpec, importer: Importer
) -> Iterator[tuple[Shard, DatasetStatistics]]:
    """A `ShardRunner`: as many processes of this machine; 1: this process."""
    if workers <= 1 or len(missing) <= 1:
        for shard in missing:
            yield shard, build_shard(shard, spec, importer)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe in a process with threads
    with ProcessPoolExecutor(
        min(workers, len(missing)), context, initializer=start_worker, initargs=(spec, importer)
    ) as pool:
        futures = {pool.submit(build_in_worker, shard): shard for shard in missing}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _move_to_final_names(
    shards: list[Shard],
    spec: DatasetBuildSpec,
    importer: Importer,
    identity: dict[str, Any],
    statistics: DatasetStatistics,
) -> None:
    """Moves shards to their final names and writes the metadata. Safe to repeat if interrupted."""
    done = [json.loads(shard.statistics_path.read_text(encoding="utf-8")) for shard in shards]
    kept = [(shard, d) for shard, d in zip(shards, done, strict=True) if d["records"]]
    places = set()
    for number, (shard, _) in enumerate(kept):
        place = shard_path(spec.out, spec.split, number, len(kept))
        places.add(place)
        if shard.path.exists():
            os.replace(shard.path, place)
    report = {
        "plan": identity,
        "figures": statistics.to_json(),
        "records": [d["records"] for _, d in kept],
        "bytes": sum(d["bytes"] for _, d in kept),
    }
    if descriptions := _class_descriptions(importer):
        write_whole(descriptions_path(spec.out, spec.split), descriptions)
    with _locked(spec.out / LOCK):
        # The report first: after an interruption here, a later run lists every split with a report.
        write_json(report_path(spec.out, spec.split), report)
        _list_splits(spec.out)
    for stale in set(shard_paths(spec.out, spec.split)) - places:
        stale.unlink()  # of an earlier build of this split
    _remove_work(spec)


def _class_descriptions(importer: Importer) -> str:
    """The text of the file of class descriptions; "" where the importer has none."""
    found: dict[str, tuple[str, ...]] = getattr(importer, "class_descriptions", dict)()
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n" if found else ""


def _list_splits(out: Path) -> None:
    """Makes the metadata list every split that has a report."""
    splits = {}
    for path in sorted(out.glob("report-*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        shards = SplitShards(tuple(report["records"]), report["bytes"])
        splits[path.stem.removeprefix("report-")] = shards
    if stored_splits(out) != splits:  # else unchanged, as other processes may be reading it
        write_metadata(out, splits)


@contextlib.contextmanager
def _locked(path: Path, *, taken: str = "") -> Iterator[None]:
    """Holds a file lock, released at the latest when the process ends.

    While another process holds it, waits; with a message `taken`, raises ValueError instead.
    """
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError:
            raise ValueError(taken) from None
        except OSError as error:  # a file system without locks
            logger.warning(
                "%s cannot be locked (%s): run only one prepare at a time in this folder.",
                path,
                error,
            )
        yield


def _remove_work(spec: DatasetBuildSpec) -> None:
    work = spec.out / ".building"
    shutil.rmtree(work / spec.split, ignore_errors=True)
    with contextlib.suppress(OSError):  # another split is being built there, or the folder is gone
        work.rmdir()
