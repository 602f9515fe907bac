"""The prepare command: what is kept, what is dropped and why, and continuing after a kill."""

import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from grain_jax import prepare
from grain_jax.data import build_dataset, build_shard, image_files
from grain_jax.data.build_dataset import build_split, report_path
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.checks import (
    DatasetStatistics,
    check_item,
    check_region,
    read_image_file,
    stored_image,
)
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers import ImportedImage, ImportedRegion
from grain_jax.data.tfds_records import RecordSource, shard_path
from grain_jax.data.transforms import decode_image


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (20, 10)) -> None:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", size, (i % 256, 0, 0)).save(folder / name)


def write_lines(path: Path, entries: list) -> Path:
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", [f"{i}.png" for i in range(30)])
    entries = [
        {
            "image": f"{i}.png",
            "captions": [f"caption {i}", {"text": "  seen  by a model ", "source": "synthetic"}],
            "regions": [{"bbox": [0, 0.5, 0.25, 1], "description": "a wing", "score": 0.75}],
        }
        for i in range(30)
    ]
    write_lines(tmp_path / "train.jsonl", entries)
    return tmp_path


def spec(folder: Path, **changes) -> DatasetBuildSpec:
    values = {
        "format": "jsonl",
        "input": folder / "train.jsonl",
        "images": folder / "images",
        "out": folder / "out",
    }
    return DatasetBuildSpec(**{**values, **changes})


def command(folder: Path, *more: str) -> list[str]:
    return [
        "--from=jsonl",
        f"--input={folder / 'train.jsonl'}",
        f"--images={folder / 'images'}",
        f"--out={folder / 'out'}",
        "--workers=1",
        *more,
    ]


def test_round_trip(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(command(photos)) == 0
    source = RecordSource(photos / "out", "train")
    assert len(source) == 30
    record = source[7]
    assert record.id == "7.png"
    assert record.image == (photos / "images" / "7.png").read_bytes()
    assert [(c.text, c.source) for c in record.captions] == [
        ("caption 7", "original"),
        ("seen by a model", "synthetic"),
    ]
    assert record.regions[0].box_xyxy == (0.0, 0.5, 0.25, 1.0)
    assert (record.regions[0].description, record.regions[0].score) == ("a wing", 0.75)
    assert "--data.dataset=tfds" in capsys.readouterr().out
    assert not (photos / "out" / ".building").exists()


def test_splits_share_a_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 4)
    build_split(spec(photos), workers=1)
    few = write_lines(photos / "few.jsonl", (photos / "train.jsonl").read_text().split("\n")[:3])
    build_split(spec(photos, input=few, split="validation"), workers=1)
    assert len(RecordSource(photos / "out", "train")) == 30
    assert RecordSource(photos / "out", "validation")[2].id == "2.png"
    assert len(list((photos / "out").glob("*-train.array_record-*-of-00008"))) == 8


def test_splits_built_at_once_are_all_listed(photos: Path, monkeypatch) -> None:
    write, other = build_dataset.write_metadata, spec(photos, split="validation")
    second = threading.Thread(target=build_split, args=(other,), kwargs={"workers": 1})

    def overtaken(*arguments) -> None:
        monkeypatch.setattr(build_dataset, "write_metadata", write)
        second.start()
        second.join(timeout=2)  # which the other build would use to write what it knows
        write(*arguments)

    monkeypatch.setattr(build_dataset, "write_metadata", overtaken)
    build_split(spec(photos), workers=1)
    second.join()
    for split in ("train", "validation"):
        assert len(RecordSource(photos / "out", split)) == 30


def test_a_finished_split_is_listed_again(photos: Path) -> None:
    build_split(spec(photos), workers=1)
    build_split(spec(photos, split="validation"), workers=1)
    info = photos / "out" / "dataset_info.json"
    whole = json.loads(info.read_text())
    for broken in (json.dumps({**whole, "splits": whole["splits"][1:]}), "{", ""):
        info.write_text(broken)
        build_split(spec(photos), workers=1)
        assert len(RecordSource(photos / "out", "train")) == 30
        assert len(RecordSource(photos / "out", "validation")) == 30


