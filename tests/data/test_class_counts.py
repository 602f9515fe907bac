"""How often classes occur in training captions, and the groups that follow."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grain_jax.data.classification.class_counts import (
    FREQUENCIES,
    bind_counts,
    frequency_groups,
    group_indices,
    published_counts,
    read_counts,
)
from grain_jax.data.classification.folders import load_zero_shot


def no_note(text: str) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize(
    ("name", "classes", "unseen"),  # as published, and as counted in docs/evaluation.md
    [
        ("imagenet:cc3m_text_and_image", 1000, 433),
        ("imagenet:cc12m_text_and_image", 1000, 267),
        ("cub:cc3m_text_and_image", 200, 182),
        ("cub:cc12m_text", 200, 119),
        ("cub:cc12m_text_and_image", 200, 173),
        ("flowers102:cc12m_text_and_image", 102, 63),
        ("cifar10:cc3m_text", 10, 0),
    ],
)
def test_published_counts(name, classes, unseen):
    counts = read_counts(name)
    assert len(counts) == classes
    assert sum(count == 0 for count in counts.values()) == unseen
    assert list(frequency_groups(counts).values()).count("unseen") == unseen


def test_every_published_name_is_read():
    assert len(published_counts()) == 14 * 4
    for name in published_counts():
        assert all(isinstance(count, int) and count >= 0 for count in read_counts(name).values())


def test_halves_are_by_rank():
    counts = {"a": 0, "b": 1, "c": 7, "d": 7, "e": 50, "f": 900}
    groups = frequency_groups(counts)
    assert groups == {
        **{"a": "unseen", "b": "rare", "c": "rare", "d": "rare"},
        **{"e": "frequent", "f": "frequent"},
    }
    assert group_indices(groups, ("f", "unknown", "a", "b")).tolist() == [2, -1, 0, 1]
    assert set(frequency_groups({"a": 0, "b": 0}).values()) == {"unseen"}


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 20), min_size=1))
def test_groups_are_in_the_order_of_counts(counts):
    groups = frequency_groups(counts)
    assert groups.keys() == counts.keys()
    order = [FREQUENCIES.index(groups[name]) for name in sorted(counts, key=counts.__getitem__)]
    assert order == sorted(order)
    sizes = [list(groups.values()).count(name) for name in FREQUENCIES]
    assert sizes[1] >= sizes[2]
    assert all((groups[name] == "unseen") == (count == 0) for name, count in counts.items())


def bound(counts, names, note=no_note):
    return bind_counts(counts, names, "counts.json", "birds", note, name_texts={})


def test_keys_are_bound_by_name_or_label():
    names = {"n01": "house wren", "n02": "Barn_owl"}
    assert bound({"House_Wren": 3, "n02": 0}, names) == {"house wren": 3, "Barn_owl": 0}


def test_classes_without_a_count_are_noted():
    notes: list[str] = []
    found = bound({"wren": 3, "barn swallow": 1}, {"a": "wren", "b": "barn owl"}, notes.append)
    assert found == {"wren": 3}
    (note,) = notes
    assert "1 of 2 classes have no count in counts.json ('barn owl' first; the nearest is" in note


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"wren": 3, "Wren": 1}, "counts class 'wren' more than once"),
        ({"eagle": 1}, "No key of 'counts.json' is a class of 'birds'"),
    ],
)
def test_what_cannot_be_bound_is_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        bound(counts, {"a": "wren", "b": "owl"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"wren": "3"}, "The count of 'wren' in .* is '3'; expected a whole number from 0"),
        ({"wren": -1}, "is -1; expected"),
        ({"wren": True}, "is True; expected"),
        ({}, "must hold an object"),
        (["wren"], "must hold an object"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    (tmp_path / "counts.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_counts(str(tmp_path / "counts.json"))


def test_a_file_in_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "counts.json").write_text('{"wren": 3}')
    assert read_counts("~/counts.json") == {"wren": 3}


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"no counts of that name .* such as 'cub:cc12m_text"):
        read_counts("cub:cc12m")


def test_a_folder_has_them_in_a_file_or_by_name(tmp_path):
    for label in ("airplane", "cat"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / label / "a.png")
    published = load_zero_shot(tmp_path, counts="cifar10:cc3m_text", note=no_note)
    assert published.counts.keys() == {"airplane", "cat"}
    assert published.text_files["counts"] == "cifar10:cc3m_text"
    (tmp_path / "counts.json").write_text('{"cat": 0, "airplane": 4}')
    found = load_zero_shot(tmp_path, note=no_note)
    assert found.counts == {"cat": 0, "airplane": 4}
    assert found.text_files["counts"] == str(tmp_path / "counts.json")
