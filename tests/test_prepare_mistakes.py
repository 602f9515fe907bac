"""What people get wrong when they prepare data: it is said, and mending it is enough."""

import gzip
import io
import json
import os
import random
from pathlib import Path

import pytest
from PIL import Image

from grain_jax import prepare
from grain_jax.config import DataConfig
from grain_jax.data import build_dataset, build_shard
from grain_jax.data.build_dataset import build_split, report_path
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.captions import choose_caption
from grain_jax.data.checks import DatasetStatistics, region_captions
from grain_jax.data.importers import InvalidRecordError
from grain_jax.data.importers.jsonl import JsonLines, parse_line
from grain_jax.data.records import Region
from grain_jax.data.tfds_records import RecordSource, shard_path


def write(path: Path, *entries: dict) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        Image.new("RGB", (60, 40), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def entry(i: int, **more) -> dict:
    return {"image": f"{i}.png", "captions": [f"caption {i}"], **more}


def spec(folder: Path, **changes) -> DatasetBuildSpec:
    values = {"format": "jsonl", "input": folder / "in.jsonl", "images": folder}
    return DatasetBuildSpec(**{**values, "out": folder / "out", **changes})


def command(folder: Path, *more: str) -> list[str]:
    inputs = f"--input={folder / 'in.jsonl'}", f"--images={folder}", f"--out={folder / 'out'}"
    return ["--from=jsonl", *inputs, "--workers=1", *more]


# Names of fields

BOX = {"bbox": [0, 0, 1, 1], "description": "x"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *(
            ({"image": "a", name: ["x"]}, f"has no 'captions'; it has \"{name}\"")
            for name in ("caption", "text", "sentence", "sentences", "captoins", "Captions")
        ),
        ({"image": "a", "captions": [], "caption": "x"}, "has no 'captions'; it has \"caption\""),
        *(
            ({name: "a", "captions": ["x"]}, f"has no 'image'; it has \"{name}\"")
            for name in ("file_name", "filename", "path", "img")
        ),
        *(
            ({"image": "a", "captions": ["x"], name: [BOX]}, f"has no 'regions'; it has \"{name}\"")
            for name in ("boxes", "bboxes", "objects", "region")
        ),
        (
            {"image": "a", "captions": ["x"], "box_unit": "pixel", "regions": [BOX]},
            "has no 'bbox_unit'; it has \"box_unit\"",
        ),
        (
            {"image": "a", "regions": [{"box": [0, 0, 1, 1], "description": "x"}]},
            r"regions\[0\] has no 'bbox'; it has \"box\"",
        ),
        (
            {"image": "a", "regions": [{"bbox": [0, 0, 1, 1], "label": "x"}]},
            r"regions\[0\] has no 'description'; it has \"label\"",
        ),
        (
            {"image": "a", "regions": [{**BOX, "confidence": 0.5}]},
            r"regions\[0\] has no 'score'; it has \"confidence\"",
        ),
        ({"images": [], "annotations": [], "categories": []}, "a COCO file as a whole"),
    ],
)
def test_a_field_of_another_name_is_named(line: dict, message: str) -> None:
    with pytest.raises(InvalidRecordError, match=message):
        parse_line(json.dumps(line).encode())


def test_fields_that_nothing_reads_are_no_mistake() -> None:
    line = {"image": "a", "captions": ["x"], "url": "y", "licence": "z", "caption": "w"}
    region = {**BOX, "id": 3, "score": 1, "label": "y"}
    item = parse_line(json.dumps({**line, "regions": [region]}).encode())
    assert item.ignored == ("caption", "licence", "url", "regions: id", "regions: label")


@pytest.mark.parametrize(
    "empty", [{"regions": [], "annotations": []}, {"objects": None}, {"unit": "", "boxes": {}}]
)
def test_empty_fields_of_other_tools_are_no_mistake(empty: dict) -> None:
    line = {"image": "a", "captions": ["x"], **empty}
    assert parse_line(json.dumps(line).encode()).regions == ()


def test_fields_of_dropped_images_are_counted(folder: Path, capsys) -> None:
    gone = {"image": "gone.png", "captions": ["x"], "licence": 1}
    write(folder / "in.jsonl", entry(0), gone)
    assert prepare.main(command(folder)) == 0
    assert "fields ignored: licence" in capsys.readouterr().out


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRecordError, match='"captions" is given twice'):
        parse_line(b'{"image": "a", "captions": ["x"], "captions": ["y"]}')