def test_a_split_is_built_by_one_process_at_a_time(photos: Path) -> None:
    def second(state: build_dataset.Progress) -> None:
        with pytest.raises(ValueError, match="Another process is building split 'train'"):
            build_split(spec(photos), workers=1)

    assert build_split(spec(photos), workers=1, progress=second).images == 30


def test_shards_that_come_out_empty_leave_no_gap(photos: Path, monkeypatch) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 10)
    for i in range(10, 20):
        (photos / "images" / f"{i}.png").unlink()
    figures = build_split(spec(photos), workers=1)
    assert (figures.images, figures.dropped_images["missing file"]) == (20, 10)
    assert len(list((photos / "out").glob("*-of-00002"))) == 2
    source = RecordSource(photos / "out", "train")
    assert [source[i].id for i in (0, 9, 10, 19)] == ["0.png", "9.png", "20.png", "29.png"]


def test_workers_change_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers are fresh processes: they get their shards by argument, whatever MIN_SHARD is there.
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 10)
    one = build_split(spec(photos, out=photos / "one"), workers=1)
    two = build_split(spec(photos, out=photos / "two"), workers=2)
    assert one == two
    a, b = RecordSource(photos / "one", "train"), RecordSource(photos / "two", "train")
    assert [a[i] for i in range(30)] == [b[i] for i in range(30)]


KILLED = """
import os, signal, sys
from pathlib import Path
from grain_jax.data import build_dataset, build_shard
build_dataset.MIN_SHARD = 4
encode, calls = build_shard.encode_record, []
def encode_record(record):
    calls.append(record)
    if len(calls) == 15:  # in the middle of the fourth shard
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(record)
build_shard.encode_record = encode_record
folder = Path(sys.argv[1])
spec = build_dataset.DatasetBuildSpec(
    "jsonl", folder / "train.jsonl", folder / "images", folder / "out"
)
build_dataset.build_split(spec, workers=1)
"""


def test_a_killed_run_continues(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(photos)], check=False)
    assert killed.returncode == -signal.SIGKILL
    work = photos / "out" / ".building" / "train"
    finished = {path.stat().st_ino for path in work.glob("[!.]*.array_record")}
    assert len(finished) == 3
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 4)
    calls = []
    encode = build_shard.encode_record
    monkeypatch.setattr(build_shard, "encode_record", lambda r: calls.append(r.id) or encode(r))
    figures = build_split(spec(photos), workers=1)
    assert figures.images == 30
    assert calls == [f"{i}.png" for i in range(12, 30)]  # the finished shards are kept
    assert finished <= {p.stat().st_ino for p in (photos / "out").glob("*.array_record-*")}
    source = RecordSource(photos / "out", "train")
    assert [source[i].id for i in range(30)] == [f"{i}.png" for i in range(30)]


@pytest.mark.parametrize("place", ["shards", "metadata"])
def test_a_run_killed_at_its_end_continues(photos: Path, monkeypatch, place: str) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 10)

    def fail(*arguments) -> None:
        raise KeyboardInterrupt

    def move_two(out: Path, split: str, number: int, count: int) -> Path:
        return shard_path(out, split, number, count) if number < 2 else fail()

    with monkeypatch.context() as patch:
        if place == "shards":
            patch.setattr(build_dataset, "shard_path", move_two)
        else:
            patch.setattr(build_dataset, "write_metadata", fail)
        assert prepare.main(command(photos)) == 130
    assert list((photos / "out").glob("*-train.array_record-*"))
    # What is left there is no hindrance to another split.
    assert build_split(spec(photos, split="validation"), workers=1).images == 30
    assert build_split(spec(photos), workers=1).images == 30
    for split in ("train", "validation"):
        assert len(RecordSource(photos / "out", split)) == 30


