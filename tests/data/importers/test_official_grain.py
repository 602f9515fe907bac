"""The official code's annotation files: how they are joined, and its frame of 960 pixels."""

import json
from pathlib import Path
from typing import Any

import pytest

from grain_jax.data.importers import InvalidRecordError
from grain_jax.data.importers.official_grain import OfficialGrain


def folder(path: Path, *, captions: Any = None, boxes: Any = None) -> Path:
    (path / "captions_pooled.csv").write_text("path,caption\na/1.jpg,one\nb.jpg,two\n")
    for name, content in (("captions_cc3m", captions), ("bboxes_cc3m", boxes)):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (path / f"{name}_pooled.json").write_text(text)
    return path


def box(*bbox: float, **changes) -> dict[str, Any]:
    return {"bbox": list(bbox), "score": 0.5, "description": "a wing", **changes}


def test_the_table_alone_is_enough(tmp_path: Path) -> None:
    importer = OfficialGrain(folder(tmp_path))
    assert [importer[i].image for i in range(len(importer))] == ["a/1.jpg", "b.jpg"]


def test_boxes_are_fractions_of_the_frame_on_each_axis(tmp_path: Path) -> None:
    boxes = {"b.jpg": [box(480, 240, 960, 720), box(-96, 0, 1200, 96)]}
    item = OfficialGrain(folder(tmp_path, boxes=boxes))[1]
    assert item.regions[0].box_xyxy == pytest.approx((0.5, 0.25, 1, 0.75))
    assert item.regions[1].box_xyxy == pytest.approx((0, 0, 1, 0.1))  # cut to the frame
    assert (item.box_unit, item.regions[0].score) == ("fraction", 0.5)


def test_captions_of_the_model_follow_as_synthetic(tmp_path: Path) -> None:
    importer = OfficialGrain(folder(tmp_path, captions={"x.jpg": "no", "a/1.jpg": "seen"}))
    assert [(c.text, c.source) for c in importer[0].captions] == [
        ("one", "original"),
        ("seen", "synthetic"),
    ]
    assert [c.text for c in importer[1].captions] == ["two"]
    assert importer.notes == [
        "captions_cc3m_pooled.json: 1 of 2 entries are of paths that captions_pooled.csv does not "
        "have, and are left out."
    ]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (3, "region is not an object"),
        (box(1, 2, 3), "box is not [x0, y0, x1, y1]"),
        (box(1, 2, 3, 4, score=None), "score is not a number"),
        (box(1, 2, 3, 4, description=["x"]), "description is not a text"),
        (box(1, 2, 3, 4, description="<pad>"), "padding"),
    ],
)
def test_a_region_that_is_left_out_is_counted(tmp_path: Path, entry, reason: str) -> None:
    item = OfficialGrain(folder(tmp_path, boxes={"b.jpg": [entry, box(1, 2, 3, 4)]}))[1]
    assert (item.left_out, len(item.regions)) == ((reason,), 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"captions": {"b.jpg": 3}}, r"captions_cc3m_pooled\.json, byte 10: expected a str, got 3"),
        ({"boxes": {"b.jpg": {}}}, r"bboxes_cc3m_pooled\.json, byte 10: expected a list"),
        ({"boxes": '{"b.jpg": [], "b.jpg": []}'}, r"byte 10: the path is given 2 times"),
    ],
)
def test_an_entry_that_cannot_be_read_is_located(tmp_path: Path, files, message: str) -> None:
    importer = OfficialGrain(folder(tmp_path, **files))
    assert importer[0].image == "a/1.jpg"
    with pytest.raises(InvalidRecordError, match=message):
        importer[1]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs captions_pooled\.csv"):
        OfficialGrain(tmp_path)
    folder(tmp_path, boxes='{"b.jpg": [')
    with pytest.raises(ValueError, match=r"bboxes_cc3m_pooled\.json is not JSON that can be read"):
        OfficialGrain(tmp_path)
    (tmp_path / "bboxes_cc12m_pooled.json").write_text("{}")
    with pytest.raises(ValueError, match="several files bboxes_"):
        OfficialGrain(tmp_path)
    (tmp_path / "captions_pooled.csv").write_text("file,caption\n")
    with pytest.raises(ValueError, match="has no column 'path'; it has file, caption"):
        OfficialGrain(tmp_path)