# Files

LINE = '{"image": "é.png", "captions": ["é"]}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(LINE.encode(), mtime=0),
            "compressed with gzip; decompress it first: gunzip",
        ),
        (LINE.encode("utf-16"), "in UTF-16; convert it: iconv -f UTF-16"),
        (f"[{LINE}]".encode(), "one JSON list; write one element per line: jq"),
        (json.dumps(json.loads(LINE), indent=1).encode(), "one JSON object over several lines"),
        (b"PAR1....", "a Parquet table"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        JsonLines(tmp_path / "in.jsonl")


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{LINE}\r\n\r\n{LINE}".encode())
    items = JsonLines(path)
    assert [items[i].captions[0].text for i in range(2)] == ["é", "é"]
    path.write_bytes(LINE.encode("latin-1"))
    with pytest.raises(InvalidRecordError, match=r"not UTF-8 text .* save the file as UTF-8"):
        JsonLines(path)[0]


def test_links_in_a_circle_are_missing_files(folder: Path) -> None:
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to("0.png")
    write(folder / "in.jsonl", entry(0), entry(1))
    assert build_split(spec(folder), workers=1).dropped_images == {"missing file": 1}


def test_a_place_that_cannot_hold_a_data_set_is_refused(folder: Path) -> None:
    write(folder / "in.jsonl", entry(0))
    (folder / "loop").symlink_to("loop")
    for place in ("0.png", "loop"):
        with pytest.raises(ValueError, match=f"{place} is not a folder"):
            build_split(spec(folder, out=folder / place), workers=1)
    latin = folder / os.fsdecode(b"caf\xe9")
    with pytest.raises(ValueError, match=r"caf\\udce9.* is not UTF-8"):
        build_split(spec(folder, out=latin), workers=1)


# Trying again


def test_a_corrected_input_is_taken_and_costs_what_it_changes(
    folder: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 4)
    wrong = [entry(i) for i in range(12)]
    wrong[9] = {"image": "9.png", "caption": "x"}
    write(folder / "in.jsonl", *wrong)
    assert prepare.main(command(folder)) == 2
    assert "in.jsonl:10: has no 'captions'" in capsys.readouterr().err
    made = []
    encode = build_shard.encode_record
    monkeypatch.setattr(build_shard, "encode_record", lambda r: made.append(r.id) or encode(r))
    write(folder / "in.jsonl", *(entry(i) for i in range(12)))
    assert prepare.main(command(folder)) == 0
    assert made == [f"{i}.png" for i in range(8, 12)]  # the shards before are kept
    source = RecordSource(folder / "out", "train")
    assert [source[i].id for i in range(12)] == [f"{i}.png" for i in range(12)]


@pytest.mark.parametrize("content", [None, b"broken"])
def test_images_that_were_mended_are_taken(folder: Path, monkeypatch, content) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 4)
    good = (folder / "1.png").read_bytes()
    for name in ("1.png", "5.png"):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
    write(folder / "in.jsonl", *(entry(i) for i in range(11)), {"image": "11.png", "caption": "x"})
    with pytest.raises(ValueError, match=r"in\.jsonl:12"):
        build_split(spec(folder), workers=1)
    (folder / "1.png").write_bytes(good)
    made = []
    encode = build_shard.encode_record
    monkeypatch.setattr(build_shard, "encode_record", lambda r: made.append(r.id) or encode(r))
    write(folder / "in.jsonl", *(entry(i) for i in range(12)))
    figures = build_split(spec(folder), workers=1)
    assert (figures.images, figures.dropped_images.total()) == (11, 1)
    assert made == [f"{i}.png" for i in (*range(4), *range(8, 12))]  # not where 5.png is missing


def test_what_was_skipped_stops_a_run_that_is_to_stop(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 4)
    write(folder / "in.jsonl", {"image": 3}, *(entry(i) for i in range(7)))
    with monkeypatch.context() as patch:
        patch.setattr(build_dataset, "_move_to_final_names", None)
        with pytest.raises(TypeError):
            build_split(spec(folder, on_error="skip"), workers=1)
    (folder / "out/.building/train/moving.json").unlink()
    with pytest.raises(ValueError, match=r"in\.jsonl:1:"):
        build_split(spec(folder), workers=1)