def test_a_second_run_says_that_nothing_was_built(photos: Path, capsys) -> None:
    for said in (False, True):
        assert prepare.main(command(photos)) == 0
        assert ("nothing was built anew" in capsys.readouterr().err) == said


def test_a_finished_split_is_not_built_again_nor_mixed(photos: Path, monkeypatch) -> None:
    first = build_split(spec(photos), workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(build_shard, "encode_record", None)
        assert build_split(spec(photos), workers=1) == first
    with (photos / "train.jsonl").open("a") as file:
        file.write('{"image": "1.png", "captions": ["new"]}\n')
    with pytest.raises(ValueError, match=r"something else \(different: input\)"):
        build_split(spec(photos), workers=1)


def test_everything_dropped_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    write_images(images, ["good.png", "also.png"])
    (images / "broken.jpg").write_bytes(b"\xff\xd8 not a photograph")
    (tmp_path / "secret.png").write_bytes((images / "good.png").read_bytes())
    boxes = [
        [0.1, 0.1, 0.2, 0.2],
        [-0.005, 0, 1.009, 1],  # clipped
        [0, 0, 1.02, 1],
        [0.5, 0.5, 0.5, 0.9],
        [0.9, 0.5, 0.1, 0.9],
        [float("nan"), 0, 1, 1],
        [1.0, 0, 1.005, 1],  # nothing left inside
        [0, 0, 1e39, 1],  # infinite as it would be stored
    ]
    regions = [{"bbox": box, "description": "thing"} for box in boxes]
    regions.append({"bbox": [0, 0, 1, 1], "description": "  "})
    write_lines(
        tmp_path / "train.jsonl",
        [
            {"image": "good.png", "captions": ["x", " "], "regions": regions, "url": "[/red]"},
            {"image": "missing.png", "captions": ["x"]},
            {"image": "broken.jpg", "captions": ["x"]},
            {"image": "../secret.png", "captions": ["x"]},
            {"image": "/etc/hostname", "captions": ["x"]},
            {"image": "also.png", "captions": [" "]},
            "{nonsense",
        ],
    )
    assert prepare.main(command(tmp_path, "--on-error=skip")) == 0
    figures = json.loads(report_path(tmp_path / "out", "train").read_text())["figures"]
    assert (figures["images"], figures["captions"], figures["regions"]) == (1, 1, 2)
    assert figures["clipped_boxes"] == 1
    assert figures["dropped_images"] == {
        "missing file": 1,
        "corrupt image": 1,
        "path outside the images folder": 2,
        "no caption": 1,
        "unreadable entry": 1,
    }
    assert figures["dropped_regions"] == {
        "box out of range": 1,
        "empty box": 3,
        "box or score not finite": 2,
        "empty description": 1,
    }
    assert figures["ignored_fields"] == {"url": 1}
    printed = capsys.readouterr().out
    assert "train.jsonl:7: not JSON" in printed
    assert "fields ignored: url" in printed
    assert RecordSource(tmp_path / "out", "train")[0].regions[1].box_xyxy == (0.0, 0.0, 1.0, 1.0)


def test_a_bad_line_stops_with_its_place(photos: Path, capsys) -> None:
    with (photos / "train.jsonl").open("a") as file:
        file.write('\n{"image": "1.png", "captions": "one"}\n')
    assert prepare.main(command(photos)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "train.jsonl:32: 'captions' must be a list" in error
    assert "--on-error=skip" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "Train"}, "lower-case"),
        ({"split": "all"}, "lower-case"),
        ({"max_image_side": -1}, "max_image_side"),
        ({"on_error": "ignore"}, "on-error must be 'raise' or 'skip'"),
        ({"format": "coco"}, "jsonl"),
        ({"images": Path("/nowhere")}, "/nowhere is not a folder"),
        ({"input": Path("/nowhere.jsonl")}, "--input=/nowhere.jsonl does not exist"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(photos: Path, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_split(spec(photos, **change), workers=1)


@pytest.mark.parametrize("number", ["0", "-3"])
def test_a_number_of_workers_is_at_least_one(photos: Path, number: str, capsys) -> None:
    words = ["--from=jsonl", f"--input={photos / 'train.jsonl'}", f"--images={photos / 'images'}"]
    assert prepare.main([*words, f"--output={photos / 'w'}", f"--workers={number}"]) == 2
    assert f"'{number}' should be a whole number of at least 1" in capsys.readouterr().err
    assert not (photos / "w").exists()


def test_an_empty_result_is_an_error_that_can_be_repaired(photos: Path) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match="30 missing file"):
        build_split(spec(photos, images=photos / "empty"), workers=1)
    assert build_split(spec(photos), workers=1).images == 30


# Images


def test_larger_images_are_shrunk_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (80, 40), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    data = out.getvalue()
    pixels = decode_image(data)
    assert stored_image(data, pixels, 0) == data
    assert stored_image(data, pixels, 80) == data
    assert decode_image(stored_image(data, pixels, 20)).shape == (20, 10, 3)


def test_other_formats_become_png_of_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    stored = stored_image(out.getvalue(), pixels, 0)
    assert stored.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decode_image(stored), pixels)


