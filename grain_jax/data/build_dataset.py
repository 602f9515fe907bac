"""Builds one split of a prepared data set: in parallel, and so that it can be killed and continued.

The input is cut into shards of consecutive entries. Each is written whole or not at all under
`OUT/.building/<split>/`, with its statistics beside it, under a name that tells what it was made of; a
later run keeps those of entries, options and left-out images that are still the same, so that a
corrected input costs the shards it changes. At the end the shards move to their final names and the
metadata of all splits is written, by one process at a time: several may build splits of one folder
at once.
"""

import array
import contextlib
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.data.checks import DatasetStatistics, SkippedSample, check_item, image_state
from grain_jax.data.importers import IMPORTERS, Importer, InvalidRecordError
from grain_jax.data.processes import end_with_parent
from grain_jax.data.tfds_records import (
    SplitShards,
    encode_record,
    shard_path,
    shard_paths,
    stored_splits,
    write_metadata,
    write_shard,
)
from grain_jax.disk import write_whole

logger = logging.getLogger(__name__)

MAX_SHARDS = 1_000
MIN_SHARD = 500  # entries; small enough that a killed run loses little
MOVING = "moving.json"  # beside the shards: the spec whose shards move to their final names
UNREADABLE = "unreadable entry"  # the reason of a dropped image whose entry is at fault
CHECKS = 2  # to be raised with what is checked or stored: unfinished shards are then made again
LOCK = ".lock"  # in the folder, held while its metadata is changed


@dataclass(frozen=True)
class DatasetBuildSpec:
    """What is built from what."""

    format: str
    input: Path
    images: Path
    out: Path
    split: str = "train"
    max_image_side: int = 0  # 0: images are stored as they are
    on_error: str = "stop"  # at an entry that cannot be read: "stop" | "skip"
    captions_from_regions: bool = False  # where an image has no caption of its own

    def validate(self) -> None:
        """Raises ValueError."""
        if self.format not in IMPORTERS:
            raise ValueError(f"Unknown --from={self.format}; choose one of {sorted(IMPORTERS)}.")
        if not self.images.is_dir():
            raise ValueError(f"--images={self.images} is not a folder.")
        if os.path.lexists(self.out) and not self.out.is_dir():
            raise ValueError(
                f"--out={self.out} is not a folder; give a new one, or an earlier --out."
            )
        try:
            os.fspath(self.out).encode()
        except UnicodeEncodeError:  # array_record opens no file there
            raise ValueError(
                f"--out={self.out!r} is not UTF-8; give a folder whose whole path is."
            ) from None
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.split) or self.split == "all":
            raise ValueError(
                f"--split={self.split!r} must be lower-case letters, digits and '_', not 'all'."
            )
        if self.max_image_side < 0:
            raise ValueError("--max_image_side must be a number of pixels, or 0 for any.")
        if self.on_error not in ("stop", "skip"):
            raise ValueError(f"--on-error must be 'stop' or 'skip', got {self.on_error!r}.")


@dataclass(frozen=True)
class Progress:
    """Where a build stands, after each shard."""

    entries: int  # read so far, those of earlier runs included
    total: int
    statistics: DatasetStatistics