def test_other_options_take_no_shard_of_an_unfinished_run(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 4)
    write(folder / "in.jsonl", *(entry(i) for i in range(11)), {"image": "11.png"}, {"image": 3})
    with pytest.raises(ValueError, match=r"in\.jsonl:13"):
        build_split(spec(folder), workers=1)
    build_split(spec(folder, max_image_side=30, on_error="skip"), workers=1)
    source = RecordSource(folder / "out", "train")
    assert len(source) == 11
    assert all(source[i].image.startswith(b"\xff\xd8") for i in range(11))  # JPEG: all shrunk


def test_an_input_corrected_after_a_kill_at_the_end(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 4)
    write(folder / "in.jsonl", *(entry(i) for i in range(12)))

    def move_two(out: Path, split: str, number: int, count: int) -> Path:
        if number == 2:
            raise KeyboardInterrupt
        return shard_path(out, split, number, count)

    with monkeypatch.context() as patch:
        patch.setattr(build_dataset, "shard_path", move_two)
        assert prepare.main(command(folder)) == 130
    write(folder / "in.jsonl", *(entry(i) for i in range(11, 3, -1)))
    assert build_split(spec(folder), workers=1).images == 8
    source = RecordSource(folder / "out", "train")
    assert [source[i].id for i in range(8)] == [f"{i}.png" for i in range(11, 3, -1)]
    assert len(list((folder / "out").glob("*.array_record-*"))) == 2


def test_a_finished_split_says_how_to_replace_it(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 4)
    write(folder / "in.jsonl", *(entry(i) for i in range(12)))
    build_split(spec(folder), workers=1)
    build_split(spec(folder, split="validation"), workers=1)
    write(folder / "in.jsonl", entry(5))
    report = report_path(folder / "out", "train")
    with pytest.raises(ValueError, match=f"different: input.* delete {report}"):
        build_split(spec(folder), workers=1)
    report.unlink()
    build_split(spec(folder), workers=1)
    assert RecordSource(folder / "out", "train")[0].id == "5.png"
    assert len(RecordSource(folder / "out", "validation")) == 12
    assert len(list((folder / "out").glob("*-train.array_record-*"))) == 1


def test_reports_of_earlier_versions_are_read() -> None:
    stored = DatasetStatistics(images=3).to_json()
    for later in ("captions_from_regions", "several_frames", "repeated_ids", "misread_boxes"):
        del stored[later]
    assert DatasetStatistics.from_json(json.loads(json.dumps(stored))) == DatasetStatistics(
        images=3
    )


# Boxes without captions

REGIONS = [
    {"bbox": [0, 0, 0.5, 1], "description": "dog", "score": 0.5},
    {"bbox": [0.5, 0, 1, 1], "description": "person", "score": 0.9},
    {"bbox": [0, 0, 0.4, 1], "description": "Dog", "score": 0.4},
]