def test_nothing_is_opened_as_another_kind_of_image(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "EPS")
    with pytest.raises(UnidentifiedImageError):
        stored_image(out.getvalue(), pixels, 0)
    (tmp_path / "a.jpg").write_bytes(out.getvalue())
    with pytest.raises(SkippedSample, match="not an image of these") as dropped:
        check_item(
            ImportedImage("a", "a.jpg"), tmp_path, max_image_side=0, statistics=DatasetStatistics()
        )
    assert dropped.value.reason == "corrupt image"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../a.png", "path outside the images folder"),
        ("x/../../a.png", "path outside the images folder"),
        ("..\\a.png", "path outside the images folder"),
        ("C:\\a.png", "path outside the images folder"),
        ("/a.png", "path outside the images folder"),
        ("..", "path outside the images folder"),
        (".", "missing file"),
        ("a\0.png", "missing file"),
        ("\ud800.png", "missing file"),
        ("x" * 5000, "missing file"),
        ("big.png", "file too large"),
    ],
)
def test_paths_stay_inside_the_images_folder(tmp_path, monkeypatch, path, reason) -> None:
    images = tmp_path / "images"
    write_images(images, ["big.png"])
    write_images(tmp_path, ["a.png"])
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(SkippedSample) as dropped:
        read_image_file(path, images)
    assert dropped.value.reason == reason
    monkeypatch.undo()
    assert read_image_file("x/../big.png", images)


def test_pixel_boxes_have_a_pixel_of_slack() -> None:
    figures = DatasetStatistics()

    def box(*values: float) -> object:
        region = check_region(ImportedRegion(values, "x"), "pixel", (200, 100), figures)
        return region and region.box_xyxy

    assert box(50.0, 10.0, 100.0, 100.0) == (0.25, 0.1, 0.5, 1.0)
    assert box(-1.0, 0.0, 201.0, 50.0) == (0.0, 0.0, 1.0, 0.5)
    assert box(0.0, 0.0, 202.0, 50.0) is None
    assert figures.clipped_boxes == 1
    assert figures.dropped_regions == {"box out of range": 1}


@pytest.mark.parametrize("words", [["--on-error=stop"], ["--on_error", "stop"]])
def test_the_older_name_of_raise_is_understood(tmp_path, words, capsys):
    tmp_path.joinpath("images").mkdir()
    tmp_path.joinpath("train.jsonl").write_text("{nonsense\n")
    assert prepare.main(command(tmp_path, *words)) == 2
    assert "train.jsonl:1" in capsys.readouterr().err
