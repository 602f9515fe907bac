"""Members of large JSON files: the values of the json library, at their places in the file."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.data.importers import InvalidRecordError, json_stream
from grain_jax.data.importers.json_stream import members, read_member

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream") / "file.json"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK", 5)  # so that values lie across blocks


@settings(max_examples=60, deadline=None)
@given(
    content=st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    indent=st.none() | st.integers(0, 2),
    as_ascii=st.booleans(),
    mark=st.booleans(),
)
def test_members_are_those_of_the_json_library(path, content, indent, as_ascii, mark) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=as_ascii)
    path.write_text(text, encoding="utf-8-sig" if mark else "utf-8", newline="")
    data = path.read_bytes()
    found = [*members(path)]
    assert {m.key: m.value for m in found} == content
    for member in found:
        part = data[member.start : member.start + member.size]
        assert json.loads(part) == member.value


@settings(max_examples=40, deadline=None)
@given(values=st.lists(VALUES, max_size=5), indent=st.none() | st.just(1))
def test_elements_of_a_list_come_one_by_one(path: Path, values: list, indent) -> None:
    path.write_text(json.dumps({"a": 1, "of": values, "z": []}, indent=indent))
    assert [m.value for m in members(path, ["of"]) if m.key == "of"] == values
    path.write_text(json.dumps(values, indent=indent))
    assert [(m.key, m.value) for m in members(path)] == [("", value) for value in values]


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=40)
    | st.text(alphabet='{}[]":,1ae \\u\n', max_size=30).map(lambda text: text.encode())
)
def test_anything_else_is_an_error_as_for_the_json_library(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        expected = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        expected = None
    if isinstance(expected, dict | list):
        list(members(path))
    else:
        with pytest.raises(ValueError, match=r"file\.json is not JSON that can be read: .* byte"):
            list(members(path))


def test_a_file_that_is_cut_off_is_located(path: Path) -> None:
    path.write_text('{"a": [1, 2], "b": {"c": ')
    with pytest.raises(ValueError, match=r"near byte 19\."):
        list(members(path))


def test_a_value_without_end_is_not_read_for_ever(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_MEMBER", 50)
    path.write_text('{"a": "' + "x" * 10_000)
    with pytest.raises(ValueError, match="Unterminated string"):
        list(members(path))


def test_an_object_with_a_key_twice_is_refused_where_it_is_read(path: Path) -> None:
    path.write_text('[{"id": 1, "id": 2}]')
    (member,) = members(path)
    with pytest.raises(InvalidRecordError, match=r'file\.json, byte 1: "id" is given twice'):
        read_member(path, member.start, member.size)
