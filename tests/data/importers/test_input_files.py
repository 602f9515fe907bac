"""Which files of a folder are read: one part of a collection, never two without a word."""

import os
import re
from pathlib import Path

import pytest

from grain_jax.data.importers.input_files import find_files


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def found(root: Path, split: str = "train", subset: str | None = None) -> list[str]:
    return [str(file.relative_to(root)) for file in find_files(root, ".x", split, subset)]


@pytest.mark.parametrize(
    ("train", "others"),
    [
        (["train/0000.x", "train/0001.x"], ["test/0000.x"]),
        (["train.x"], ["test.x"]),
        (["data/train-00000-of-00002.x", "data/train-00001-of-00002.x"], ["data/test-0-of-1.x"]),
        (["train-00000-of-00001-fa0ee4cbb92b7ae2.x"], ["test-00000-of-00001-0badc0ffee123456.x"]),
        (["cc3m-train-0000.x", "cc3m-train-0001.x"], ["cc3m-validation-0000.x"]),
        (["my-2020-train-000.x", "my-2021-train-000.x"], ["my-2020-test-000.x"]),
        (["train/a/0.x", "train/b/0.x"], ["val/a/0.x"]),
        (["train2017.x"], ["val2017.x"]),
        (["00000.x", "00001.x"], []),
        (["part0/00000.x", "part1/00000.x"], []),
        (["part0.x", "part1.x"], []),
        (["run_1/00000.x", "run_2/00000.x"], []),
        (["part-00000-3f2504e0-4f89-11d3-9a0c-0305e82c3301.c000.snappy.x"], []),
        (["anything.x"], ["._anything.x"]),
    ],
)
def test_the_files_of_the_split_are_read(tmp_path: Path, train, others) -> None:
    assert found(folder_of(tmp_path, *train, *others)) == train


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/train-0.x", "b/train-0.x"], "which has a/train, b/train; choose one with --subset"),
        (["a/0.x", "b/0.x"], "which has a, b; choose"),
        (["train_small.x", "train_large.x"], "which has train_large, train_small; choose"),
        (["train-00000-of-00001.x", "extra.x"], "files of train, and extra.x, whose name tells no"),
        (["train-0.x", "1.x"], "files of train, and 1.x, whose name tells no split"),
        (["test/0000.x"], "--split=train names no part of the input, which has test"),
        (["cc3m-validation-0000.x"], "which has cc3m-validation"),
        (["a.y"], "no files that end in .x"),
    ],
)
def test_several_parts_are_never_mixed(tmp_path: Path, names, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        found(folder_of(tmp_path, *names))


def test_a_part_is_chosen_by_its_name(tmp_path: Path) -> None:
    names = ["a/train-0.x", "b/train-0.x", "c-validation-00.x"]
    folder_of(tmp_path, *names)
    assert found(tmp_path, subset="b/train") == [names[1]]
    assert found(tmp_path, split="validation") == [names[2]]
    assert found(tmp_path, subset="c-validation") == [names[2]]
    with pytest.raises(ValueError, match="--subset=train names no part of the input"):
        found(tmp_path, subset="train")
    with pytest.raises(ValueError, match="--subset=b is not needed"):
        find_files(tmp_path / names[0], ".x", "train", "b")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*/*.x", ["a/train-0.x", "b/test-0.x"]),
        ("{a,b}/*.x", ["a/train-0.x", "b/test-0.x"]),
        ("**/*.x", ["a/train-0.x", "b/test-0.x", "07.x", "08.x", "09.x"]),
        ("{08..09}.x", ["08.x", "09.x"]),
        ("0?.x", ["07.x", "08.x", "09.x"]),
        ("{x}", ["{x}"]),
    ],
)
def test_a_pattern_names_what_is_read(tmp_path: Path, pattern: str, names) -> None:
    folder_of(tmp_path, "a/train-0.x", "b/test-0.x", "07.x", "08.x", "09.x", "{x}")
    files = find_files(tmp_path / pattern, ".x", "train")
    assert [*map(str, files)] == sorted(os.fspath(tmp_path / name) for name in names)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{08..10}.x", r"there is no file .*10\.x"),
        ("*.y", r"there is no file .*\*\.y"),
        ("{9..1}.x", "should be a first and a last number"),
        ("{1..9999999999}.x", "should be a first and a last number"),
    ],
)
def test_a_pattern_without_files_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    folder_of(tmp_path, "08.x", "09.x")
    with pytest.raises(ValueError, match=message):
        find_files(tmp_path / pattern, ".x")
