"""Loader processes: what they hold, what they import, and what becomes of a run when one dies."""

import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from numbered_images import CONFIG, TOKENIZER, NumberedImages, assert_equal, batches
from PIL import Image
from telling_source import Telling

from grain_jax.data import loader as pipeline
from grain_jax.data import loader_plan, processes
from grain_jax.data.loader import evaluation_batches, training_batches
from grain_jax.data.loader_plan import check_shared_memory, plan_loader
from grain_jax.data.records import Record
from grain_jax.data.tokenizer import ClipTokenizer
from grain_jax.data.transforms import Preprocessing

pytestmark = pytest.mark.multiprocess

BATCH = 24
SHARED_MEMORY = Path("/dev/shm")


class Counted(NumberedImages):
    """Writes a byte to a file for each record read, whichever process reads it."""

    def __init__(self, log: Path) -> None:
        super().__init__(80)
        self.log = log

    def __getitem__(self, index: int) -> Record:
        with self.log.open("ab") as file:
            file.write(b".")
        return super().__getitem__(index)


def settled(log: Path) -> int:
    """Records read once no more are."""
    before = -1
    while before != (now := log.stat().st_size):
        before = now
        time.sleep(1.0)
    return now


@pytest.mark.parametrize(
    ("workers", "threads"),
    [(0, 1), (0, 5), *(pytest.param(*plan, marks=pytest.mark.slow) for plan in ((1, 2), (3, 1)))],
)
def test_prefetching_keeps_to_the_setting(tmp_path: Path, workers: int, threads: int) -> None:
    ahead = 2
    config = dataclasses.replace(
        CONFIG, num_workers=workers, num_threads=threads, prefetch_batches=ahead
    )
    log = tmp_path / "reads"
    names = {file.name for file in SHARED_MEMORY.glob("psm_*")}
    options = {"image_size": 32, "batch_size": BATCH, "seed": 0}
    with training_batches(Counted(log), config, TOKENIZER, **options) as iterator:
        for _ in range(3):
            next(iterator)
        held = settled(log) - 3 * BATCH
        assert 0 < held <= ahead * BATCH
        assert iterator.plan.elements * iterator.plan.part_rows <= ahead * BATCH + threads
        if workers:
            new = [f for f in SHARED_MEMORY.glob("psm_*") if f.name not in names]
            # One segment a part, and pages are whole.
            assert 0 < len(new) <= workers * 4
            pages = len(new) * 4096
            assert sum(f.stat().st_size for f in new) <= iterator.plan.shared_bytes + pages


def test_a_loader_process_imports_only_what_makes_batches(tmp_path: Path) -> None:
    log = tmp_path / "modules"
    config = dataclasses.replace(CONFIG, num_workers=1)
    options = {"image_size": 8, "batch_size": 8, "seed": 0}
    with training_batches(Telling(log), config, ClipTokenizer(), **options) as iterator:
        next(iterator)
    process, modules = json.loads(log.read_text())
    assert process != os.getpid()
    # grain itself imports jax and orbax; nothing of this project may add to them.
    assert "grain_jax.data.collate" in modules
    unwanted = ("flax", "optax", "matplotlib", "tensorboardX", "scipy", "rich", "grain_jax.models")
    unwanted += ("torch", "transformers", "huggingface_hub")
    unwanted += ("grain_jax.training", "grain_jax.evaluation", "grain_jax.train", "_pytest")
    assert not [name for name in modules if name.startswith(unwanted)]


def test_a_loader_process_that_is_killed_is_named(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_workers=1)
    others = set(multiprocessing.active_children())
    with training_batches(
        NumberedImages(), config, TOKENIZER, image_size=8, batch_size=8, seed=0
    ) as iterator:
        next(iterator)
        (worker,) = set(multiprocessing.active_children()) - others
        os.kill(worker.pid or 0, signal.SIGKILL)
        made = iter(lambda: next(iterator), None)
        with pytest.raises(processes.LoaderProcessDied, match="killed, as Linux does when memory"):
            list(itertools.islice(made, 20))


@pytest.mark.parametrize(
    ("code", "expected"),
    [(-7, "--shm-size"), (-11, "segmentation fault"), (-6, "ended by SIGABRT"), (3, "exit code 3")],
)
def test_the_reason_of_a_dead_process_is_named(code: int, expected: str) -> None:
    error = RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}. See")
    death = processes.died(error)
    assert death is not None
    assert expected in str(death)


def test_other_errors_are_not_process_deaths() -> None:
    assert processes.died(RuntimeError("grain is closed")) is None
    assert processes.died(ValueError("exit code -9")) is None


