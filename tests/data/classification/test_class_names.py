import unicodedata

import pytest

from grain_jax.data.classification.class_names import (
    bind_by_words,
    clean_names,
    name_key,
    names_of_labels,
)
from grain_jax.data.classification.class_texts import bind_descriptions, check_templates

# EuroSAT's folders, and its classes as CLIP_benchmark (in the order of the folders) and CLIP's
# `prompts.md` (in another order) name them.
FOLDERS = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture"),
    *("PermanentCrop", "Residential", "River", "SeaLake"),
)
IN_ORDER = (
    *("annual crop land", "forest", "brushland or shrubland", "highway or road"),
    *("industrial buildings or commercial buildings", "pasture land", "permanent crop land"),
    *("residential buildings or homes or apartments", "river", "lake or sea"),
)
EXPECTED = dict(zip(FOLDERS, IN_ORDER, strict=True))
IN_PROMPTS = [IN_ORDER[k] for k in (1, 6, 7, 8, 5, 9, 2, 0, 4, 3)]
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def bind(labels, given, binding="name"):
    notes: list[str] = []
    return names_of_labels(labels, given, "list", notes.append, binding=binding), notes


def refused(labels, given, message, binding="name"):
    with pytest.raises(ValueError, match=message):
        bind(labels, given, binding)


def test_published_names_of_eurosat_are_bound_with_elimination():
    for given in (list(IN_ORDER), IN_PROMPTS):
        names, notes = bind(FOLDERS, given, "elimination")
        assert names == EXPECTED
        assert "'SeaLake' is 'lake or sea'" in notes[0]
        assert "'HerbaceousVegetation' is 'brushland or shrubland'" in notes[0]
        refused(FOLDERS, given, "'HerbaceousVegetation': 'brushland or shrubland'.")
        refused(FOLDERS, given, '"HerbaceousVegetation": "brushland or shrubland"}')
        refused(FOLDERS, given, "--classes_by=elimination")
    names, notes = bind(FOLDERS, list(IN_ORDER), "order")
    assert names == EXPECTED
    assert "'AnnualCrop' is 'annual crop land'" in notes[0]
    refused(FOLDERS, IN_PROMPTS, "not in the order of the labels: 'AnnualCrop'|'Forest'", "order")


def test_a_wrong_list_is_not_bound_by_elimination():
    refused(["cat", "dog", "fox"], ["cat", "dog", "horse"], "'fox' has no class name")
    refused(["cat", "dog", "fox"], ["cat", "horse", "cow"], "'dog' has no", "elimination")
    refused(["cat", "dog"], ["dog", "cat"], "not in the order .*'cat' would be 'dog'", "order")
    refused(["cat", "dog"], ["cat", "dog", "fox"], "3 names for 2 labels", "order")
    refused(["cat", "dog"], [["cat"], ["dog", "puppy"]], "It lists several; choose one")
    refused(["cat", "dog"], {"pets": ["cat", "dog"]}, "pick one entry with .*: pets.$")
    refused(["cat", "dog"], {"cat": "x", "dog": "y"}, "only where they are a list", "order")
    with pytest.raises(ValueError, match="no file of them was given"):
        names_of_labels(["cat", "dog"], None, "", print, binding="elimination")
    refused(["cat"], ["cat"], "Unknown binding 'guess'", "guess")


def test_words_bind_only_one_to_one():
    labels = ("001.Black_footed_Albatross", "sea_horse", "horse", "crop")
    names = ("black-footed albatross", "horse", "sea horse (fish)", "annual crop", "permanent crop")
    assert bind_by_words(labels, names) == {
        "001.Black_footed_Albatross": "black-footed albatross",
        "horse": "horse",
        "sea_horse": "sea horse (fish)",
    }
    # Of a longer list, names must be equal: "crow" may not be the "hooded crow" of many birds.
    refused(["crow", "jay"], ["hooded crow", "jay", "owl"], "'crow': 'hooded crow'")
    assert bind(["crow", "jay"], ["hooded crow", "jay"])[0]["crow"] == "hooded crow"


