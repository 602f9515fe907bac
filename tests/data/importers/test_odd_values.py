"""Annotation files that are JSON, with values of any kind where others are expected."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.data.importers import ImportedImage, Importer, InvalidRecordError
from grain_jax.data.importers.coco import Coco
from grain_jax.data.importers.official_grain import OfficialGrain
from grain_jax.data.importers.refcoco import RefCoco

SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**70, 10**400, 1e300, float("nan"), float("inf")])
    | st.sampled_from(["", "1", "train", "\ud800", "a\0b"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(st.just("id"), SCALARS)


def entries(*names: str) -> st.SearchStrategy[list[Any]]:
    """Lists of objects with some of these keys, and of other values."""
    entry = st.dictionaries(st.sampled_from(names), VALUES)
    return st.lists(entry | VALUES, max_size=5)


IMAGES = entries("id", "file_name", "width", "height")
ANNOTATIONS = entries("id", "image_id", "caption", "bbox", "category_id", "iscrowd")
REFS = entries("image_id", "ann_id", "split", "sentences")
BOXES = entries("bbox", "score", "description")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd")


def read_all(make: Callable[[], Importer]) -> None:
    """Every record is an image, or an `InvalidRecordError`; the file as a whole may be refused."""
    try:
        importer = make()
    except ValueError:
        return
    importer.checksum(0, len(importer))
    for index in range(len(importer)):
        try:
            item = importer[index]
        except InvalidRecordError:
            continue
        assert isinstance(item, ImportedImage)
        assert all(isinstance(r.description, str) for r in item.regions)
        assert all(isinstance(v, float) for r in item.regions for v in r.box_xyxy)


@settings(max_examples=150, deadline=None)
@given(images=IMAGES, annotations=ANNOTATIONS, categories=entries("id", "name"))
def test_coco(folder: Path, images, annotations, categories) -> None:
    good = {"id": 1, "file_name": "a.png", "width": 4, "height": 4}
    content = {"annotations": annotations, "images": [good, *images], "categories": categories}
    path = folder / "instances_x.json"
    path.write_text(json.dumps(content))
    read_all(lambda: Coco(path))


@settings(max_examples=150, deadline=None)
@given(refs=REFS, images=IMAGES, annotations=ANNOTATIONS)
def test_refcoco(folder: Path, refs, images, annotations) -> None:
    good = {"image_id": 1, "ann_id": 1, "split": "train", "sentences": ["x"]}
    (folder / "refs.p").write_bytes(pickle.dumps([good, *refs]))
    instances = {"images": images, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(instances))
    read_all(lambda: RefCoco(folder / "refs.p", split="train"))


@settings(max_examples=100, deadline=None)
@given(boxes=BOXES | VALUES, caption=VALUES)
def test_official_grain(folder: Path, boxes, caption) -> None:
    (folder / "captions_pooled.csv").write_text("path,caption\na.png,x\n")
    (folder / "captions_x_pooled.json").write_text(json.dumps({"a.png": caption}))
    (folder / "bboxes_x_pooled.json").write_text(json.dumps({"a.png": boxes}))
    read_all(lambda: OfficialGrain(folder))