@pytest.mark.parametrize("workers", [1, 4, 16])
@pytest.mark.parametrize("rows", [64, 2048])
def test_a_plan_keeps_to_the_prefetched_batches(workers: int, rows: int) -> None:
    config = dataclasses.replace(CONFIG, num_workers=workers, num_threads=2, prefetch_batches=4)
    plan = plan_loader(config, rows=rows, row_bytes=150_528)
    requested = 4 * rows * 150_528
    assert 0.5 * requested < plan.bytes_ahead + plan.part_rows * 150_528 * workers * 6
    # The largest part may be a row longer than the others.
    assert plan.bytes_ahead <= requested + plan.elements * 150_528
    assert plan.shared_bytes < plan.bytes_ahead


def test_more_processes_than_rows_are_refused() -> None:
    config = dataclasses.replace(CONFIG, num_workers=9, num_threads=2, prefetch_batches=2)
    with pytest.raises(ValueError, match="num_workers to at most 8"):
        plan_loader(config, rows=24, row_bytes=10)


def test_too_little_shared_memory_is_refused_at_the_start(monkeypatch, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_workers=2, prefetch_batches=4)
    plan = plan_loader(config, rows=2048, row_bytes=150_528)

    def full(folder: Path) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 16384, 16384, 16384, 0, 0, 0, 0, 255))  # 64 MiB

    monkeypatch.setattr(loader_plan.os, "statvfs", full)
    with pytest.raises(ValueError, match=r"has 64 MiB free.*--shm-size=\dg"):
        check_shared_memory(plan, tmp_path)
    check_shared_memory(plan, tmp_path / "absent")  # as on macOS
    fits = plan_loader(config, rows=32, row_bytes=150_528)
    check_shared_memory(fits, tmp_path)
    with pytest.raises(ValueError, match="in each of 8 processes of this machine"):
        check_shared_memory(fits, tmp_path, num_processes=8)
    threads = plan_loader(dataclasses.replace(config, num_workers=0), rows=2048, row_bytes=150_528)
    check_shared_memory(threads, tmp_path)


def test_uneven_parts_and_processes_change_nothing() -> None:
    source = NumberedImages(bad=(3,))
    config = dataclasses.replace(CONFIG, num_workers=2, num_threads=1, prefetch_batches=3)
    rows = [0, 2, 3, 5, 6, 7, 9]
    options = {"batch_size": 11, "rows": rows, "start_step": 3}
    assert_equal(batches(source, 4, config, **options), batches(source, 4, **options))


class Photographs:
    """A set that is large enough for processes; image i is one colour that says i."""

    def __len__(self) -> int:
        return 2_001

    def __getitem__(self, index: int) -> Record:
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (index // 256, index % 256, 0)).save(out, "PNG")
        return Record(f"image-{index}", out.getvalue() if index != 2_000 else b"no image")


def test_evaluation_limits_its_processes(monkeypatch) -> None:
    """Their number was chosen for training: here it is never an error."""
    monkeypatch.setattr(pipeline, "usable_cpus", lambda: 5)
    for free, images, expected in ((2**40, 50_000, 5), (2**40, 2_500, 2), (4096, 50_000, 0)):
        found = os.statvfs_result((4096, 4096, 1, 1, free // 4096, 0, 0, 0, 0, 255))
        monkeypatch.setattr(loader_plan.os, "statvfs", lambda _, found=found: found)
        plan = pipeline.evaluation_plan(
            dataclasses.replace(CONFIG, num_threads=2, prefetch_batches=2),
            workers=16,
            images=images,
            rows=16,
            row_bytes=150_528,
        )
        assert plan.num_workers == expected


@pytest.mark.slow
def test_evaluation_with_processes_reads_every_image_once_and_in_order() -> None:
    preprocessing, order = Preprocessing(image_size=8), [*range(1_999, -1, -1), 2_000]
    made = evaluation_batches(Photographs(), preprocessing, 250, indices=order, num_workers=2)
    got = list(itertools.islice(made, 8))
    assert np.concatenate([rows for _, rows in got]).tolist() == order[:-1]
    images = np.concatenate([images for images, _ in got]).astype(int)
    assert (images[:, 0, 0, 0] * 256 + images[:, 0, 0, 1]).tolist() == order[:-1]
    assert len(multiprocessing.active_children()) == 2
    with pytest.raises(ValueError, match="'image-2000' cannot be evaluated on"):
        next(made)
    assert not multiprocessing.active_children()