def test_boxes_without_captions_are_kept_when_asked(folder: Path, capsys) -> None:
    write(
        folder / "in.jsonl",
        {"image": "0.png", "regions": REGIONS},
        {"image": "1.png"},
        {"image": "2.png", "regions": [{"bbox": [1, 1, 1, 1], "description": "x"}]},
        entry(3, regions=REGIONS),
    )
    assert prepare.main(command(folder, "--on-error=skip")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "0.png: no caption of 1 to 10000 characters. --captions_from_regions makes" in printed
    assert "1.png: no caption of 1 to 10000 characters. To use" not in printed
    other = [one for one in command(folder) if not one.startswith("--out=")]
    other += [f"--out={folder / 'other'}", "--captions_from_regions"]
    assert prepare.main(other) == 0
    assert "captions made of regions" in capsys.readouterr().out
    source = RecordSource(folder / "other", "train")
    assert [source[i].id for i in range(len(source))] == ["0.png", "3.png"]
    (caption,) = source[0].captions
    assert (caption.text, caption.source) == ("person, dog", "regions")
    assert [caption.source for caption in source[1].captions] == ["original"]
    figures = json.loads(report_path(folder / "other", "train").read_text())["figures"]
    assert figures["captions_from_regions"] == 1
    assert figures["dropped_images"] == {"no caption": 2}
    # Training takes it as the only caption there is, with and without synthetic ones elsewhere.
    for probability in (0.0, 1.0):
        config = DataConfig(synthetic_caption_probability=probability)
        assert choose_caption(source[0], [], config, random.Random(0)) == "person, dog"


def test_very_many_regions_make_a_caption_that_can_be_stored() -> None:
    regions = [Region((0.0, 0.0, 1.0, 1.0), f"thing {i} " + "x" * 90) for i in range(200)]
    (caption,) = region_captions(regions)
    assert 9_900 < len(caption.text) <= 10_000
    assert caption.text.endswith("x")
    assert region_captions([]) == ()


# Boxes that mean something else


def boxes(folder: Path, *bboxes: list[float], **more) -> str:
    regions = [{"bbox": bbox, "description": "x"} for bbox in bboxes]
    write(folder / "in.jsonl", entry(0, regions=regions, **more))
    return " ".join(_printed(folder).split())


def _printed(folder: Path) -> str:
    console = prepare.Console(record=True, width=200, file=io.StringIO())
    figures = build_split(spec(folder), workers=1)
    prepare.print_report(spec(folder), figures, console)
    return console.export_text()


@pytest.mark.parametrize(
    ("bboxes", "more", "kind"),
    [
        ([[30, 20, 20, 10], [40, 30, 15, 5]], {"bbox_unit": "pixel"}, "x, y, width, height"),
        ([[0.5, 0.5, 0.25, 0.25], [0.8, 0.5, 0.1, 0.2]], {}, "x, y, width, height"),
        ([[10, 20, 90, 95]], {}, "percent"),
        ([[10, 20, 59, 40]], {}, "percent"),
        ([[100, 200, 900, 950]], {}, "thousandths"),
    ],
)
def test_boxes_of_another_kind_are_told(folder: Path, bboxes, more, kind: str) -> None:
    printed = boxes(folder, *bboxes, **more)
    count = len(bboxes)
    assert f"{count} of {count} boxes that were dropped would fit as {kind}" in printed
    assert "the boxes that were kept are wrong too" in printed


def test_single_odd_boxes_are_no_reason_to_doubt_the_others(folder: Path) -> None:
    assert "would fit as" not in boxes(folder, [0, 0, 1, 1], [0.5, 0.5, 2, 2], [0.9, 0.9, 0.8, 0.8])


def test_boxes_of_an_image_of_another_shape_are_refused(folder: Path) -> None:
    region = {"bbox": [0, 0, 10, 10], "description": "x"}

    def size(width: int, height: int) -> dict:
        more = {"bbox_unit": "pixel", "width": width, "height": height, "regions": [region]}
        return entry(0, **more)

    write(folder / "in.jsonl", size(40, 60))
    with pytest.raises(ValueError, match=r"40 x 60 pixels .* has 60 x 40, .* its EXIF orient"):
        build_split(spec(folder), workers=1)
    write(folder / "in.jsonl", size(100, 60))
    with pytest.raises(ValueError, match=r"of another shape\. \(--on-error=skip"):
        build_split(spec(folder), workers=1)
    write(folder / "in.jsonl", size(601, 400))  # resized since
    build_split(spec(folder), workers=1)
    box = RecordSource(folder / "out", "train")[0].regions[0].box_xyxy
    assert box == pytest.approx((0, 0, 10 / 601, 10 / 400))


def test_what_else_is_counted_is_shown(folder: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "0.gif", save_all=True, append_images=frames[1:])
    lines = [entry(0), entry(0), entry(1, id="0.png"), entry(2), {**entry(3), "image": "0.gif"}]
    write(folder / "in.jsonl", *lines)
    printed = " ".join(_printed(folder).split())
    figures = build_split(spec(folder), workers=1)
    assert (figures.several_frames, figures.repeated_ids) == (1, 2)
    assert "images of several frames, first kept" in printed
    assert "2 images have an id that an earlier one has. Put all captions" in printed
    assert "no region was kept" in printed


def test_stop_is_the_older_name_of_raise(folder):
    assert spec(folder, on_error="stop") == spec(folder, on_error="raise") == spec(folder)


def test_images_with_the_bytes_of_another_are_counted(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    write(folder / "in.jsonl", entry(0), entry(1), {**entry(2), "image": "copy.png"})
    statistics = build_split(spec(folder), workers=1)
    assert (statistics.images, statistics.repeated_images, statistics.repeated_ids) == (3, 1, 0)
