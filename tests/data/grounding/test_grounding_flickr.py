"""Every mention with a box is a query; what has none is counted."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from grounding_files import HEIGHT, WIDTH, entities_of_flickr, entity, save_image, write_entities
from places import SHARED

from grain_jax.data.grounding.formats import load_grounding
from grain_jax.data.grounding.queries import GroundingSet
from grain_jax.data.importers.flickr30k_entities import Flickr30kEntities

SAMPLE = SHARED / "data" / "flickr30k_entities_sample.zip"
SIDES = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)


def load(root: Path, **options) -> GroundingSet:
    return load_grounding("flickr30k_entities", root, **options)


def one_image(root: Path, sentence: str, *entities: str, **options) -> GroundingSet:
    write_entities(root, "1", [sentence], list(entities), **options)
    if not (root / "images" / "1.jpg").exists():
        save_image(root / "images" / "1.jpg")
    return load(root)


def test_every_mention_is_a_query_with_all_boxes_of_its_chain(tmp_path):
    data = load(entities_of_flickr(tmp_path))
    assert [(data.images.ids[q.image], q.text) for q in data.queries] == [
        ("11", "A man"),
        ("11", "a red hat"),
        ("11", "A man"),  # said again, and asked again
        ("11", "two girls"),
        ("12", "A dog"),
    ]
    pixels = [(query.boxes_xyxy * SIDES).round(3).tolist() for query in data.queries]
    assert pixels[0] == pixels[2] == [[0, 0, 20, 20]]  # from 1, the last pixel in it
    assert pixels[1] == [[4, 0, 10, 4]]
    assert pixels[3] == [[20, 0, 30, 20], [30, 0, 40, 20]]
    assert data.left_out == {"not visual": 1, "without a box": 1}
    assert [len(boxes) for boxes in data.boxes] == [4, 1]
    assert data.shapes == ((HEIGHT, WIDTH), (HEIGHT, WIDTH))


def test_a_split_is_a_list_of_ids(tmp_path):
    root = entities_of_flickr(tmp_path)
    assert load(root, split="test").images.ids == ("12",)
    listed = tmp_path / "mine.txt"
    listed.write_text("12.jpg 11", encoding="utf-8")
    assert load(root, split_file=listed).images.ids == ("12", "11")
    with pytest.raises(ValueError, match=r"--split=val needs .*there are mine, test"):
        load(root, split="val")
    with pytest.raises(ValueError, match="--split and --split_file both name a list"):
        load(root, split="test", split_file=listed)
    listed.write_text("11 11", encoding="utf-8")
    with pytest.raises(ValueError, match="lists '11' more than once"):
        load(root, split_file=listed)


def test_boxes_outside_or_without_area_are_counted(tmp_path):
    sentence = "[/EN#1/people A] [/EN#2/people B] [/EN#3/people C] [/EN#4/people D]"
    data = one_image(
        tmp_path,
        sentence,
        entity("1", 31, 11, 60, 20),  # half of it beyond the right edge
        entity("2", 5, 8, 5, 7),  # ends above where it starts
        entity("3", 50, 5, 60, 9),
        entity("4", 5, 8, 5, 8),  # one pixel
    )
    assert [query.text for query in data.queries] == ["A", "D"]
    boxes = [(query.boxes_xyxy * SIDES).round(3).tolist() for query in data.queries]
    assert boxes == [[[30, 10, 40, 20]], [[4, 7, 5, 8]]]
    assert data.left_out == {"with a box of no area": 1, "with a box outside the image": 1}


def test_boxes_refer_to_the_upright_image(tmp_path):
    sideways = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}
    save_image(tmp_path / "images" / "1.jpg", size=(HEIGHT, WIDTH), **sideways)
    data = one_image(tmp_path, "[/EN#1/people A]", entity("1", 1, 1, 20, 20))
    assert data.shapes == ((HEIGHT, WIDTH),)
    assert (data.queries[0].boxes_xyxy * SIDES).tolist() == [[0, 0, 20, 20]]
    with pytest.raises(ValueError, match="upright image, after its EXIF"):
        one_image(tmp_path, "[/EN#1/people A]", entity("1", 1, 1, 9, 9), size=(HEIGHT, WIDTH))


def test_what_cannot_be_read_names_itself(tmp_path):
    with pytest.raises(ValueError, match="needs Annotations/"):
        load(tmp_path)
    root = entities_of_flickr(tmp_path / "set")
    (root / "images" / "12.jpg").unlink()
    with pytest.raises(ValueError, match=r"12\.jpg.*--images"):
        load(root)
    with pytest.raises(ValueError, match=r"--images=.*is not a folder"):
        load(root, images=tmp_path / "none")
    (root / "Annotations" / "11.xml").write_text("<annotation>", encoding="utf-8")
    with pytest.raises(ValueError, match=r"11\.xml: not an annotation"):
        load(root)
    with pytest.raises(ValueError, match="No text has a box in its image: 1 without a box"):
        one_image(tmp_path / "empty", "[/EN#1/people A]", entity("1"))


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is not there")
def test_the_published_sample_has_348_queries_and_training_117_descriptions(tmp_path):
    with zipfile.ZipFile(SAMPLE) as packed:
        packed.extractall(tmp_path)
    root = tmp_path / "flickr30k_entities_sample"
    data = load(root)
    assert (len(data.images), len(data.queries)) == (24, 348)
    assert data.left_out == {"not visual": 19, "without a box": 22}
    assert sum(len(query.boxes_xyxy) > 1 for query in data.queries) == 48
    # The importer of training data keeps one phrase of each chain: no other reason takes any.
    importer = Flickr30kEntities(root)
    regions = [region for i in range(len(importer)) for region in importer[i].regions]
    kept = {(i, r.description) for i in range(len(importer)) for r in importer[i].regions}
    assert (len(regions), len(kept)) == (160, 117)
    asked = {(data.images.ids[query.image], query.text) for query in data.queries}
    assert {(importer[i].id, text) for i, text in kept} <= asked
