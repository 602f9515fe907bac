"""`prepare inspect`: what it prints, writes and advises, and how it fails."""

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepared_records import noise_image, write_prepared

from grain_jax import prepare
from grain_jax.data.inspection import inspect_split as module
from grain_jax.data.inspection.inspect_split import InspectionSpec, inspect_split
from grain_jax.data.inspection.sections import advised_queries, inspection_sections, kept_boxes
from grain_jax.data.records import Caption, Record, Region

COUNT = 40


def record(i: int) -> Record:
    regions = tuple(
        Region((0.1, 0.1, 0.3 + k / 20, 0.5), f"part {k}", 1 - k / 10) for k in range(i % 10)
    )
    image = noise_image(0 if i == 20 else i, (60, 40))  # 20 is a copy of 0
    text = "the longest of all captions" if i == COUNT - 1 else f"bird {i}"
    return Record(f"id|{i}", image, (Caption("the same"), Caption(text)), regions)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "DATA"
    bare = [dataclasses.replace(record(i), regions=()) for i in range(3)]
    return write_prepared(folder, {"train": [record(i) for i in range(COUNT)], "bare": bare})


def test_text_and_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imagehash")
    out = tmp_path / "report"
    assert prepare.main(["inspect", str(data), "--split=train", f"--output={out}"]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "180 (4.50 an image)",
        "36 (90.0 %)",
        "the same",
        "id|0, id|20",
        "the longest of all captions",
    ):
        assert expected in printed
    # 10 of 40 images each have up to 9 boxes, of which 8 queries hold 176 of 180 and 7 168.
    assert "--model.decoder.num_queries=8 --data.max_regions=8 keeps 97.8 %" in printed
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "| id\\|8 |" in report
    assert "id\\|0, id\\|20" in report
    images = {path.name for path in out.glob("*.png")}
    assert images == {name for name in images if f"]({name})" in report}
    assert {"texts.png", "boxes.png", "worst.png", "near_duplicates.png", "images.png"} <= images
    for name in images:
        pixels = np.asarray(Image.open(out / name).convert("RGB"))
        assert pixels.min() < 100  # something is drawn on the white page
        assert pixels.max() == 255


def test_each_split_has_a_folder(data: Path, tmp_path: Path, capsys) -> None:
    assert prepare.main(["inspect", str(data), f"--output={tmp_path}", "--workers=1"]) == 0
    assert (tmp_path / "train" / "report.md").exists()
    assert not (tmp_path / "bare" / "boxes.png").exists()
    assert "no image has a region" in (tmp_path / "bare" / "report.md").read_text()
    assert f"Wrote {tmp_path / 'bare' / 'report.md'}" in capsys.readouterr().err


def test_without_the_library_it_says_how_to_install_it(data: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert prepare.main(["inspect", str(data), "--split=train"]) == 0
    assert "this needs ImageHash, pip install" in capsys.readouterr().out


def inspected(data: Path, workers: int, **changes):
    spec = InspectionSpec(data, "train", **changes)
    return inspect_split(spec, workers=workers, progress=lambda done, total: None)


def test_same_result_for_any_number_of_workers(data: Path, monkeypatch) -> None:
    alone = inspected(data, 1)
    monkeypatch.setattr(module, "CHUNK", 4)
    chunked, several = inspected(data, 1), inspected(data, 2)
    for other in (chunked, several):
        assert dataclasses.asdict(other) == dataclasses.asdict(alone)
        assert inspection_sections(other) == inspection_sections(alone)


def test_progress_and_a_part_of_the_images(data: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    seen = []
    spec = InspectionSpec(data, "train", max_images=10)
    found = inspect_split(spec, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert (found.measured.images, found.total, found.is_whole) == (10, COUNT, False)
    assert found.measured.worst.records["longest captions"][0].index == COUNT - 1


def test_advised_queries_are_the_fewest() -> None:
    for counts in ({3: 5}, {0: 100, 1: 1}, {1: 1, 2: 1, 60: 1}, {0: 4}):
        boxes = [number for number, images in counts.items() for _ in range(images)]
        kept = {q: sum(min(number, q) for number in boxes) for q in range(1, 70)}
        expected = min(q for q, count in kept.items() if count >= 0.95 * sum(boxes))
        assert advised_queries(Counter(counts)) == expected
        assert kept_boxes(Counter(counts), expected) == kept[expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "holds no prepared data set"),
        (["DATA", "--split=valid"], "has no split 'valid'"),
        (["DATA", "--near_distance=8"], "from 0 to 7"),
        (["DATA", "--tokenizer=/nowhere"], "/nowhere"),
        ([], "Required options"),
    ],
)
def test_mistakes_are_named(data: Path, arguments, message, capsys) -> None:
    given = [str(data) if each == "DATA" else each for each in arguments]
    assert prepare.main(["inspect", *given]) == 2
    assert message in " ".join(capsys.readouterr().err.split()).replace("│ ", "")


def test_no_file_is_left_where_the_output_cannot_be_made(data: Path, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    assert prepare.main(["inspect", str(data), f"--output={tmp_path / 'file'}"]) == 2
    assert "file" in capsys.readouterr().err
