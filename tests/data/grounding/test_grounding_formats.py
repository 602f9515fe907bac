"""RefCOCO in JSON, COCO by class name, FG-OVD and JSON lines as grounding queries."""

import json
from pathlib import Path

import numpy as np
import pytest
from grounding_files import HEIGHT, WIDTH, annotation, coco_image, save_image, write_json

from grain_jax.data.grounding.formats import FORMATS, load_grounding
from grain_jax.data.grounding.queries import GroundingSet

SIDES = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)


def pixels(boxes: np.ndarray) -> list[list[float]]:
    return (boxes * SIDES).round(3).tolist()


def asked(data: GroundingSet) -> list[tuple[str, str, list[list[float]]]]:
    return [(data.images.ids[q.image], q.text, pixels(q.boxes_xyxy)) for q in data.queries]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / "images" / name)
    return tmp_path


INSTANCES = {
    "images": [coco_image(5, "a.jpg"), coco_image(6, "b.jpg")],
    "annotations": [
        annotation(50, 5, 1, [0, 0, 10, 10]),
        annotation(51, 5, 1, [10, 0, 10, 20]),
        annotation(52, 5, 2, [20, 0, 20, 20]),
        annotation(53, 5, 2, [0, 0, 40, 20], iscrowd=1),
        annotation(60, 6, 2, [0, 5, 40, 10]),
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "potted_plant"}],
}
REFS = [
    {"image_id": 5, "ann_id": 51, "ref_id": 1, "split": "val", "sentences": [
        {"sent": "right cat", "raw": "Right cat!"}, {"sent": "cat by plant"}]},
    {"image_id": 6, "ann_id": 60, "ref_id": 2, "split": "testA", "sentences": [{"sent": "plant"}]},
]  # fmt: skip
EXPECTED = [("5", "right cat", [[10, 0, 20, 20]]), ("5", "cat by plant", [[10, 0, 20, 20]])]


def test_expressions_of_a_list_take_boxes_from_the_instances(folder):
    write_json(folder / "instances.json", INSTANCES)
    write_json(folder / "refs(unc).json", REFS)
    data = load_grounding("refcoco", folder, split="val")
    assert asked(data) == EXPECTED
    assert len(data.boxes[0]) == 3  # every annotated box but the crowd, whether referred to or not
    assert data.boxes_are == "every annotated box of the image"
    with pytest.raises(ValueError, match="no expression of --split=testB; it has testA, val"):
        load_grounding("refcoco", folder, split="testB")
    with pytest.raises(ValueError, match="has expressions of testA, val; choose"):
        load_grounding("refcoco", folder)


def test_an_expression_of_a_crowd_is_counted_and_left_out(folder):
    write_json(folder / "instances.json", INSTANCES)
    crowd = {"image_id": 5, "ann_id": 53, "ref_id": 3, "split": "val",
             "sentences": [{"sent": "all plants"}, {"sent": "plants"}]}  # fmt: skip
    write_json(folder / "refs(unc).json", [crowd, *REFS])
    data = load_grounding("refcoco", folder, split="val")
    assert asked(data) == EXPECTED
    assert data.left_out == {"of a crowd region": 2}
    gone = [REFS[0] | {"ann_id": 99}]
    write_json(folder / "refs(unc).json", gone)
    with pytest.raises(
        ValueError, match=r"no box of annotation 99\. instances\.json beside the file does not"
    ):
        load_grounding("refcoco", folder)


