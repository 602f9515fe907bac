"""What is printed and written about the images."""

import json
import os

import numpy as np
import pytest
from figures import texts_of
from matplotlib.figure import Figure
from predict_calls import call, rows
from toy_encoder import toy_model

from grain_jax.answers import outputs, screen
from grain_jax.inference.predictor import BATCH_SIZE
from grain_jax.visualize.prediction import WHOLE


def test_a_table_is_as_wide_as_columns_says(loaded_with, make_images, monkeypatch, capsys):
    widths = []
    long = "a cardinal with a crest that is longer than the whole of a narrow terminal is wide"
    for columns in ("60", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        assert call("in/a.png", f"--labels={long},jay") == 0
        widths.append(max(map(len, capsys.readouterr().out.splitlines())))
    assert widths[0] <= 60 < widths[1] <= 120


def test_labels_and_phrases_are_printed_and_written(loaded_with, make_images, capsys):
    status = call(
        "in/a.png",
        "other",
        "--labels=robin,jay,crow",
        "--descriptions=descriptions.json",
        "--phrases=a blue tail; a red eye",
        "--alpha=0.25",
        "--top_k=2",
        "--csv=out.csv",
        "--json=out.json",
        "--batch-size=3",
    )
    printed = capsys.readouterr()
    assert status == 0
    assert loaded_with == [("run", None, False, 3)]
    assert "2 images; written: out.csv, out.json." in printed.err
    assert printed.err.count("1 of 3 classes have no description ('crow')") == 1
    assert "in/a.png" in printed.out
    assert "a blue tail" in printed.out
    table = rows(make_images / "out.csv")
    assert [row["file"] for row in table] == ["in/a.png"] * 4 + ["other/a.jpg"] * 4
    first = table[0]
    assert (first["kind"], first["rank"], first["text"]) == ("label", "1", "robin")
    assert (first["grounded"], first["grounded_kind"]) == ("red", "description")
    assert [float(first[name]) for name in ("x0", "y0", "x1", "y1")] == [0, 0, 40, 40]
    assert float(first["score"]) == pytest.approx(1, abs=0.01)
    tail = table[2]
    assert (tail["kind"], tail["rank"], tail["text"]) == ("phrase", "", "a blue tail")
    assert tail["grounded_kind"] == ""
    assert [float(tail[name]) for name in ("x0", "y0", "x1", "y1")] == [40, 0, 80, 40]
    report = json.loads((make_images / "out.json").read_text())
    assert report["request"]["phrases"] == ["a blue tail", "a red eye"]
    assert report["request"]["descriptions"] == {"robin": ["red"], "jay": ["blue"]}
    (make_image, other) = report["images"]
    assert (make_image["height"], make_image["width"]) == (40, 80)
    assert [one["label"] for one in make_image["labels"]] == ["robin", "jay"]
    # Of the whole image nothing is blue, of the two regions one is.
    assert make_image["labels"][1]["score"] == pytest.approx(0.75, abs=0.05)
    assert make_image["labels"][0]["grounded"][0]["text"] == "red"
    assert make_image["phrases"][1]["query"] == 0
    np.testing.assert_allclose(make_image["boxes_xyxy"], [[0, 0, 40, 40], [40, 0, 80, 40]])
    assert other["labels"][0]["label"] == "jay"
    assert report["skipped"] == []
    assert report["request"]["alpha"] == 0.25
    assert report["request"]["templates"] is None  # none played a part


def test_a_label_without_descriptions_is_shown_by_name(
    loaded_with, make_images, capsys, monkeypatch
):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    options = ("--csv=out.csv", "--json=out.json", "--output=out")
    labels = ("--labels=robin,blue", "--descriptions=descriptions.json")
    assert call("other/a.jpg", *labels, *options) == 0
    printed = capsys.readouterr().out
    assert "best-matching description, or name" in printed
    assert "name: blue (" in printed
    assert "name: red" not in printed
    found = {row["text"]: row["grounded_kind"] for row in rows(make_images / "out.csv")}
    assert found == {"robin": "description", "blue": "name"}
    (image,) = json.loads((make_images / "out.json").read_text())["images"]
    assert {one["label"]: one["grounded_kind"] for one in image["labels"]} == found
    texts = [text for text, _ in texts_of(figures[0])]
    assert "name of 'blue'" in texts
    assert any(text.startswith("compared by name: blue (") for text in texts)
    assert any(text.startswith("best-matching description: red (") for text in texts)
    assert call("other/a.jpg", "--labels=robin,jay", labels[1]) == 0
    assert ", or name" not in capsys.readouterr().out


def test_what_was_not_given_is_written_as_it_was_used(loaded_with, make_images):
    assert call("in/a.png", "--descriptions=descriptions.json", "--json=out.json") == 0
    assert json.loads((make_images / "out.json").read_text())["request"]["alpha"] == 0.5
    assert call("in/a.png", "--labels=red,blue", "--json=named.json") == 0
    named = json.loads((make_images / "named.json").read_text())["request"]
    assert named["alpha"] is None
    assert named["templates"] == list(toy_model().loaded.templates)


def test_what_the_whole_image_decided_has_no_box(loaded_with, make_images, monkeypatch):
    """Nor is it not found: the limit is one of regions."""
    visualizations = []
    monkeypatch.setattr(
        outputs, "draw_prediction", lambda image, **given: visualizations.append(given)
    )
    arguments = (
        "in/a.png",
        "--descriptions=descriptions.json",
        "--alpha=1",
        "--score_threshold=0.9",
    )
    assert call(*arguments, "--out=visualizations", "--csv=out.csv", "--json=out.json") == 0
    (visualization,) = visualizations
    (section,) = [section for section in visualization["sections"] if section.texts]
    (shown,) = section.texts
    text, cosine = shown.text, shown.cosine
    assert (shown.xyxy, shown.why, visualization["num_labels"]) == (None, WHOLE, 2)
    assert len(visualization["others_xyxy"]) == 2
    row = rows(make_images / "out.csv")[0]
    assert (row["grounded"], row["x0"], row["y1"]) == (text, "", "")
    assert float(row["cosine"]) == pytest.approx(cosine, abs=1e-6)
    (make_image,) = json.loads((make_images / "out.json").read_text())["images"]
    (seen,) = make_image["labels"][0]["grounded"]
    assert (seen["text"], seen["query"], seen["box_xyxy"]) == (text, None, None)


@pytest.mark.parametrize("name", ["x:y.png", "c\\d.png"])
def test_a_file_may_have_any_name(loaded_with, make_images, name):
    (make_images / "in/a.png").rename(make_images / "in" / name)
    assert call("in", "--labels=red,blue", "--csv=out.csv", "--out=visualizations") == 0
    assert f"in/{name}" in [row["file"] for row in rows(make_images / "out.csv")]
    assert (make_images / "visualizations" / name).is_file()


def test_the_keys_of_the_descriptions_are_labels_where_none_are_given(loaded_with, make_images):
    assert call("in/a.png", "--descriptions=descriptions.json", "--csv=out.csv") == 0
    assert [row["text"] for row in rows(make_images / "out.csv")] == ["Robin", "jay"]


@pytest.mark.parametrize(
    ("option", "step", "best"), [("--step=40", 40, False), ("--best", None, True)]
)
def test_a_checkpoint_of_the_run_is_chosen(loaded_with, make_images, option, step, best):
    assert call("in/a.png", "--labels=robin,jay", option) == 0
    assert loaded_with == [("run", step, best, BATCH_SIZE)]


def test_many_labels_are_no_file_name(loaded_with, make_images, capsys):
    labels = ",".join(f"a bird of species number {i}" for i in range(50))
    assert call("in/a.png", f"--labels={labels}", "--top_k=1") == 0
    assert call("in/a.png", "x" * 5000, "--labels=robin,jay") == 3
    assert "no such file" in capsys.readouterr().err


def test_what_is_nowhere_gets_no_box(loaded_with, make_images, capsys):
    """Below --score_threshold: not in the table, CSV, JSON, nor on the visualization."""
    arguments = ["in/a.png", "--phrases=a red tail;a white tail", "--csv=out.csv"]
    assert call(*arguments, "--json=out.json", "--out=any") == 0
    found = rows(make_images / "out.csv")
    cosines = [float(row["cosine"]) for row in found]
    assert cosines[0] > cosines[1]
    assert all(row["x0"] for row in found)
    limit = f"--score-threshold={sum(cosines) / 2}"
    assert call(*arguments, "--json=out.json", "--out=some", "--overwrite", limit) == 0
    assert "not found" in capsys.readouterr().out
    first, second = rows(make_images / "out.csv")
    assert first["x0"]
    assert (second["x0"], second["cosine"]) == ("", found[1]["cosine"])
    one, two = json.loads((make_images / "out.json").read_text())["images"][0]["phrases"]
    assert len(one["box_xyxy"]) == 4
    assert two["box_xyxy"] is None
    assert (make_images / "any/a.png").read_bytes() != (make_images / "some/a.png").read_bytes()


def test_texts_come_from_files_too(loaded_with, make_images):
    (make_images / "labels.txt").write_text("green\n\nred\n")
    (make_images / "phrases.json").write_text(json.dumps({"all": ["blue, or so"]}))
    arguments = ["--labels=labels.txt", "--phrases=phrases.json#all", "--templates=t.json"]
    (make_images / "t.json").write_text('["the {}"]')
    assert call("in", *arguments, "--csv=out.csv") == 0
    found = [(row["file"], row["text"]) for row in rows(make_images / "out.csv")]
    assert found == [
        ("in/a.png", "red"),
        ("in/a.png", "green"),
        ("in/a.png", "blue, or so"),
        ("in/deep/a.png", "green"),
        ("in/deep/a.png", "red"),
        ("in/deep/a.png", "blue, or so"),
    ]


def test_one_label_alone_says_that_it_is_certain(loaded_with, make_images, capsys):
    assert call("in/a.png", "--labels=either/or") == 0
    assert "'either/or' is the only label" in capsys.readouterr().err


def test_many_images_are_not_all_printed(loaded_with, make_images, monkeypatch, capsys):
    monkeypatch.setattr(screen, "MAX_SHOWN", 1)
    assert call("in", "--labels=red,blue") == 0
    printed = capsys.readouterr().out
    assert "a.png" in printed
    assert "deep" not in printed
    assert "and 1 images more" in printed


def test_files_are_named_from_the_folder_they_share(make_images):
    paths = [make_images / "in/a.png", make_images / "in/deep/a.png"]
    assert screen.short_names(paths) == ["a.png", os.path.join("deep", "a.png")]
    assert screen.short_names(paths[1:]) == ["a.png"]
