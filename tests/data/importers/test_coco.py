"""COCO's annotation files: what is joined, left out, counted and refused."""

import json
from pathlib import Path

import pytest
from tiny_collections import BOX_XYXY, DESCRIPTION, NAMES, coco_files, replace_in, write_images

from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.checks import DatasetStatistics
from grain_jax.data.importers import InvalidRecordError
from grain_jax.data.importers.coco import Coco, find_files


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    write_images(tmp_path / "images")
    return coco_files(tmp_path)


def built(folder: Path, source: Path, **changes) -> DatasetStatistics:
    spec = DatasetBuildSpec("coco", source, folder / "images", folder / "out", **changes)
    return build_split(spec, workers=1)


def with_annotations(path: Path, *annotations: dict) -> None:
    content = json.loads(path.read_text())
    content["annotations"] += annotations
    path.write_text(json.dumps(content))


def test_instances_alone_have_boxes_and_no_captions(files, tmp_path: Path) -> None:
    item = Coco(files[1])[1]
    assert (item.id, item.captions, item.size) == ("101", (), (40, 20))
    assert item.regions[0].box_xyxy == tuple(map(float, BOX_XYXY))
    assert item.regions[0].description == DESCRIPTION
    statistics = built(tmp_path, files[1], captions_from_regions=True)
    assert (statistics.images, statistics.captions_from_regions) == (1, 1)
    assert statistics.dropped_images == {"no caption": 2}


def test_crowd_regions_are_left_out_and_counted(files, tmp_path: Path) -> None:
    assert built(tmp_path, tmp_path).dropped_regions == {"crowd region": 1}


def test_a_subset_is_chosen_by_the_name_of_the_split(files, tmp_path: Path) -> None:
    coco_files(tmp_path, "val2017")
    assert len(Coco(tmp_path, split="train")) == 3
    assert len(Coco(tmp_path, split="x", subset="val2017")) == 3
    with pytest.raises(ValueError, match=r"--split=validation names no part .* train2017, val2017"):
        Coco(tmp_path, split="validation")
    with pytest.raises(ValueError, match="--subset=val names no part"):
        Coco(tmp_path, split="train", subset="val")
    with pytest.raises(ValueError, match="--subset=train chooses among the files of a folder"):
        Coco(files[0], subset="train")
    with pytest.raises(ValueError, match=r"has no captions_\*\.json and no instances_"):
        Coco(tmp_path / "images")


def test_a_subset_does_not_take_files_of_another(files, tmp_path: Path) -> None:
    for subset in ("val", "my_val"):
        coco_files(tmp_path, subset)
    folder = files[0].parent
    read = find_files(tmp_path, "validation", "val")
    assert read == [folder / "captions_val.json", folder / "instances_val.json"]
    assert find_files(tmp_path, "validation", "my_val")[0].name == "captions_my_val.json"


@pytest.mark.parametrize("name", [None, 3, ["bird"]])
def test_a_category_without_a_name_describes_no_region(files, tmp_path: Path, name) -> None:
    content = json.loads(files[1].read_text())
    content["categories"].append({"id": 9, "name": name})
    files[1].write_text(json.dumps(content))
    with_annotations(files[1], {"id": 7, "image_id": 101, "category_id": 9, "bbox": [1, 2, 3, 4]})
    statistics = built(tmp_path, tmp_path)
    assert statistics.dropped_regions == {"crowd region": 1, "unknown category": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [1, 2, 3]}, "box is not [x, y, width, height]"),
        ({"bbox": [1, 2, "3", 4]}, "box is not [x, y, width, height]"),
        ({"bbox": [1, 2, float("nan"), 4]}, "box or score not finite"),
        ({"bbox": [1, 2, 0, 4]}, "empty box"),
        ({"bbox": [30, 2, 20, 4]}, "box out of range"),
        ({"bbox": [0.1, 0.1, 0.5, 0.5]}, "box within one pixel"),
        ({"category_id": 99}, "unknown category"),
        ({"category_id": [3]}, "unknown category"),
    ],
)
def test_a_bad_region_is_counted_by_its_reason(files, tmp_path: Path, change, reason) -> None:
    region = {"id": 7, "image_id": 101, "category_id": 3, "bbox": [1, 2, 3, 4], **change}
    with_annotations(files[1], region)
    statistics = built(tmp_path, tmp_path)
    assert statistics.dropped_regions == {"crowd region": 1, reason: 1}
    assert statistics.regions == 1


def test_corners_given_for_sides_are_told(files, tmp_path: Path) -> None:
    region = {"id": 7, "image_id": 101, "category_id": 3, "bbox": [25, 5, 38, 18]}
    with_annotations(files[1], region)
    assert built(tmp_path, tmp_path).misread_boxes == {"x0, y0, x1, y1": 1}


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"id": 0, "image_id": 100, "caption": "again"}, "annotations with the id of another"),
        ({"id": 70, "image_id": 999, "caption": "x"}, "annotations of images that are not listed"),
        ({"id": 71, "caption": "x"}, "annotations without 'image_id'"),
        ({"id": 72, "image_id": [1], "caption": "x"}, "annotations without 'image_id'"),
    ],
)
def test_what_belongs_to_no_image_is_a_record_that_says_so(files, annotation, message) -> None:
    with_annotations(files[0], annotation)
    importer = Coco(files[0])
    assert len(importer) == 4
    with pytest.raises(InvalidRecordError, match=f"^1 {message}, first: "):
        importer[0]  # the first, so that a build with --on-error=raise stops at once
    assert [importer[i].image for i in (1, 2, 3)] == list(NAMES)


def test_a_caption_that_is_not_a_string_costs_only_itself(files, tmp_path: Path) -> None:
    replace_in(files[0], '"a bird on a branch"', "3")
    item = Coco(files[0])[0]
    assert ([c.text for c in item.captions], item.left_out) == (
        ["a red bird"],
        ("unreadable annotation",),
    )


def test_a_stored_size_of_another_shape_is_refused(files, tmp_path: Path) -> None:
    replace_in(files[1], '"width": 40', '"width": 20')
    with pytest.raises(ValueError, match=r"20 x 20 pixels .* 40 x 20, of another shape"):
        built(tmp_path, files[1], captions_from_regions=True)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, message in (
        ("[]", "lists no images"),
        ("{}", "lists no images"),
        ('{"images": [', r"x\.json is not JSON that can be read"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Coco(path)
