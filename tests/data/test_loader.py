"""The loader: batches are a function of (seed, step), on any number of hosts, bad images or not."""

import dataclasses
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from numbered_images import CONFIG, TOKENIZER, NumberedImages, assert_equal, batches
from places import HELPERS, REPOSITORY

from grain_jax.config import DataConfig
from grain_jax.data import memory_limit as memory
from grain_jax.data.captions import choose_caption
from grain_jax.data.loader import (
    evaluation_batches,
    prefetch_to_device,
    training_batches,
)
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tokenizer import token_keys
from grain_jax.data.transforms import Preprocessing


def test_shapes_and_contents() -> None:
    config = dataclasses.replace(CONFIG, resize="squash", flip_probability=0.0)
    for batch in batches(NumberedImages(), 5, config):
        assert batch.images.shape == (8, 8, 8, 3)
        assert batch.descriptions.shape == (8, 3, 6)
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.index)
        np.testing.assert_array_equal(batch.region_mask.sum(1), np.minimum(batch.index % 6, 3))
        empty = ~batch.region_mask
        assert not batch.boxes[empty].any()
        assert not batch.descriptions[empty].any()
        assert not batch.description_key[empty].any()
        for row in range(8):
            for slot in range(int(batch.region_mask[row].sum())):
                np.testing.assert_allclose(
                    batch.boxes[row, slot], [0.1 * slot + 0.2, 0.5, 0.4, 0.4], rtol=1e-6
                )
                expected, _ = TOKENIZER.encode([f"part n{slot}"], 6)
                np.testing.assert_array_equal(batch.descriptions[row, slot], expected[0])
                assert batch.description_key[row, slot] == token_keys(expected)[0]
        np.testing.assert_array_equal(batch.caption_key, token_keys(batch.captions))
        assert len(set(batch.caption_key.tolist())) == 8


def test_texts_cut_to_the_same_tokens_are_duplicates() -> None:
    config = dataclasses.replace(CONFIG, caption_length=3, description_length=3)
    for batch in batches(NumberedImages(), 3, config):
        assert len(set(batch.caption_key.tolist())) <= 2  # "original" or "synthetic" is left
        assert len(set(batch.description_key[batch.region_mask].tolist())) == 1  # "part"


@pytest.mark.parametrize("rows", [[2, 3], [0, 3, 5]])
def test_the_global_batch_does_not_depend_on_the_split_of_rows(rows: list[int]) -> None:
    source = NumberedImages(bad=(3, 17))
    expected = [jax.tree.map(lambda field: field[rows], step) for step in batches(source, 6)]
    assert_equal(batches(source, 6, rows=rows), expected)


def test_any_step_can_be_resumed() -> None:
    source = NumberedImages(bad=(3, 17))
    whole = batches(source, 12)
    for step in (1, 5, 11):
        assert_equal(batches(source, 12 - step, start_step=step), whole[step:])


def test_threads_change_nothing() -> None:
    one = dataclasses.replace(CONFIG, num_threads=1)
    many = dataclasses.replace(CONFIG, num_threads=4, prefetch_batches=8)
    source = NumberedImages(bad=(3, 17))
    assert_equal(batches(source, 6, one), batches(source, 6, many))


class Broken(NumberedImages):
    """Images on a disk that fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def __getitem__(self, index: int) -> Record:
        raise self.error


class Meeting(NumberedImages):
    """Images that are read only once `count` threads are reading."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.met = threading.Barrier(threads)

    def __getitem__(self, index: int) -> Record:
        self.met.wait(timeout=20)
        return super().__getitem__(index)


def test_every_thread_works_however_little_is_prefetched() -> None:
    config = dataclasses.replace(CONFIG, num_threads=3, prefetch_batches=1)
    iterator = training_batches(Meeting(3), config, TOKENIZER, image_size=8, batch_size=1, seed=0)
    with iterator:
        next(iterator)


def test_worker_processes_change_nothing_and_end() -> None:
    source = NumberedImages(bad=(3,))
    config = dataclasses.replace(CONFIG, num_workers=2)
    assert_equal(batches(source, 5, config, image_size=32), batches(source, 5, image_size=32))
    assert not multiprocessing.active_children()


