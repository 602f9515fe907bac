"""`--examples`: a folder of labelled images that define labels."""

import io
import json

import pytest
from labelled_tars import write_webdataset
from PIL import Image
from predict_calls import call, rows
from toy_encoder import columns, toy_model

from grain_jax.answers.examples import read_examples

ARGUMENTS = ("in/a.png", "in/deep/a.png", "--csv=out.csv", "--json=out.json")


def encoded(*colours: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(columns(*colours)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(make_images):
    """Two labels: one that the toy can read, and one that it cannot."""
    for name, colours in (
        ("Green_Bird/0.png", ("green", "red")),
        ("Green_Bird/1.png", ("green", "blue")),
        ("odd one/0.png", ("red", "blue")),
    ):
        path = make_images / "labelled" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(*colours))
    return make_images / "labelled"


def test_labels_are_defined_by_what_a_folder_has_of_them(loaded_with, folder, capsys):
    options = ("--labels=green bird,blue,odd one", "--examples_only=odd one")
    assert call(*ARGUMENTS, *options, "--examples=labelled", "--example_weight=0.25") == 0
    table = rows(folder.parent / "out.csv")
    best = [(row["file"], row["text"]) for row in table if row["rank"] == "1"]
    assert best == [("in/a.png", "odd one"), ("in/deep/a.png", "green bird")]
    assert {row["text"]: (row["defined_by"], row["num_examples"]) for row in table} == {
        "green bird": ("both", "2"),
        "odd one": ("examples", "1"),
        "blue": ("texts", "0"),
    }
    report = json.loads((folder.parent / "out.json").read_text())
    assert report["request"]["examples"] == {"green bird": 2, "odd one": 1}
    assert report["request"]["example_weight"] == 0.25
    assert report["request"]["examples_only"] == ["odd one"]
    files = [folder / "Green_Bird/0.png", folder / "Green_Bird/1.png", folder / "odd one/0.png"]
    expected = (
        toy_model()
        .classify(
            "in/a.png",
            ["green bird", "blue", "odd one"],
            examples={"green bird": files[:2], "odd one": files[2:]},
            example_weight=0.25,
            examples_only=["odd one"],
        )[0]
        .ranked
    )
    for entry, one in zip(report["images"][0]["labels"], expected, strict=True):
        assert (entry["label"], entry["defined_by"]) == (one.label, one.defined_by)
        assert entry["score"] == pytest.approx(one.score, rel=1e-4, abs=1e-5)
    printed = capsys.readouterr().out
    for shown in ("defined by", "texts and 2 examples", "1 example", "texts"):
        assert shown in printed


def test_without_labels_the_classes_of_the_folder_are_they(loaded_with, folder):
    assert call(*ARGUMENTS, "--examples=labelled") == 0
    table = rows(folder.parent / "out.csv")
    assert {row["text"] for row in table} == {"Green Bird", "odd one"}
    assert json.loads((folder.parent / "out.json").read_text())["request"]["example_weight"] == 0.75


def test_a_folder_of_one_class_is_enough(loaded_with, folder):
    (folder / "odd one/0.png").unlink()
    (folder / "odd one").rmdir()
    assert call(*ARGUMENTS, "--labels=green bird,red", "--examples=labelled") == 0
    found = {row["text"]: row["defined_by"] for row in rows(folder.parent / "out.csv")}
    assert found == {"green bird": "both", "red": "texts"}


def test_other_layouts_are_read_as_by_evaluate(tmp_path):
    shards = [
        {"s0.png": encoded("green"), "s0.cls": b"1"},
        {"s1.png": encoded("red"), "s1.cls": b"0"},
    ]
    write_webdataset(tmp_path / "tars", shards, ["odd one", "green bird"])
    found = read_examples(tmp_path / "tars", ["Green_bird"], note=print)
    assert found == {"Green_bird": [encoded("green")]}
    found = read_examples(tmp_path / "tars", [], note=print)
    assert found == {"green bird": [encoded("green")], "odd one": [encoded("red")]}
    (tmp_path / "table/images").mkdir(parents=True)
    (tmp_path / "table/images/a.png").write_bytes(encoded("red"))
    (tmp_path / "table/labels.csv").write_text("file,label\nimages/a.png,x\n")
    assert read_examples(tmp_path / "table", [], note=print) == {
        "x": [tmp_path / "table" / "images/a.png"]
    }


def test_without_examples_nothing_says_what_defines_a_label(loaded_with, make_images, capsys):
    assert call(*ARGUMENTS, "--labels=red,blue") == 0
    assert "defined_by" not in rows(make_images / "out.csv")[0]
    assert "defined_by" not in (make_images / "out.json").read_text()
    assert "defined by" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels=green,odd", "--examples=labelled"], "None of the 2 classes of --examples="),
        (["--labels=green,odd", "--examples=labelled"], "'green': 'Green_Bird'; 'odd': 'odd one'"),
        (["--labels=green bird,odd one", "--examples=gone"], "There is no folder"),
        (["--labels=a,b", "--example_weight=0.5"], "--example_weight goes with --examples"),
        (["--labels=a,b", "--examples_only=a"], "--examples_only goes with --examples"),
        (["--examples=labelled", "--examples_only=x"], "--examples_only has 1 of 1 names"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(
    loaded_with, folder, arguments, message, capsys
):
    assert call("in/a.png", *arguments) == 2
    assert message in capsys.readouterr().err
    assert loaded_with == []


def test_classes_that_are_no_labels_are_left_out_with_a_note(loaded_with, folder, capsys):
    (folder / "odd one/bad.png").write_bytes(b"never read")
    assert call(*ARGUMENTS, "--labels=green bird,odd", "--examples=labelled") == 0
    note = "1 of 2 classes of 'labelled' are not among the 2 labels and are left out ('odd"
    said = capsys.readouterr().err
    assert note in said
    assert "labels without examples are 'odd': 'odd one'." in said
    found = {row["text"]: row["defined_by"] for row in rows(folder.parent / "out.csv")}
    assert found == {"green bird": "both", "odd": "texts"}


def test_an_example_that_cannot_be_read_is_named(loaded_with, folder, capsys):
    (folder / "odd one/bad.png").write_bytes(b"no image")
    assert call(*ARGUMENTS, "--examples=labelled") == 2
    printed = capsys.readouterr().err
    assert "bad.png (example of odd one)': 8 bytes are not an image" in printed
    assert not (folder.parent / "out.csv").exists()
