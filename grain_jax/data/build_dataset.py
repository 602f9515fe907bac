"""Builds one split of a prepared data set: in parallel, and so that it can be killed and continued.

The input is cut into shards of consecutive entries. Each is written whole or not at all under
`OUT/.building/<split>/`, with its figures beside it, under a name that tells what it was made of; a
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
from typing import Any, Literal, get_args

import numpy as np

from grain_jax.data.checks import Dropped, Figures, check_item, image_state
from grain_jax.data.importers import IMPORTERS, BadItem, Importer
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
MOVING = "moving.json"  # beside the shards: the plan whose shards move to their final names
UNREADABLE = "unreadable entry"  # the reason of a dropped image whose entry is at fault
CHECKS = 2  # to be raised with what is checked or stored: unfinished shards are then made again
LOCK = ".lock"  # in the folder, held while its metadata is changed


OnError = Literal["stop", "skip"]  # at an entry that cannot be read


@dataclass(frozen=True)
class Plan:
    """What is built from what."""

    format: str
    input: Path
    images: Path
    out: Path
    split: str = "train"
    max_image_side: int = 0  # 0: images are stored as they are
    on_error: str = "stop"  # one of `OnError`
    captions_from_regions: bool = False  # where an image has no caption of its own

    def validate(self) -> None:
        """Raises ValueError."""
        if self.format not in IMPORTERS:
            raise ValueError(f"Unknown --from={self.format}; choose one of {sorted(IMPORTERS)}.")
        if not self.images.is_dir():
            raise ValueError(f"--images={self.images} is not a folder.")
        if os.path.lexists(self.out) and not self.out.is_dir():
            raise ValueError(
                f"--output={self.out} is not a folder; give a new one, or an earlier --output."
            )
        try:
            os.fspath(self.out).encode()
        except UnicodeEncodeError:  # array_record opens no file there
            raise ValueError(
                f"--output={self.out!r} is not UTF-8; give a folder whose whole path is."
            ) from None
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.split) or self.split == "all":
            raise ValueError(
                f"--split={self.split!r} must be lower-case letters, digits and '_', not 'all'."
            )
        if self.max_image_side < 0:
            raise ValueError("--max_image_side must be a number of pixels, or 0 for any.")
        if self.on_error not in get_args(OnError):
            raise ValueError(f"--on-error must be 'stop' or 'skip', got {self.on_error!r}.")


@dataclass(frozen=True)
class Progress:
    """Where a build stands, after each shard."""

    entries: int  # read so far, those of earlier runs included
    total: int
    figures: Figures


@dataclass(frozen=True)
class _Shard:
    number: int
    start: int
    stop: int
    path: Path

    @property
    def figures_path(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def ids_path(self) -> Path:
        """Of a number for each record's id."""
        return self.path.with_suffix(".ids")


def report_path(out: Path, split: str) -> Path:
    """Where the figures of a finished split are kept."""
    return out / f"report-{split}.json"


def is_built(plan: Plan) -> bool:
    """Whether the split is finished, so that `build_split` only checks it."""
    return report_path(plan.out, plan.split).exists()


def build_split(
    plan: Plan, *, workers: int, progress: Callable[[Progress], None] = lambda state: None
) -> Figures:
    """Builds the split, or what is left of it; returns the figures of the whole of it.

    Raises ValueError on a plan that cannot work, on a folder that holds something else under that
    name or is being given this split by another process, on an unreadable entry with on_error
    "stop", and where no image is left.
    """
    plan.validate()
    importer = IMPORTERS[plan.format](plan.input)
    if not len(importer):
        raise ValueError(f"--input={plan.input} has no entries.")
    identity = _identity(plan, importer)
    folder = plan.out / ".building" / plan.split
    folder.mkdir(parents=True, exist_ok=True)
    taken = (
        f"Another process is building split {plan.split!r} in {plan.out}; let it finish, or choose "
        "another --split or --output."
    )
    with _locked(folder / "lock", taken=taken):
        return _build_rest(plan, importer, identity, folder, workers, progress)