KILLED = """
import dataclasses, multiprocessing, os, signal
from numbered_images import CONFIG, TOKENIZER, NumberedImages, training_batches

if __name__ == "__main__":
    config = dataclasses.replace(CONFIG, num_workers=1)
    iterator = training_batches(
        NumberedImages(), config, TOKENIZER, image_size=32, batch_size=8, seed=0
    )
    next(iterator)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc")
def test_a_killed_run_leaves_no_process_and_no_shared_memory(tmp_path: Path) -> None:
    before = shared_memory()
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    paths = os.pathsep.join([str(HELPERS), str(REPOSITORY)])
    killed = subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,  # the worker holds stderr
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert killed.returncode == -signal.SIGKILL
    (worker,) = killed.stdout.split()
    deadline = time.monotonic() + 30
    while (runs(worker) or shared_memory() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(worker)
    assert not shared_memory() - before


def shared_memory() -> set[str]:
    """Segments that hold memory: one of no size was only being made as its process ended."""
    return {file.name for file in Path("/dev/shm").glob("psm_*") if size_of(file)}


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def runs(process: str) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_epoch_is_every_record_once_in_a_new_order() -> None:
    orders = np.concatenate([b.index for b in batches(NumberedImages(40), 10)]).reshape(2, 40)
    for order in orders:
        assert sorted(order) == list(range(40))
    assert (orders[0] != orders[1]).any()
    other = np.concatenate([b.index for b in batches(NumberedImages(40), 5, seed=2)])
    assert (orders[0] != other).any()


def test_bad_images_are_replaced_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    good = np.concatenate([b.index for b in batches(NumberedImages(), 10)])
    with caplog.at_level(logging.WARNING):
        made = batches(NumberedImages(bad=(3, 17)), 10)
    index = np.concatenate([b.index for b in made])
    replaced = np.concatenate([b.replaced for b in made])
    np.testing.assert_array_equal(replaced, np.isin(good, (3, 17)))
    np.testing.assert_array_equal(index[~replaced], good[~replaced])
    assert not np.isin(index, (3, 17)).any()
    for bad in (3, 17):
        assert len(set(index[good == bad])) == 1  # a function of the index, in every epoch
        assert f"'image-{bad}'" in caplog.text


def test_only_undecodable_images_raise_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        batches(NumberedImages(bad=tuple(range(40))), 1)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_the_cache_changes_nothing_and_reads_once(resize: str) -> None:
    config = dataclasses.replace(CONFIG, resize=resize, num_threads=1)
    cached = dataclasses.replace(config, cache="memory")
    reads: list[int] = []
    got = batches(NumberedImages(bad=(3,), reads=reads), 15, cached)
    assert_equal(got, batches(NumberedImages(bad=(3,)), 15, config))
    assert max(Counter(i for i in reads if i != 3).values()) == 1


def test_the_cache_is_refused_where_it_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 64)
    with pytest.raises(ValueError, match="GiB"):
        batches(NumberedImages(), 1, dataclasses.replace(CONFIG, cache="memory", resize="squash"))


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/memory.max": "3000", "job/step/memory.max": "max"}, 3000),
        ("0::/\n", {"memory.max": "2000\n"}, 2000),
        ("4:cpu:/a\n3:memory:/a\n", {"memory/a/memory.limit_in_bytes": "1000"}, 1000),
        ("3:memory:/host/b\n", {"memory/memory.limit_in_bytes": "500"}, 500),
        ("0::/\n", {}, 64 * 64),
    ],
)
def test_the_smallest_memory_limit_counts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    own: str,
    limits: dict[str, str],
    expected: int,
) -> None:
    (tmp_path / "own").write_text(own)
    for name, limit in limits.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sysconf", lambda name: 64)
    assert memory.memory_limit() == expected


def test_a_full_cache_of_originals_changes_nothing_and_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(CONFIG, num_threads=1)
    expected = batches(NumberedImages(), 15, config)
    ten = 10 * 12 * 20 * 3  # bytes
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else ten * 5 // 4)
    reads: list[int] = []
    with caplog.at_level(logging.WARNING):
        got = batches(NumberedImages(reads=reads), 15, dataclasses.replace(config, cache="memory"))
    assert_equal(got, expected)
    assert sum(count == 1 for count in Counter(reads).values()) == 10
    assert caplog.text.count("is full with 10 of 40 images") == 1
    assert len(caplog.records) == 1


def test_cut_texts_are_counted() -> None:
    config = dataclasses.replace(CONFIG, caption_length=3, description_length=3)
    long, short = batches(NumberedImages(), 5, config), batches(NumberedImages(), 5)
    for cut, whole in zip(long, short, strict=True):
        np.testing.assert_array_equal(cut.truncated, 1 + cut.region_mask.sum(1))
        assert not whole.truncated.any()
        assert (cut.captions.max(1) == TOKENIZER.vocab_size - 1).all()


def captions(config: DataConfig, record: Record, count: int = 400) -> Counter:
    return Counter(
        choose_caption(record, record.regions, config, random.Random(i)) for i in range(count)
    )


def test_caption_sources_follow_their_probabilities() -> None:
    record = Record(
        "x", b"", (Caption("web"), Caption("one", "synthetic"), Caption("two", "synthetic"))
    )
    counts = captions(DataConfig(synthetic_caption_probability=0.8), record)
    assert 40 < counts["web"] < 120
    assert min(counts["one"], counts["two"]) > 100
    assert set(captions(DataConfig(synthetic_caption_probability=0.0), record)) == {"web"}
    only = dataclasses.replace(record, captions=(Caption("one", "synthetic"),))
    assert set(captions(DataConfig(synthetic_caption_probability=0.0), only)) == {"one"}
    with pytest.raises(ValueError, match="'x' has no caption"):
        captions(DataConfig(), dataclasses.replace(record, captions=()))


def test_a_record_gets_another_caption_each_time() -> None:
    two_epochs = batches(NumberedImages(40), 10)
    index = np.concatenate([b.index for b in two_epochs])
    kind = np.concatenate([b.captions[:, 1] for b in two_epochs])  # "original" or "synthetic"
    kinds, _ = TOKENIZER.encode(["original", "synthetic"], 3)
    assert set(kind.tolist()) == set(kinds[:, 1].tolist())
    pairs = set(zip(index.tolist(), kind.tolist(), strict=True))
    assert 45 < len(pairs) < 75  # about half of the records had both


def test_region_captions_hold_every_description_once() -> None:
    regions = tuple(Region((0.0, 0.0, 1.0, 1.0), text) for text in ("a", "b", "A", "c"))
    record = Record("x", b"", (Caption("web"),), regions)
    counts = captions(DataConfig(region_caption_probability=1.0), record)
    assert len(counts) == 6
    assert all(sorted(text.lower().split(", ")) == ["a", "b", "c"] for text in counts)
    bare = dataclasses.replace(record, regions=())
    assert set(captions(DataConfig(region_caption_probability=1.0), bare)) == {"web"}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"batch_size": 41}, "40 images, fewer than one batch of 41"),
        ({}, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({}, {"batch_size": 8, "rows": [7, 8]}, r"rows=\[7, 8\] are not rows of a batch of 8"),
        ({"resize": "stretch"}, {}, "squash"),
        ({"interpolation": "nearest"}, {}, "bicubic"),
        ({"cache": "disk"}, {}, "memory"),
        ({"cache": "memory", "num_workers": 2}, {}, "num_workers=0"),
        ({"flip_probability": 1.5}, {}, "flip_probability"),
        ({"crop_min_area": 0.005}, {}, "crop_min_area"),
        ({"max_regions": 0}, {}, "max_regions"),
        ({"num_threads": 0}, {}, "num_threads"),
        ({"prefetch_batches": 0}, {}, "prefetch_batches"),
    ],
)
def test_invalid_loader_settings_are_refused(change, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        batches(NumberedImages(), 1, dataclasses.replace(CONFIG, **change), **options)


def loader_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}


def test_closing_ends_the_threads() -> None:
    others = loader_threads()  # of iterators that other tests have not closed
    iterator = training_batches(
        NumberedImages(), CONFIG, TOKENIZER, image_size=8, batch_size=8, seed=0
    )
    next(iterator)
    assert loader_threads() - others
    iterator.close()
    iterator.close()
    deadline = time.monotonic() + 10
    while loader_threads() - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loader_threads() - others
    with pytest.raises(StopIteration):
        next(iterator)


def test_device_prefetch_keeps_order_and_measures_waiting() -> None:
    expected = batches(NumberedImages(), 4)
    iterator = training_batches(
        NumberedImages(), CONFIG, TOKENIZER, image_size=8, batch_size=8, seed=1
    )
    with prefetch_to_device(iterator, jax.device_put, size=2) as ready:
        got = [next(ready) for _ in range(4)]
        assert ready.wait_seconds > 0
        assert all(isinstance(batch.images, jax.Array) for batch in got)
    assert_equal(got, expected)
    with pytest.raises(StopIteration):
        next(iterator)


def test_evaluation_batches_are_in_order_and_whole() -> None:
    preprocessing = Preprocessing(image_size=8)
    got = list(evaluation_batches(NumberedImages(10), preprocessing, 4))
    assert [len(images) for images, _ in got] == [4, 4, 2]
    assert np.concatenate([indices for _, indices in got]).tolist() == list(range(10))
    for images, indices in got:
        np.testing.assert_array_equal(images[:, 0, 0, 0], indices)
    some = list(evaluation_batches(NumberedImages(10), preprocessing, 4, indices=[7, 2]))
    assert some[0][1].tolist() == [7, 2]
    assert some[0][0][:, 0, 0, 0].tolist() == [7, 2]


def test_evaluation_raises_for_an_undecodable_image() -> None:
    with pytest.raises(ValueError, match="'image-6' cannot be evaluated on"):
        list(evaluation_batches(NumberedImages(10, bad=(6,)), Preprocessing(image_size=8), 4))


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("Corrupted")])
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_data_raises_value_error(error: Exception, workers: int) -> None:
    """So that a run saves before it stops, whichever library met it."""
    config = dataclasses.replace(CONFIG, num_workers=workers)
    with pytest.raises(ValueError, match=f"could not be read .*{type(error).__name__}"):
        batches(Broken(error), 4, config)
