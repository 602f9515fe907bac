import csv
import json

import numpy as np
import pytest
from PIL import Image

from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.set_names import folder_name
from grain_jax.data.image_files import MAX_IMAGE_BYTES
from grain_jax.zero_shot.scorers import class_texts


def save_image(path, value: int = 128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(path)


@pytest.fixture
def table(tmp_path):
    """labels.csv with wnid-like labels, as published sets have them."""
    root = tmp_path / "animals"
    rows = [("images/a.png", "n1"), ("images/b.png", "n2"), ("images/c.png", "n1")]
    for name, _ in rows:
        save_image(root / name)
    write_table(root, rows)
    (root / "classes.json").write_text(json.dumps({"n2": "sea_horse", "n1": "owl", "n3": "newt"}))
    return root


def write_table(root, rows, header=("file", "label")):
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.mark.parametrize("code", ["n0144353{}", "{}"])
def test_labels_that_are_codes_are_noted(tmp_path, code):
    labels = [code.format(k) for k in range(3)]
    for label in labels:
        (tmp_path / label).mkdir()
        save_image(tmp_path / label / "a.png")
    notes: list[str] = []
    load_zero_shot(tmp_path, note=notes.append)
    assert any(f"look like codes, as '{labels[0]}'" in note for note in notes)
    (tmp_path / "classes.json").write_text(json.dumps(dict(zip(labels, "abc", strict=True))))
    notes.clear()
    load_zero_shot(tmp_path, note=notes.append)
    assert not any("codes" in note for note in notes)


def test_names_are_bound_by_label_and_cleaned_with_a_note(table):
    notes: list[str] = []
    dataset = load_zero_shot(table, note=notes.append)
    assert dataset.name == "animals"
    assert set(dataset.class_names) == {"sea horse", "owl", "newt"}
    assert [dataset.source[i].label for i in range(3)] == ["owl", "sea horse", "owl"]
    assert dataset.source[0].image == (table / "images/a.png").read_bytes()
    assert any("'sea_horse' -> 'sea horse'" in note for note in notes)
    assert any("1 of 3 classes have no images" in note for note in notes)
    kept = load_zero_shot(table, keep_names=True, note=notes.append)
    assert "sea_horse" in kept.class_names


def test_a_set_is_named_after_the_given_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "caf\udce9").mkdir()
    assert folder_name(".") == tmp_path.name
    assert folder_name(tmp_path / "link") == "link"
    assert folder_name("/") == "root"
    assert folder_name("caf\udce9") == r"caf\xe9"


def test_subfolders_are_classes(tmp_path):
    for name in ("stop_sign/1.png", "stop_sign/deep/2.jpg", "tick/3.PNG", "tick/.hidden.png"):
        save_image(tmp_path / name)
    (tmp_path / "tick" / "notes.txt").write_text("not an image")
    dataset = load_zero_shot(tmp_path, default_templates=("one {}",), note=lambda _: None)
    assert dataset.class_names == ("stop sign", "tick")
    assert dataset.templates == ("one {}",)
    assert dataset.source.labels == ("stop sign", "stop sign", "tick")


def test_descriptions_are_bound_by_name_or_label_not_by_order(table, tmp_path):
    published = {"Newt": ["wet"], "elephant": ["grey"], "n1": ["big eyes ", ""], "Sea  Horse": []}
    (tmp_path / "d.json").write_text(json.dumps(published))
    notes: list[str] = []
    dataset = load_zero_shot(table, descriptions=str(tmp_path / "d.json"), note=notes.append)
    assert dataset.descriptions == {"newt": ("wet",), "owl": ("big eyes",), "sea horse": ()}
    assert any("1 of 3 classes have no description ('sea horse')" in n for n in notes)
    assert any("1 of 4 entries" in note for note in notes)


def test_templates_of_other_tools_and_of_one_entry_are_read(table, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"x": ["a photo of a {c}."], "y": ["{}"]}))
    dataset = load_zero_shot(table, templates=f"{tmp_path}/t.json#x", note=lambda _: None)
    assert dataset.templates == ("a photo of a {}.",)
    (tmp_path / "t.txt").write_text("a {}\n\nthe {}\n")
    dataset = load_zero_shot(table, templates=f"{tmp_path}/t.txt", note=lambda _: None)
    assert dataset.templates == ("a {}", "the {}")