@dataclass(frozen=True)
class _Shard:
    number: int
    start: int
    stop: int
    path: Path

    @property
    def statistics_path(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def ids_path(self) -> Path:
        """Of a number for each record's id."""
        return self.path.with_suffix(".ids")


def report_path(out: Path, split: str) -> Path:
    """Where the statistics of a finished split are kept."""
    return out / f"report-{split}.json"


def build_split(
    spec: DatasetBuildSpec,
    *,
    workers: int,
    progress: Callable[[Progress], None] = lambda state: None,
) -> DatasetStatistics:
    """Builds the split, or what is left of it; returns the statistics of the whole of it.

    Raises ValueError on a spec that cannot work, on a folder that holds something else under that
    name or is being given this split by another process, on an unreadable entry with on_error
    "stop", and where no image is left.
    """
    spec.validate()
    importer = IMPORTERS[spec.format](spec.input)
    if not len(importer):
        raise ValueError(f"--input={spec.input} has no entries.")
    identity = _identity(spec, importer)
    folder = spec.out / ".building" / spec.split
    folder.mkdir(parents=True, exist_ok=True)
    taken = (
        f"Another process is building split {spec.split!r} in {spec.out}; let it finish, or choose "
        "another --split or --out."
    )
    with _locked(folder / "lock", taken=taken):
        return _build_rest(spec, importer, identity, folder, workers, progress)


def _build_rest(
    spec: DatasetBuildSpec,
    importer: Importer,
    identity: dict[str, Any],
    folder: Path,
    workers: int,
    progress: Callable[[Progress], None],
) -> DatasetStatistics:
    if (report := _read_json(report_path(spec.out, spec.split))) is not None:
        _remove_work(spec)
        _require_same(report["plan"], identity, spec, report_path(spec.out, spec.split))
        with _locked(spec.out / LOCK):
            _list_splits(spec.out)
        return DatasetStatistics.from_json(report["figures"])
    shards = _cut(spec, importer, folder)
    # Of a run that was killed while it moved its shards, which are not where they were any more.
    moved = _read_json(folder / MOVING) == json.loads(json.dumps(identity))
    if not moved:
        (folder / MOVING).unlink(missing_ok=True)
    statistics, entries = DatasetStatistics(), 0
    for shard, part in _build_shards(shards, spec, importer, workers, moved=moved):
        statistics.add(part)
        entries += shard.stop - shard.start
        progress(Progress(entries, len(importer), statistics))
    if not statistics.images:
        _remove_work(spec)
        reasons = ", ".join(f"{n} {reason}" for reason, n in statistics.dropped_images.items())
        raise ValueError(f"No image is left ({reasons}), first: {statistics.examples[0]}")
    statistics = DatasetStatistics()  # again in input order, which the examples should have
    for shard in shards:
        statistics.add(
            DatasetStatistics.from_json(
                json.loads(shard.statistics_path.read_text(encoding="utf-8"))["figures"]
            )
        )
    statistics.repeated_ids = _count_repeated(shards)
    _write_json(folder / MOVING, identity)
    _adopt(shards, spec, identity, statistics)
    return statistics


def _count_repeated(shards: list[_Shard]) -> int:
    ids = [np.frombuffer(shard.ids_path.read_bytes(), np.uint64) for shard in shards]
    everything = np.concatenate(ids)
    return int(everything.size - np.unique(everything).size)


def _identity(spec: DatasetBuildSpec, importer: Importer) -> dict[str, Any]:
    return {
        "from": spec.format,
        "input": importer.fingerprint(),
        "images": str(spec.images.resolve()),
        **_options(spec),
    }


def _options(spec: DatasetBuildSpec) -> dict[str, Any]:
    """The options that records depend on; one that is off is left out, as earlier versions did."""
    asked = {"captions_from_regions": True} if spec.captions_from_regions else {}
    return {"max_image_side": spec.max_image_side} | asked


def _require_same(
    earlier: dict[str, Any], identity: dict[str, Any], spec: DatasetBuildSpec, where: Path
) -> None:
    identity = json.loads(json.dumps(identity))
    if earlier != identity:
        names = {**earlier, **identity}
        different = [name for name in names if earlier.get(name) != identity.get(name)]
        raise ValueError(
            f"Split {spec.split!r} in {spec.out} is finished, and was built from something else "
            f"(different: {', '.join(different)}). Choose another --split or --out. To build this "
            f"split anew in its place, delete {where}; other splits stay as they are."
        )


def _cut(spec: DatasetBuildSpec, importer: Importer, folder: Path) -> list[_Shard]:
    count = len(importer)
    size = max(MIN_SHARD, -(-count // MAX_SHARDS))
    made_by = [CHECKS, spec.format, str(spec.images.resolve()), _options(spec)]
    shards = []
    for number, start in enumerate(range(0, count, size)):
        stop = min(start + size, count)
        made_of = json.dumps([*made_by, importer.checksum(start, stop), stop - start])
        key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        shards.append(_Shard(number, start, stop, folder / f"{number:05d}-{key}.array_record"))
    return shards


def _build_shards(
    shards: list[_Shard], spec: DatasetBuildSpec, importer: Importer, workers: int, *, moved: bool
) -> Iterator[tuple[_Shard, DatasetStatistics]]:
    """Each shard with its statistics as it is there: those of an earlier run first. `moved`: which may
    have taken them to their final names.
    """
    missing = []
    for shard in shards:
        done = _read_json(shard.statistics_path)
        if done is not None and (moved or (shard.path.exists() and _is_current(done, spec))):
            yield shard, DatasetStatistics.from_json(done["figures"])
        else:
            missing.append(shard)
    if workers <= 1 or len(missing) <= 1:
        for shard in missing:
            yield shard, _build_shard(shard, spec, importer)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe with threads about
    with ProcessPoolExecutor(
        min(workers, len(missing)), context, initializer=_start_worker, initargs=(spec, importer)
    ) as pool:
        futures = {pool.submit(_build_in_worker, shard): shard for shard in missing}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_current(done: dict[str, Any], spec: DatasetBuildSpec) -> bool:
    """Whether a shard would leave out the same entries again: their images may have been mended
    since, and entries that cannot be read may have become an error.
    """
    if spec.on_error == "stop" and UNREADABLE in done["figures"]["dropped_images"]:
        return False
    return all(image_state(name, spec.images) == state for name, state in done["left_out"].items())


_worker_state: tuple[DatasetBuildSpec, Importer] | None = None  # of a worker process


def _start_worker(spec: DatasetBuildSpec, importer: Importer) -> None:
    global _worker_state
    _worker_state = spec, importer
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback from every process
    end_with_parent()


def _build_in_worker(shard: _Shard) -> DatasetStatistics:
    assert _worker_state is not None
    return _build_shard(shard, *_worker_state)


def _build_shard(shard: _Shard, spec: DatasetBuildSpec, importer: Importer) -> DatasetStatistics:
    statistics, ids = DatasetStatistics(), array.array("Q")
    left_out: dict[str, list[int] | None] = {}
    written = write_shard(shard.path, _encoded(shard, spec, importer, statistics, ids, left_out))
    shard.ids_path.write_bytes(ids.tobytes())
    # The statistics come last: a shard without them is written again.
    _write_json(
        shard.statistics_path,
        {
            "figures": statistics.to_json(),
            "records": written.lengths[0],
            "bytes": written.num_bytes,
            "left_out": left_out,
        },
    )
    return statistics


def _encoded(
    shard: _Shard,
    spec: DatasetBuildSpec,
    importer: Importer,
    statistics: DatasetStatistics,
    ids: "array.array[int]",
    left_out: dict[str, list[int] | None],
) -> Iterator[bytes]:
    """The records of a shard. Fills the other arguments; `left_out`: image -> its state."""
    for index in range(shard.start, shard.stop):
        item = None
        try:
            item = importer[index]
            record = check_item(
                item,
                spec.images,
                max_image_side=spec.max_image_side,
                captions_from_regions=spec.captions_from_regions,
                statistics=statistics,
            )
        except InvalidRecordError as error:
            if spec.on_error == "stop":
                raise ValueError(f"{error} (--on-error=skip leaves such entries out.)") from None
            statistics.drop_image(UNREADABLE, str(error))
        except SkippedSample as error:
            statistics.drop_image(error.reason, str(error))
        else:
            digest = hashlib.sha256(record.id.encode()).digest()
            ids.append(int.from_bytes(digest[:8], "little"))
            yield encode_record(record)
            continue
        if item is not None:
            left_out[item.image] = image_state(item.image, spec.images)


def _adopt(
    shards: list[_Shard],
    spec: DatasetBuildSpec,
    identity: dict[str, Any],
    statistics: DatasetStatistics,
) -> None:
    """Moves shards to their final names and writes the metadata. Killed midway, it runs again."""
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
    with _locked(spec.out / LOCK):
        # The report first: whatever ends here, each later run lists every split that has one.
        _write_json(report_path(spec.out, spec.split), report)
        _list_splits(spec.out)
    for stale in set(shard_paths(spec.out, spec.split)) - places:
        stale.unlink()  # of what was built in this split's place before
    _remove_work(spec)


def _list_splits(out: Path) -> None:
    """Makes the metadata list every split that has a report."""
    splits = {}
    for path in sorted(out.glob("report-*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        shards = SplitShards(tuple(report["records"]), report["bytes"])
        splits[path.stem.removeprefix("report-")] = shards
    if stored_splits(out) != splits:  # else it stays as it is, for those who are reading it
        write_metadata(out, splits)


@contextlib.contextmanager
def _locked(path: Path, *, taken: str = "") -> Iterator[None]:
    """Holds a lock, which ends with the process at the latest.

    Where another process has it: waits, or raises ValueError with the message `taken`.
    """
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError:
            raise ValueError(taken) from None
        except OSError as error:  # a file system without locks
            logger.warning(
                "%s cannot be locked (%s): run one prepare at a time there.", path, error
            )
        yield


def _remove_work(spec: DatasetBuildSpec) -> None:
    work = spec.out / ".building"
    shutil.rmtree(work / spec.split, ignore_errors=True)
    with contextlib.suppress(OSError):  # another split is being built there, or it is gone
        work.rmdir()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1))
