"""Rows are never lost, repeated or half written, wherever a writer ends."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from killed_writer import IMAGES, row
from places import HELPERS, REPOSITORY

pytest.importorskip("pyarrow")

from grain_jax.annotation.shards import WHOLE, Shard, read_shard
from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_files import StageFiles, read_annotations
from grain_jax.data.annotation_layout import numbered
from grain_jax.data.annotation_rows import Provenance, Row


def stored(folder: Path) -> list[Row]:
    files = StageFiles(folder, "describe")
    return [files.row(i) for i in range(len(files))]


def images(folder: Path) -> list[str]:
    return [each.image for each in stored(folder)]


def write(folder: Path, rows: list[Row], **options) -> None:
    with AnnotationWriter(folder, "describe", **options) as writer:
        for each in rows:
            writer.append(each)


@pytest.mark.multiprocess
def test_a_writer_that_is_killed_at_any_step_loses_and_repeats_nothing(tmp_path):
    helper = [sys.executable, str(HELPERS / "killed_writer.py"), str(tmp_path)]
    subprocess.run(helper, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    ends = sorted(tmp_path.iterdir())
    assert len(ends) > 40  # steps at which it was killed
    for end in ends:
        acknowledged = (end / "acknowledged").read_text().split()
        folder = end / "ann"
        if (folder / "annotations.json").exists():
            # The row on whose way the process died may be there, as nobody was told.
            found = images(folder)
            assert found[: len(acknowledged)] == acknowledged, end
            assert found == list(IMAGES[: len(found)]), end
            assert len(found) - len(acknowledged) in (0, 1), end
        else:
            assert acknowledged == []
            found = []
        write(folder, [row(image) for image in IMAGES[len(found) :]], rows_per_part=2)
        assert images(folder) == list(IMAGES), end
        left = [path.name for path in (folder / "describe").iterdir() if "partial" in path.name]
        assert left == []
    assert acknowledged == list(IMAGES)  # the last one was not killed


def test_a_journal_that_is_cut_anywhere_keeps_its_whole_lines(tmp_path):
    writer = AnnotationWriter(tmp_path / "ann", "describe")
    with writer:
        sizes = [0]
        for image in IMAGES[:3]:
            writer.append(row(image))
            (journal,) = (tmp_path / "ann/describe").glob("journal-*")
            sizes.append(journal.stat().st_size)
        data, name = journal.read_bytes(), journal.name
    near = {end + step for end in sizes for step in (-2, -1, 0, 1)}
    for size in sorted(near & set(range(len(data) + 1)) | set(range(0, len(data), 40))):
        folder = tmp_path / f"cut{size}"
        (folder / "describe").mkdir(parents=True)
        (folder / "annotations.json").write_bytes((tmp_path / "ann/annotations.json").read_bytes())
        (folder / "describe" / name).write_bytes(data[:size])
        whole = sum(size >= end for end in sizes[1:])
        assert images(folder) == list(IMAGES[:whole])
        if size % 40 == 0 or size == len(data):
            write(folder, [row("z.png")])
            assert images(folder) == [*IMAGES[:whole], "z.png"]


def test_rows_can_be_read_while_they_are_written(tmp_path):
    with AnnotationWriter(tmp_path, "describe", rows_per_part=2) as writer:
        for count, image in enumerate(IMAGES, start=1):
            writer.append(row(image))
            assert images(tmp_path) == list(IMAGES[:count])
    assert images(tmp_path) == list(IMAGES)


def test_a_second_writer_is_refused_and_another_shard_is_not(tmp_path):
    with AnnotationWriter(tmp_path, "describe", shard=Shard(0, 2)) as first:
        with pytest.raises(ValueError, match=rf"{os.getpid()} on .*shard 0-of-2.*--shard=i/n"):
            AnnotationWriter(tmp_path, "describe", shard=Shard(0, 2)).__enter__()
        with pytest.raises(ValueError, match="shard 0-of-2"):
            AnnotationWriter(tmp_path, "describe", shard=WHOLE).__enter__()
        with AnnotationWriter(tmp_path, "describe", shard=Shard(1, 2)) as second:
            first.append(row("a.png"))
            second.append(row("b.png"))
        with AnnotationWriter(tmp_path, "ground") as other:  # another stage
            other.append(Row("a.png", None, Provenance("m"), error="no detector"))
    write(tmp_path, [row("c.png")])
    assert sorted(images(tmp_path)) == ["a.png", "b.png", "c.png"]


def test_rows_of_a_later_division_come_later(tmp_path):
    write(tmp_path, [row("a.png")] * 5, shard=Shard(1, 2), rows_per_part=1)
    newer = Row("a.png", None, Provenance("newer"), {"captions": ["newer"]})
    write(tmp_path, [newer])
    assert stored(tmp_path)[-1].provenance.model == "newer"
    assert read_annotations(tmp_path)[0].captions == ("newer",)


@contextlib.contextmanager
def largest_file(num_bytes: int):
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = os.strerror(errno.EFBIG)


def test_a_full_disk_stops_and_the_next_writer_continues(tmp_path):
    kept = []

    def fill() -> None:
        with AnnotationWriter(tmp_path, "describe") as writer, largest_file(1000):
            for number in range(100):
                writer.append(row(f"{number}.png"))
                kept.append(f"{number}.png")

    with pytest.raises(OSError, match=FULL):
        fill()
    assert 0 < len(kept) < 10
    assert images(tmp_path) == kept
    write(tmp_path, [row("later.png")])
    assert images(tmp_path) == [*kept, "later.png"]


def test_a_part_that_does_not_fit_on_the_disk_stays_a_journal(tmp_path):
    def kinds() -> list[tuple[int, str, bool]]:
        found = [numbered(path.name) for path in (tmp_path / "describe").iterdir()]
        return [each for each in found if each]

    def fill() -> None:
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(AnnotationWriter(tmp_path, "describe", rows_per_part=3))
            for image in IMAGES[:2]:
                writer.append(row(image))
            (journal,) = (tmp_path / "describe").glob("journal-*")
            limit = journal.stat().st_size * 2  # the journal's next line fits, a part does not
            stack.enter_context(largest_file(limit))
            writer.append(row(IMAGES[2]))

    with pytest.raises(OSError, match=FULL):
        fill()
    assert kinds() == [(1, "0-of-1", True)]
    assert images(tmp_path) == list(IMAGES[:3])
    write(tmp_path, [])
    assert images(tmp_path) == list(IMAGES[:3])
    assert kinds() == [(1, "0-of-1", False)]


def test_what_a_stage_does_not_have_is_refused_at_once(tmp_path):
    with AnnotationWriter(tmp_path, "describe") as writer:
        with pytest.raises(ValueError, match="'describe' has no column 'regions'"):
            writer.append(Row("a.png", None, Provenance("m"), {"regions": []}))
        with pytest.raises(Exception, match=r"(?i)list|convert|expected"):
            writer.append(Row("a.png", None, Provenance("m"), {"captions": 3}))
        writer.append(row("b.png"))
    assert images(tmp_path) == ["b.png"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"has files and no annotations\.json"):
        AnnotationWriter(tmp_path, "describe").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]
    with pytest.raises(ValueError, match=r"holiday\.txt is not a folder"):
        AnnotationWriter(tmp_path / "holiday.txt", "describe").__enter__()


@pytest.mark.parametrize(("text", "named"), [("4/4", "4/4"), ("1", "i/n"), ("-1/4", "i/n")])
def test_a_shard_that_does_not_exist_is_refused(text, named):
    with pytest.raises(ValueError, match=named):
        read_shard(text)


FIRST = [2, 0, 0, 1, 3, 3, 3, 0]


def test_shards_divide_the_images_and_stay_the_same():
    names = [f"folder/{number}.jpg" for number in range(2000)]
    shards = [Shard(index, 4) for index in range(4)]
    assert all(sum(name in shard for shard in shards) == 1 for name in names)
    sizes = [sum(name in shard for name in names) for shard in shards]
    assert min(sizes) > 430
    assert [name in read_shard("2/4") for name in names[:4]] == [
        name in shards[2] for name in names[:4]
    ]