def test_rows_with_their_own_annotation_ignore_the_ambiguous_bbox(folder):
    info = json.dumps(coco_image(5, "a.jpg"))
    rows = [
        REFS[0] | {"bbox": [1, 2, 3, 4], "raw_image_info": info,
                   "raw_anns": json.dumps({"bbox": [10, 0, 10, 20]})}
    ]  # fmt: skip
    file = folder / "refcoco.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load_grounding("refcoco", file, split="validation")
    assert asked(data) == EXPECTED
    assert data.boxes_are == "the boxes of the image's queries only"
    file.write_text(json.dumps(rows[0] | {"raw_anns": None}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"refcoco\.jsonl:1: no box of annotation 51.*corners"):
        load_grounding("refcoco", file)


def test_an_image_for_every_expression(folder):
    listed = [
        coco_image(i, "a.jpg", original_id=5, caption=text, dataset_name="refcoco")
        for i, text in enumerate(("right cat", "cat by plant"))
    ]
    objects = [annotation(i, i, 1, [10, 0, 10, 20]) for i in range(2)]
    content = {"images": listed, "annotations": objects, "categories": []}
    write_json(folder / "finetune_refcoco_val.json", content)
    write_json(folder / "finetune_refcoco_testA.json", INSTANCES)
    data = load_grounding("refcoco", folder, split="val")
    assert asked(data) == EXPECTED
    assert [len(boxes) for boxes in data.boxes] == [1]
    write_json(folder / "instances.json", INSTANCES)
    assert [len(b) for b in load_grounding("refcoco", folder, split="val").boxes] == [3]
    with pytest.raises(ValueError, match="needs 'caption', the expression, and 'original_id'"):
        load_grounding("refcoco", folder, split="testA")


def test_a_pickle_is_refused(folder):
    write_json(folder / "instances.json", INSTANCES)
    (folder / "refs(unc).p").write_bytes(b"\x80\x04N.")
    for given in (folder, folder / "refs(unc).p"):
        with pytest.raises(ValueError, match=r"pickle, which can run code.*in JSON"):
            load_grounding("refcoco", given, split="val")


def test_coco_asks_for_each_class_of_an_image(folder):
    write_json(folder / "annotations" / "instances_val2017.json", INSTANCES)
    data = load_grounding("coco", folder, split="val2017", images=folder / "images")
    assert asked(data) == [
        ("5", "cat", [[0, 0, 10, 10], [10, 0, 20, 20]]),
        ("5", "potted plant", [[20, 0, 40, 20]]),
        ("6", "potted plant", [[0, 5, 40, 15]]),
    ]
    assert data.left_out == {"crowd regions": 1}
    with pytest.raises(ValueError, match="has none of instances_test"):
        load_grounding("coco", folder, split="test")
    orphan = INSTANCES | {"images": INSTANCES["images"][:1]}
    write_json(folder / "instances_orphan.json", orphan)
    with pytest.raises(ValueError, match="annotations of image 6, which it does not list"):
        load_grounding("coco", folder / "instances_orphan.json")


def test_fg_ovd_has_wrong_captions(folder):
    names = ("a red cup", "a blue cup", "a green cup", "a wooden chair")
    content = {
        "images": [coco_image(5, "a.jpg"), coco_image(6, "b.jpg")],
        "annotations": [
            annotation(1, 5, 0, [0, 0, 10, 10], neg_category_ids=[1, 2]),
            annotation(2, 5, 0, [20, 0, 10, 10], neg_category_ids=[1, 2]),
            annotation(3, 6, 3, [0, 0, 40, 20], neg_category_ids=[2]),
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    path = write_json(folder / "1_attributes.json", content)
    data = load_grounding("fg_ovd", folder, split="1_attributes")
    assert asked(data) == [
        ("5", "a red cup", [[0, 0, 10, 10], [20, 0, 30, 10]]),
        ("6", "a wooden chair", [[0, 0, 40, 20]]),
    ]
    assert [q.negatives for q in data.queries] == [("a blue cup", "a green cup"), ("a green cup",)]
    two = load_grounding("fg_ovd", path, negatives=2)
    assert [query.text for query in two.queries] == ["a red cup"]
    assert two.left_out == {"with fewer than 2 wrong captions": 1}
    with pytest.raises(ValueError, match="--negatives counts wrong captions of fg_ovd"):
        load_grounding("coco", path, negatives=2)
    write_json(path, content | {"annotations": [annotation(1, 5, 0, [0, 0, 9, 9])]})
    with pytest.raises(ValueError, match="annotation 1 has no 'neg_category_ids'"):
        load_grounding("fg_ovd", path)


def test_json_lines_keep_repeated_queries_and_group_regions(folder):
    box, other = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    lines = [
        {"image": "a.jpg", "queries": [{"text": "cat", "boxes": [box, other]},
                                       {"text": "cat", "boxes": [other]}], "boxes": [[0, 0, 1, 1]]},
        {"image": "b.jpg", "regions": [{"bbox": box, "description": "dog"},
                                       {"bbox": other, "description": "dog"}]},
    ]  # fmt: skip
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = load_grounding("jsonl", folder, split="mine", images=folder / "images")
    assert asked(data) == [
        ("a.jpg", "cat", [[0, 0, 20, 20], [20, 0, 40, 20]]),
        ("a.jpg", "cat", [[20, 0, 40, 20]]),
        ("b.jpg", "dog", [[0, 0, 20, 20], [20, 0, 40, 20]]),
    ]
    assert [len(boxes) for boxes in data.boxes] == [3, 2]
    for wrong, message in (
        ({"image": "a.jpg", "queries": [{"text": "cat", "box": box}]}, "'box' is none of"),
        ({"image": "a.jpg", "queries": [{"text": "cat", "boxes": [[1, 2]]}]}, "must be a list of"),
        ({"image": "a.jpg", "queries": [], "captions": ["x"]}, "'captions' is not read"),
    ):
        path.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(ValueError, match=rf"mine\.jsonl:1: .*{message}"):
            load_grounding("jsonl", path, images=folder / "images")


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"flickr30k_entities"}))
def test_a_list_of_ids_is_refused_where_it_says_nothing(name, folder):
    path: Path = write_json(folder / "x.json", INSTANCES)
    with pytest.raises(ValueError, match="--split_file lists images of Flickr30k"):
        load_grounding(name, path, split_file=path)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"flickr30k_entities"}))
def test_a_split_that_would_change_nothing_is_refused(name, tmp_path):
    path = write_json(tmp_path / "finetune_refcoco_val.json", INSTANCES)
    message = "one split, which its name says" if name == "refcoco" else "--split=testA chooses"
    with pytest.raises(ValueError, match=message):
        load_grounding(name, path, split="testA")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_is_not_there_or_of_another_kind_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="--data="):
        load_grounding(name, tmp_path / "none")
    other = write_json(tmp_path / "other.json", {"words": [1]})
    with pytest.raises(ValueError, match="other"):
        load_grounding(name, other)
