"""Files of texts that only some methods take, in each of their forms."""

import json

import pytest
from PIL import Image

from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.further_texts import read_further_texts
from grain_jax.evaluation.details import describe_set
from grain_jax.zero_shot.scorers import class_texts

NAMES = {"0": "barn owl", "1": "wren", "2": "jay"}


@pytest.fixture
def read(tmp_path):
    """What is read from a file of a kind with this content, and the notes on it."""

    def read_kind(kind: str, content):
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        notes: list[str] = []
        found = read_further_texts({kind: str(path)}, NAMES, "birds", notes.append, name_texts={})
        return found, notes

    return read_kind


def test_texts_of_classes_are_bound_by_name(read):
    found, notes = read("cupl", {"Barn_Owl": ["An owl.", " "], "1": ["A wren."]})
    assert found.of_classes["cupl"] == {"barn owl": ("An owl.",), "wren": ("A wren.",)}
    assert "1 of 3 classes have no description ('jay') in " in notes[0]
    assert "cupl.json', and are scored by their name" in notes[0]


def test_synonyms_stand_in_falling_order_of_their_captions(read):
    found, _ = read("synonyms", {"wren": {"wren": 3, "jenny": 40, "king": 0}, "jay": {"jay": 0}})
    assert found.of_classes["synonyms"] == {"wren": ("jenny", "wren"), "jay": ()}


def test_contexts_and_opposites_are_of_no_class(read):
    found, _ = read("contexts", {"light": ["", "at night"], "view": ["close up"]})
    assert found.shared == {"contexts": (("", "at night"), ("close up",))}
    found, _ = read("reject", [["on land", "on water "]])
    assert found.shared == {"reject": (("on land", "on water"),)}


NESTED = {"barn owl": {"wren": ["large"], "jay": ["brown"]}, "1": {"Barn Owl": ["small"]}}
EXPECTED = {"barn owl": {"wren": ("large",), "jay": ("brown",)}, "wren": {"barn owl": ("small",)}}


def test_pairs_are_bound_on_both_sides(read):
    found, notes = read("pairs", {**NESTED, "eagle": {"jay": ["huge"]}})
    assert found.pairs == EXPECTED
    assert "1 of 6 keys of the pairs are of other classes ('eagle' first)" in notes[0]


def test_pairs_are_read_in_the_published_layout_too(read):
    flat = {
        "0_1": {
            "classes": [0, 1],
            "prompt_pairs": [
                {"attr_type": "size", "prompt_pair": ["large", "small"]},
                {"attr_type": "tail", "prompt_pair": ["long", "short"]},
            ],
        }
    }
    found, _ = read("pairs", flat)
    assert found.pairs == {
        "barn owl": {"wren": ("large", "long")},
        "wren": {"barn owl": ("small", "short")},
    }


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("synonyms", {"wren": ["jenny"]}, "must hold {class: {synonym: number"),
        ("synonyms", {"wren": {"jenny": "many"}}, "'jenny' of 'wren' .* not 'many'"),
        ("contexts", ["at night"], "must hold {context: .suffix"),
        ("contexts", {"light": "at night"}, "must hold {context: .suffix"),
        ("reject", [["on land"]], "not .'on land'. among them"),
        ("reject", {"a": "b"}, "must hold ..text, opposite"),
        ("accept", [["a", "a"]], "against itself"),
        ("pairs", [["wren", "jay"]], "must hold {class: {other"),
        ("pairs", {"wren": {"jay": "small"}}, "'wren' against 'jay' .* list of strings"),
        ("pairs", {"eagle": {"kite": ["huge"]}}, "No pair .* positions in a list"),
        ("pairs", {"wren": {"jay": ["a"]}, "1": {"jay": ["b"]}}, "from 'jay' more than once"),
        ("pairs", {"0_1": {"classes": [0], "prompt_pairs": []}}, "needs two"),
        ("cupl", {"wren": "A wren."}, "must be a list of strings"),
    ],
)
def test_another_structure_is_named(read, kind, content, message):
    with pytest.raises(ValueError, match=message):
        read(kind, content)


def test_a_set_has_them_with_their_files(tmp_path):
    for name in ("owl", "wren"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name / "a.png")
    contents = {
        "pairs": {"owl": {"wren": ["large", "large"]}},
        "contexts": {"light": ["", "at night"]},
        "cupl": {"owl": ["An owl."]},
    }
    files = {}
    for kind, content in contents.items():
        files[kind] = str(tmp_path / f"{kind}.json")
        (tmp_path / f"{kind}.json").write_text(json.dumps(content), encoding="utf-8")
    found = load_zero_shot(tmp_path / "images", further=files, note=lambda text: None)
    texts = class_texts(found)
    assert texts.pairs == {(0, 1): ("large",)}
    assert texts.shared == {"contexts": (("", "at night"),)}
    assert texts.further == {"cupl": (("An owl.",), ())}
    details = describe_set(found)
    for kind, count in (("pairs", 2), ("contexts", 2), ("cupl", 1)):
        assert details[kind]["count"] == count
        assert details[kind]["file"] == files[kind]
        assert len(details[kind]["sha256"]) == 64
