import errno
import json
import os
import threading
import time

import numpy as np
import pytest

from grain_jax.inference import array_store
from grain_jax.inference.array_store import ArrayStore

KEY, OTHER = "images-0001", "images-0002"


def numbers(seed: int = 0, size: int = 1000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, 2)).astype(np.float32),
        "boxes": rng.normal(size=(size, 2, 4)).astype(np.float32),
    }


def assert_equal(found, expected):
    assert found is not None
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_an_entry_is_read_as_it_was_written_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(array_store, "MAX_READ", 0)
    store = ArrayStore(tmp_path / "new" / "cache")
    assert store.read(KEY) is None
    assert store.write(KEY, numbers())
    found = store.read(KEY)
    assert_equal(found, numbers())
    assert isinstance(found["image"].base, np.memmap)
    assert not found["image"].flags.writeable
    assert store.keys("images-") == [KEY]
    assert store.keys("texts-") == []


def cut(entry):
    path = entry / "image.npy"
    path.write_bytes(path.read_bytes()[:-8])


def flipped(entry):
    content = bytearray((entry / "image.npy").read_bytes())
    content[-3] ^= 1
    (entry / "image.npy").write_bytes(content)


def pickled(entry):
    objects = np.array([{"not": "numbers"}], dtype=object)
    np.save(entry / "image.npy", objects, allow_pickle=True)


def of_another(entry):
    np.save(entry / "image.npy", numbers(seed=1)["image"])


def outside(entry):
    np.save(entry.parent / "elsewhere.npy", np.ones(3))
    (entry / "entry.json").write_text(json.dumps({"../elsewhere": "0"}))


def no_array(entry):
    (entry / "image.npy").unlink()


def no_list(entry):
    (entry / "entry.json").write_text("[]")


@pytest.mark.parametrize("damage", [cut, flipped, pickled, of_another, outside, no_array, no_list])
def test_a_damaged_or_foreign_entry_is_noticed_and_made_again(tmp_path, damage):
    store = ArrayStore(tmp_path)
    store.write(KEY, numbers())
    damage(tmp_path / KEY)
    assert store.read(KEY) is None
    assert not (tmp_path / KEY).exists()
    assert store.write(KEY, numbers())
    assert_equal(store.read(KEY), numbers())


def test_an_entry_that_cannot_be_opened_now_stays(tmp_path, monkeypatch):
    store = ArrayStore(tmp_path)
    store.write(KEY, numbers())

    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as few:
        few.setattr(np, "load", refuse)
        assert store.read(KEY) is None
    assert_equal(store.read(KEY), numbers())


@pytest.mark.parametrize("max_read", [0, 1 << 24])
def test_arrays_are_read_or_mapped_by_size_and_cannot_be_changed(tmp_path, monkeypatch, max_read):
    monkeypatch.setattr(array_store, "MAX_READ", max_read)
    store = ArrayStore(tmp_path)
    store.write(KEY, numbers())
    found = store.read(KEY)
    assert_equal(found, numbers())
    with pytest.raises(ValueError, match="read-only"):
        next(iter(found.values()))[:] = 0


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    size = sum(array.nbytes for array in numbers().values())
    store = ArrayStore(tmp_path, max_bytes=int(2.5 * size))
    keys = [f"images-{i:04d}" for i in range(3)]
    for age, key in zip((300, 200), keys[:2], strict=True):
        store.write(key, numbers())
        then = time.time() - age
        os.utime(tmp_path / key / "entry.json", (then, then))
    assert store.read(keys[0]) is not None  # used now
    store.write(keys[2], numbers())
    assert store.keys("images-") == [keys[0], keys[2]]


def test_an_entry_larger_than_all_may_be_is_not_kept(tmp_path):
    store = ArrayStore(tmp_path, max_bytes=1000)
    assert not store.write(KEY, numbers())
    assert list(tmp_path.iterdir()) == []


def test_arrays_in_use_survive_their_removal(tmp_path):
    store = ArrayStore(tmp_path)
    store.write(KEY, numbers())
    found = store.read(KEY)
    ArrayStore(tmp_path, max_bytes=1).write(OTHER, {"image": np.zeros(0, np.float32)})
    assert store.keys("images-") == [OTHER]
    np.testing.assert_array_equal(found["boxes"], numbers()["boxes"])


def test_two_may_write_at_once(tmp_path, monkeypatch):
    """Both are in the middle of writing the same entry; one of them is the entry in the end."""
    both = threading.Barrier(2, timeout=30)
    monkeypatch.setattr(array_store.os, "getpid", threading.get_ident)  # two processes
    synced = array_store.sync

    def meet(file):
        if "image" in str(file.name):
            both.wait()
        synced(file)

    monkeypatch.setattr(array_store, "sync", meet)
    answers = []

    def write():
        answers.append(ArrayStore(tmp_path).write(KEY, numbers()))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == [KEY]
    assert_equal(ArrayStore(tmp_path).read(KEY), numbers())


def test_half_an_entry_is_not_one_and_goes_after_a_day(tmp_path):
    store = ArrayStore(tmp_path)
    old, new = tmp_path / ".a.1.partial", tmp_path / ".b.2.partial"
    for folder in (old, new):
        folder.mkdir()
        (folder / "image.npy").write_bytes(b"half")
    os.utime(old, (0, 0))
    store.write(KEY, numbers())
    assert not old.exists()
    assert new.exists()
    assert store.keys("") == [KEY]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(array_store, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        ArrayStore(tmp_path).write(KEY, numbers())
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_not_a_path(tmp_path):
    with pytest.raises(ValueError, match="is not a key"):
        ArrayStore(tmp_path).read("../images-0001")