def _build_rest(
    plan: Plan,
    importer: Importer,
    identity: dict[str, Any],
    folder: Path,
    workers: int,
    progress: Callable[[Progress], None],
) -> Figures:
    if (report := _read_json(report_path(plan.out, plan.split))) is not None:
        _remove_work(plan)
        _require_same(report["plan"], identity, plan, report_path(plan.out, plan.split))
        with _locked(plan.out / LOCK):
            _list_splits(plan.out)
        return Figures.from_json(report["figures"])
    shards = _cut(plan, importer, folder)
    # Of a run that was killed while it moved its shards, which are not where they were any more.
    moved = _read_json(folder / MOVING) == json.loads(json.dumps(identity))
    if not moved:
        (folder / MOVING).unlink(missing_ok=True)
    figures, entries = Figures(), 0
    for shard, part in _build_shards(shards, plan, importer, workers, moved=moved):
        figures.add(part)
        entries += shard.stop - shard.start
        progress(Progress(entries, len(importer), figures))
    if not figures.images:
        _remove_work(plan)
        reasons = ", ".join(f"{n} {reason}" for reason, n in figures.dropped_images.items())
        raise ValueError(f"No image is left ({reasons}), first: {figures.examples[0]}")
    figures = Figures()  # again in input order, which the examples should have
    for shard in shards:
        figures.add(
            Figures.from_json(json.loads(shard.figures_path.read_text(encoding="utf-8"))["figures"])
        )
    figures.repeated_ids = _count_repeated(shards)
    _write_json(folder / MOVING, identity)
    _adopt(shards, plan, identity, figures)
    return figures


def _count_repeated(shards: list[_Shard]) -> int:
    ids = [np.frombuffer(shard.ids_path.read_bytes(), np.uint64) for shard in shards]
    everything = np.concatenate(ids)
    return int(everything.size - np.unique(everything).size)


def _identity(plan: Plan, importer: Importer) -> dict[str, Any]:
    return {
        "from": plan.format,
        "input": importer.fingerprint(),
        "images": str(plan.images.resolve()),
        **_options(plan),
    }


def _options(plan: Plan) -> dict[str, Any]:
    """The options that records depend on; one that is off is left out, as earlier versions did."""
    asked = {"captions_from_regions": True} if plan.captions_from_regions else {}
    return {"max_image_side": plan.max_image_side} | asked


def _require_same(
    earlier: dict[str, Any], identity: dict[str, Any], plan: Plan, where: Path
) -> None:
    identity = json.loads(json.dumps(identity))
    if earlier != identity:
        names = {**earlier, **identity}
        different = [name for name in names if earlier.get(name) != identity.get(name)]
        raise ValueError(
            f"Split {plan.split!r} in {plan.out} is finished, and was built from something else "
            f"(different: {', '.join(different)}). Choose another --split or --output. To build "
            f"this split anew in its place, delete {where}; other splits stay as they are."
        )


