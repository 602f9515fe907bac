"""RefCOCO: expressions and their boxes, mirrors, and pickles that must not be run."""

import contextlib
import json
import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collections import BOX_XYXY, CAPTIONS, DESCRIPTION, NAMES, refcoco_files, replace_in

from grain_jax.data.importers import InvalidRecordError
from grain_jax.data.importers.refcoco import RefCoco
from grain_jax.data.importers.restricted_pickle import read_plain_pickle


@pytest.fixture
def refs(tmp_path: Path) -> Path:
    return refcoco_files(tmp_path)[0]


def check(importer: RefCoco) -> None:
    items = [importer[i] for i in range(len(importer))]
    assert [item.image for item in items] == list(NAMES)
    assert [region.description for region in items[0].regions] == list(CAPTIONS[0])
    (region,) = items[1].regions
    assert (region.description, region.box_xyxy) == (DESCRIPTION, BOX_XYXY)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int) -> None:
    refcoco_files(tmp_path, protocol)
    check(RefCoco(tmp_path, split="train"))


def test_texts_of_python_2_are_read(tmp_path: Path) -> None:
    # As Python 2 wrote the byte strings "split" and "gr\xc3\xbcn".
    data = b"(dp0\nS'split'\np1\nS'gr\\xc3\\xbcn'\np2\ns."
    (tmp_path / "x.p").write_bytes(data)
    assert read_plain_pickle(tmp_path / "x.p") == {"split": "gr\u00fcn"}


def test_mirrors_are_read(refs: Path) -> None:
    content = pickle.loads(refs.read_bytes())
    refs.unlink()
    refs.with_suffix(".json").write_text(json.dumps(content))
    check(RefCoco(refs.parent, split="train"))
    refs.with_suffix(".json").unlink()
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(content), refs.parent / "train.parquet")
    check(RefCoco(refs.parent, split="train"))


def test_the_split_is_that_of_the_expressions(refs: Path) -> None:
    assert [RefCoco(refs, subset="testA")[0].image] == [NAMES[0]]
    assert [RefCoco(refs, split="val")[0].image] == [NAMES[2]]
    with pytest.raises(ValueError, match="which has testA, train, val"):
        RefCoco(refs, split="validation")


class Dangerous:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("make", [Dangerous, Counter, lambda: {1, 2}, Path])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_names_code_is_refused(refs, make, protocol, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    refs.write_bytes(pickle.dumps([{"split": "train", "x": make()}], protocol))
    if make() == {1, 2} and protocol == 4:  # plain: Python's own sets
        assert read_plain_pickle(refs)[0]["x"] == {1, 2}
        return
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p is not a pickle of plain values .*whose"):
        RefCoco(refs, split="train")
    assert not (tmp_path / "ran").exists()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.binary(max_size=30).map(lambda b: b"\x80\x02]q\x00" + b + b"."))
def test_any_bytes_are_plain_values_or_an_error(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.p"
    path.write_bytes(data)
    try:
        value = read_plain_pickle(path)
    except ValueError as error:
        said = str(error)
    else:
        plain = (dict, list, tuple, str, bytes, bytearray, int, float, bool, set, frozenset)
        assert value is None or isinstance(value, plain)
        return
    assert "any.p is not a pickle of plain values" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "1"}, "'image_id' must be a whole number"),
        ({"sentences": None}, "'sentences' must be a list"),
        ({"sentences": [{"tokens": []}]}, "a sentence has no text 'sent' or 'raw'"),
        ({"sentences": [{"sent": 3}]}, "a sentence has no text"),
    ],
)
def test_an_expression_that_cannot_be_read_is_located(refs: Path, change, message) -> None:
    content = pickle.loads(refs.read_bytes())
    content[1] |= change
    refs.write_bytes(pickle.dumps(content))
    importer = RefCoco(refs, split="train")
    assert len(importer) == 3
    with pytest.raises(InvalidRecordError, match=rf"expression 1: {message}"):
        importer[0]


def test_missing_annotations_and_images_are_named(refs: Path) -> None:
    instances = refs.parent / "instances.json"
    replace_in(instances, '"id": 50', '"id": 99')
    replace_in(instances, '"file_name": "c.png"', '"name": "c.png"')
    replace_in(instances, "[10, 5, 20, 15]", "[10, 5]")
    importer = RefCoco(refs, split="train")
    assert importer[0].left_out == ("no box of the expression",) * 2
    assert importer[1].left_out == ("box is not [x, y, width, height]",)
    with pytest.raises(InvalidRecordError, match=r"instances\.json: image 2 is not listed"):
        importer[2]


def test_a_folder_of_something_else_is_refused(refs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        RefCoco(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"needs instances\.json in"):
        RefCoco(tmp_path / "empty")
    (tmp_path / "refs(google).p").write_bytes(refs.read_bytes())
    with pytest.raises(ValueError, match=r"several files of expressions: refs\(google\)\.p, "):
        RefCoco(tmp_path)
    for content in ([], {}, [3]):
        refs.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"refs\(unc\)\.p (holds no|is not a list of) expr"):
            RefCoco(refs)


@pytest.mark.parametrize(
    "data",
    [
        b"]r" + (5 * 10**6).to_bytes(4, "little") + b".",  # kept as object 5,000,000
        b"]p5000000\n.",
        b"\x96" + (2**26).to_bytes(8, "little") + b"x.",  # a bytearray that is cut off
    ],
)
def test_a_small_pickle_takes_little_memory(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            assert read_plain_pickle(path) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