def refused(root, message, **options):
    with pytest.raises(ValueError, match=message):
        load_zero_shot(root, note=lambda _: None, **options)


def test_labels_without_a_name_are_refused_by_name(table, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"n1": "owl"}))
    refused(table, "'n2' has no class name", classes=str(tmp_path / "c.json"))
    (tmp_path / "c.txt").write_text("owl\nn1\n")
    refused(table, "'n2' has no class name", classes=str(tmp_path / "c.txt"))


def test_a_list_of_names_is_matched_by_name(tmp_path):
    for name in ("sea_horse", "Owl"):
        save_image(tmp_path / "set" / name / "1.png")
    (tmp_path / "c.json").write_text(json.dumps(["newt", "owl", "Sea Horse"]))
    dataset = load_zero_shot(
        tmp_path / "set", classes=str(tmp_path / "c.json"), note=lambda _: None
    )
    assert sorted(dataset.class_names) == ["Sea Horse", "newt", "owl"]
    assert dataset.source.labels == ("owl", "Sea Horse")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"n1": "crane", "n2": "crane"}, "only 1 different names: 'crane'"),
        ({"n1": "sea_horse", "n2": "sea horse"}, "more than once"),
        ({"n1": "owl", "n2": ["a", "b"]}, "no name"),
        ({"n1": "owl", "n2": " "}, "no name"),
        (["n1", "n2", "N1"], "'n1' more than once"),
        ("owl", "list of names"),
    ],
)
def test_ambiguous_class_names_are_refused(table, content, message):
    (table / "classes.json").write_text(json.dumps(content))
    refused(table, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": ["y"]}, "No key of"),
        (["owl"], "object"),
        ({"owl": "round"}, "list of strings"),
        ({"owl": ["round"], "OWL": ["wise"]}, "more than once"),
    ],
)
def test_bad_descriptions_are_refused(table, content, message):
    (table / "descriptions.json").write_text(json.dumps(content))
    refused(table, message)


def test_a_key_given_twice_is_refused(table):
    (table / "descriptions.json").write_text('{"owl": ["a"], "owl": ["b"]}')
    refused(table, "'owl' appears twice")


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hosts", "images/../../outside.png"])
def test_paths_that_leave_the_folder_are_refused(table, name):
    save_image(table.parent / "outside.png")
    write_table(table, [(name, "n1")])
    refused(table, "leads out of")


def test_links_of_a_table_are_followed_as_those_of_class_folders(table):
    save_image(table.parent / "outside.png", 9)
    (table / "link.png").symlink_to(table.parent / "outside.png")
    (table / "linked").symlink_to(table.parent)
    write_table(table, [("link.png", "n1"), ("linked/outside.png", "n2")])
    source = load_zero_shot(table, note=lambda _: None).source
    assert source[0].image == source[1].image == (table.parent / "outside.png").read_bytes()
    (table.parent / "outside.png").unlink()
    refused(table, "2 of 2 images .* 'link.png' first")


def test_files_of_a_table_are_found_in_either_composition(table):
    save_image(table / "images" / "cafe\u0301.png")
    write_table(table, [("images/caf\u00e9.png", "n1"), ("images/a.png", "n2")])
    source = load_zero_shot(table, note=lambda _: None).source
    assert source[0].image == (table / "images" / "cafe\u0301.png").read_bytes()
    write_table(table, [("images/caf\u00e9.png", "n1"), ("images/cafe\u0301.png", "n2")])
    refused(table, "a second time, in another Unicode form")


def test_classes_with_equal_names_are_distinguished_by_label(table):
    (table / "classes.json").write_text(json.dumps({"n1": "shades", "n2": "shades", "n3": "Owl"}))
    (table / "descriptions.json").write_text(json.dumps({"shades": ["dark"], "n3": ["wise"]}))
    refused(table, "3 classes have only 2 different names: 'shades'.*--allow_equal_names")
    notes: list[str] = []
    dataset = load_zero_shot(table, allow_equal_names=True, note=notes.append)
    assert dataset.class_names == ("shades (n1)", "shades (n2)", "Owl")
    assert [dataset.source[k].label for k in range(3)] == [
        *("shades (n1)", "shades (n2)", "shades (n1)"),
    ]
    assert dataset.descriptions == {
        "shades (n1)": ("dark",),
        "shades (n2)": ("dark",),
        "Owl": ("wise",),
    }
    texts = class_texts(dataset)
    assert texts.names[0] == texts.names[1] == ("a photo of a shades.",)
    assert "2 of 3 classes share their name with another ('shades' first)" in notes[0]