def _cut(plan: Plan, importer: Importer, folder: Path) -> list[_Shard]:
    count = len(importer)
    size = max(MIN_SHARD, -(-count // MAX_SHARDS))
    made_by = [CHECKS, plan.format, str(plan.images.resolve()), _options(plan)]
    shards = []
    for number, start in enumerate(range(0, count, size)):
        stop = min(start + size, count)
        made_of = json.dumps([*made_by, importer.checksum(start, stop), stop - start])
        key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
        shards.append(_Shard(number, start, stop, folder / f"{number:05d}-{key}.array_record"))
    return shards


def _build_shards(
    shards: list[_Shard], plan: Plan, importer: Importer, workers: int, *, moved: bool
) -> Iterator[tuple[_Shard, Figures]]:
    """Each shard with its figures as it is there: those of an earlier run first. `moved`: which may
    have taken them to their final names.
    """
    missing = []
    for shard in shards:
        done = _read_json(shard.figures_path)
        if done is not None and (moved or (shard.path.exists() and _is_current(done, plan))):
            yield shard, Figures.from_json(done["figures"])
        else:
            missing.append(shard)
    if workers <= 1 or len(missing) <= 1:
        for shard in missing:
            yield shard, _build_shard(shard, plan, importer)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe with threads about
    with ProcessPoolExecutor(
        min(workers, len(missing)), context, initializer=_start_worker, initargs=(plan, importer)
    ) as pool:
        futures = {pool.submit(_build_in_worker, shard): shard for shard in missing}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_current(done: dict[str, Any], plan: Plan) -> bool:
    """Whether a shard would leave out the same entries again: their images may have been mended
    since, and entries that cannot be read may have become an error.
    """
    if plan.on_error == "stop" and UNREADABLE in done["figures"]["dropped_images"]:
        return False
    return all(image_state(name, plan.images) == state for name, state in done["left_out"].items())


_worker_state: tuple[Plan, Importer] | None = None  # of a worker process


def _start_worker(plan: Plan, importer: Importer) -> None:
    global _worker_state
    _worker_state = plan, importer
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: no traceback from every process
    end_with_parent()


def _build_in_worker(shard: _Shard) -> Figures:
    assert _worker_state is not None
    return _build_shard(shard, *_worker_state)


def _build_shard(shard: _Shard, plan: Plan, importer: Importer) -> Figures:
    figures, ids = Figures(), array.array("Q")
    left_out: dict[str, list[int] | None] = {}
    written = write_shard(shard.path, _encoded(shard, plan, importer, figures, ids, left_out))
    shard.ids_path.write_bytes(ids.tobytes())
    # The figures come last: a shard without them is written again.
    _write_json(
        shard.figures_path,
        {
            "figures": figures.to_json(),
            "records": written.lengths[0],
            "bytes": written.num_bytes,
            "left_out": left_out,
        },
    )
    return figures


def _encoded(
    shard: _Shard,
    plan: Plan,
    importer: Importer,
    figures: Figures,
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
                plan.images,
                max_image_side=plan.max_image_side,
                captions_from_regions=plan.captions_from_regions,
                figures=figures,
            )
        except BadItem as error:
            if plan.on_error == "stop":
                raise ValueError(f"{error} (--on-error=skip leaves such entries out.)") from None
            figures.drop_image(UNREADABLE, str(error))
        except Dropped as error:
            figures.drop_image(error.reason, str(error))
        else:
            digest = hashlib.sha256(record.id.encode()).digest()
            ids.append(int.from_bytes(digest[:8], "little"))
            yield encode_record(record)
            continue
        if item is not None:
            left_out[item.image] = image_state(item.image, plan.images)


def _adopt(shards: list[_Shard], plan: Plan, identity: dict[str, Any], figures: Figures) -> None:
    """Moves shards to their final names and writes the metadata. Killed midway, it runs again."""
    done = [json.loads(shard.figures_path.read_text(encoding="utf-8")) for shard in shards]
    kept = [(shard, d) for shard, d in zip(shards, done, strict=True) if d["records"]]
    places = set()
    for number, (shard, _) in enumerate(kept):
        place = shard_path(plan.out, plan.split, number, len(kept))
        places.add(place)
        if shard.path.exists():
            os.replace(shard.path, place)
    report = {
        "plan": identity,
        "figures": figures.to_json(),
        "records": [d["records"] for _, d in kept],
        "bytes": sum(d["bytes"] for _, d in kept),
    }
    with _locked(plan.out / LOCK):
        # The report first: whatever ends here, each later run lists every split that has one.
        _write_json(report_path(plan.out, plan.split), report)
        _list_splits(plan.out)
    for stale in set(shard_paths(plan.out, plan.split)) - places:
        stale.unlink()  # of what was built in this split's place before
    _remove_work(plan)


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


def _remove_work(plan: Plan) -> None:
    work = plan.out / ".building"
    shutil.rmtree(work / plan.split, ignore_errors=True)
    with contextlib.suppress(OSError):  # another split is being built there, or it is gone
        work.rmdir()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1))