def test_numeric_labels_are_ordered_by_number():
    labels = [str(k) for k in range(12)]
    names, _ = bind(labels, [f"kind {chr(97 + k)}" for k in range(12)], "order")
    assert names["2"] == "kind c"
    assert names["10"] == "kind k"


def test_names_are_compared_in_composed_form():
    assert name_key(NFD) == name_key(NFC.upper()) == NFC
    assert bind([NFD, "dog"], {NFC: "coffee house", "dog": "dog"})[0][NFD] == "coffee house"
    assert bind([NFD, "dog"], [NFC, "dog"])[0][NFD] == NFC
    found = bind_descriptions({NFC: ["x"]}, {NFD: NFD, "b": "b"}, "d", "set", lambda _: None)
    assert found == {NFD: ("x",)}
    refused([NFC, NFD], {NFC: "x", "dog": "y"}, "both")


def test_an_exact_key_is_preferred_to_a_similar_one():
    assert bind(["a", "A"], {"A": "capital", "a": "small"})[0] == {"a": "small", "A": "capital"}
    refused(["a b"], {"A B": "x", "a_B": "y"}, "could be 'A B' or 'a_B'")
    assert bind(["AnnualCrop"], {"annual crop": "x"})[0] == {"AnnualCrop": "x"}
    refused(["cat", "x"], {"cats": "cat", "y": "z"}, "'cat': 'cats'")


def test_cleaned_names_are_noted():
    notes: list[str] = []
    given = {"a": "salt &amp; pepper", "b": "Joe&#39;s_bar", "c": "AT&T; R&D", "d": NFD}
    assert clean_names(given, notes.append, keep=False) == {
        "a": "salt & pepper",
        "b": "Joe's bar",
        "c": "AT&T; R&D",
        "d": NFC,
    }
    assert "2 of 4 class names" in notes[0]
    kept = clean_names(given, notes.append, keep=True)
    assert (kept["b"], kept["d"]) == ("Joe&#39;s_bar", NFC)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cat": "furry"}, "'cat' .* list of strings"),
        ({"cat": [1]}, "list of strings"),
        ({"cat": [["furry"]]}, "list of strings"),
        ({"cat": None}, "list of strings"),
        ({"cat": {"coarse": "x", "description": "y"}}, "list of strings; pick one entry"),
        ({"sets": {"cat": ["furry"]}}, "pick one entry with .*: sets"),
        ([], "must hold an object"),
        ({}, "No key"),
    ],
)
def test_descriptions_of_another_structure_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        bind_descriptions(given, {"cat": "cat", "dog": "dog"}, "d", "set", lambda _: None)


def test_descriptions_are_of_one_class():
    names = {"n1": "crane", "crane": "machine"}
    with pytest.raises(ValueError, match="'crane' of 'd' could be class 'crane' or 'machine'"):
        bind_descriptions({"crane": ["tall"]}, names, "d", "set", lambda _: None)
    notes: list[str] = []
    given = {"annual crop land": ["x"], "forest": ["y"]}
    labels = {"AnnualCrop": "AnnualCrop", "Forest": "Forest"}
    assert bind_descriptions(given, labels, "d", "set", notes.append) == {"Forest": ("y",)}
    assert "'AnnualCrop': 'annual crop land'. Where the same class" in notes[1]


def test_a_shared_name_describes_all_of_its_classes():
    names = {"n1": "shades (n1)", "n2": "shades (n2)"}
    texts = dict.fromkeys(names.values(), "shades")

    def described(given):
        return bind_descriptions(given, names, "d", "set", lambda _: None, name_texts=texts)

    assert described({"Shades": ["dark"]}) == dict.fromkeys(names.values(), ("dark",))
    assert described({"n2": ["dark"]}) == {"shades (n2)": ("dark",)}
    with pytest.raises(ValueError, match="more than once"):
        described({"n2": ["dark"], "shades": ["cool"]})


def test_texts_of_single_classes_are_refused_as_templates():
    with pytest.raises(ValueError, match=r"pick one entry .*: cat.* --descriptions"):
        check_templates({"cat": ["a furry cat"]}, "t.json")
    with pytest.raises(ValueError, match="exactly one"):
        check_templates(["a {c} and a {}"], "t.json")