def test_published_texts_of_eurosat_are_read_and_bound(tmp_path):
    root = tmp_path / "EuroSAT"
    for label in ("AnnualCrop", "HerbaceousVegetation", "SeaLake"):
        save_image(root / label / "1.jpg")
    lists = {"eurosat": ["annual crop land", "brushland or shrubland", "lake or sea"]}
    (tmp_path / "en_classnames.json").write_text(json.dumps(lists))
    (tmp_path / "templates.json").write_text(json.dumps({"eurosat": ["a photo of {c}."]}))
    (tmp_path / "prompts.md").write_text(
        "## EuroSAT\n```bash\nclasses = ['lake or sea', 'annual crop land', 'brushland or "
        "shrubland']\ntemplates = [\n    'a photo of {}.',\n]\n```\n"
    )
    for classes, templates, by in (
        ("en_classnames.json#eurosat", "templates.json#eurosat", "order"),
        ("en_classnames.json#eurosat", "templates.json#eurosat", "elimination"),
        ("prompts.md#EuroSAT", "prompts.md#EuroSAT", "elimination"),
    ):
        dataset = load_zero_shot(
            root,
            classes=f"{tmp_path}/{classes}",
            templates=f"{tmp_path}/{templates}",
            classes_by=by,
            note=lambda _: None,
        )
        assert dataset.source.labels == tuple(lists["eurosat"])
        assert dataset.templates == ("a photo of {}.",)
    refused(root, "--classes_by=elimination", classes=f"{tmp_path}/prompts.md#EuroSAT")
    refused(root, "not in the order", classes=f"{tmp_path}/prompts.md#EuroSAT", classes_by="order")


def test_files_that_are_too_large_or_gone_are_refused_by_name(table, monkeypatch):
    source = load_zero_shot(table, note=lambda _: None).source
    with (table / "images/b.png").open("r+b") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # a hole, which takes no space on disk
    refused(table, f"'images/b.png' .* larger than {MAX_IMAGE_BYTES} bytes. Shrink it")
    monkeypatch.setattr("grain_jax.data.image_files.MAX_IMAGE_BYTES", 1_000)  # not to read 64 MiB
    with pytest.raises(ValueError, match=r"'images/b.png' is larger than 1000 bytes. Replace it"):
        source[1]
    (table / "images/b.png").unlink()
    with pytest.raises(ValueError, match=r"'images/b.png': .* Replace it, or take it out"):
        source[1]


def test_broken_tables_are_refused(table, tmp_path):
    write_table(table, [("images/a.png", "n1"), ("images/x.png", "n2")])
    refused(table, "1 of 2 images .* 'images/x.png'")
    write_table(table, [("images/a.png", "n1"), ("images/a.png", "n2")])
    refused(table, "Line 3 .* second time")
    write_table(table, [("images/a.png", "")])
    refused(table, "Line 2 .* lacks")
    write_table(table, [("images/a.png", "n1")], header=("path", "class"))
    refused(table, "columns file,label")
    write_table(table, [])
    refused(table, "no labelled images")
    refused(tmp_path / "nothing", "no folder")


def test_broken_text_files_are_refused(table, tmp_path):
    refused(table, "no file", templates="missing.json")
    (tmp_path / "t.json").write_text('["no hole"]')
    refused(table, "exactly one", templates=str(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text("{")
    refused(table, "not valid JSON", templates=str(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text('{"a": ["{}"]}')
    refused(table, "no entry 'b'", templates=f"{tmp_path / 't.json'}#b")
    refused(table, "list of templates", templates=str(tmp_path / "t.json"))
    (tmp_path / "t.yaml").write_text("- {}")
    refused(table, "end in .txt, .json or .md", templates=str(tmp_path / "t.yaml"))
