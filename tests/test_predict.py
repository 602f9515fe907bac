import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain_text import plain
from toy_encoder import columns, toy_model

from grain_jax import predict
from grain_jax.answers import outputs, screen
from grain_jax.answers.files import find_images
from grain_jax.inference.predictor import BATCH_SIZE, Model
from grain_jax.predict import main
from grain_jax.visualize.prediction import WHOLE


@pytest.fixture
def loaded_with(monkeypatch):
    """The toy model stands for that of any run; what `load` was called with is noted."""
    calls = []

    def load(path, *, step, best, batch_size, note, calibration):
        calls.append((path, step, best, batch_size))
        if "nowhere" in path:
            raise ValueError(f"There is no checkpoint in {path}.")
        return toy_model(batch_size=batch_size, note=note)

    monkeypatch.setattr(predict, "load", load)
    return calls


@pytest.fixture
def make_images(tmp_path, monkeypatch):
    """Two folders with an image of the same name, one damaged, and what is no image at all."""
    monkeypatch.chdir(tmp_path)
    for name, colours in (
        ("in/a.png", ("red", "blue")),
        ("in/deep/a.png", ("green", "red")),
        ("other/a.jpg", ("blue", "green")),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(columns(*colours)).save(path, quality=100)
    (tmp_path / "in/.hidden.png").write_bytes(b"")
    (tmp_path / "in/notes.txt").write_text("no image")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "descriptions.json").write_text(json.dumps({"Robin": ["red"], "jay": ["blue"]}))
    return tmp_path


def call(*arguments: str) -> int:
    return main([*arguments, "--checkpoint=run"])


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


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
    assert printed.err.count("1 of 3 classes have no description ('crow' first)") == 1
    assert "in/a.png" in printed.out
    assert "a blue tail" in printed.out
    table = rows(make_images / "out.csv")
    assert [row["file"] for row in table] == ["in/a.png"] * 4 + ["other/a.jpg"] * 4
    first = table[0]
    assert (first["kind"], first["rank"], first["text"]) == ("label", "1", "robin")
    assert first["grounded"] == "red"
    assert [float(first[name]) for name in ("x0", "y0", "x1", "y1")] == [0, 0, 40, 40]
    assert float(first["score"]) == pytest.approx(1, abs=0.01)
    tail = table[2]
    assert (tail["kind"], tail["rank"], tail["text"]) == ("phrase", "", "a blue tail")
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


def test_what_cannot_be_read_is_named_and_the_status_says_so(loaded_with, make_images, capsys):
    arguments = ["--labels=red,blue", "--csv=out.csv", "--json=out.json", "--out=visualizations"]
    (make_images / "empty").mkdir()
    assert call("broken.png", "in", "gone.png", "empty", "--batch-size=1", *arguments) == 3
    error = capsys.readouterr().err
    assert "Skipped broken.png: 8 bytes are not an image" in error
    assert "Skipped gone.png: there is no such file" in error
    assert "Skipped empty: the folder holds no images" in error
    assert "2 images, 3 skipped" in error
    assert {row["file"] for row in rows(make_images / "out.csv")} == {"in/a.png", "in/deep/a.png"}
    skipped = json.loads((make_images / "out.json").read_text())["skipped"]
    assert [one["file"] for one in skipped] == ["gone.png", "empty", "broken.png"]


def test_nothing_readable_is_a_failure_and_writes_nothing(loaded_with, make_images, capsys):
    assert call("broken.png", "--labels=red,blue", "--csv=out.csv", "--out=visualizations") == 2
    assert "no image could be read" in capsys.readouterr().err
    assert call("gone.png", "--labels=red,blue", "--csv=out.csv") == 2
    assert not (make_images / "out.csv").exists()
    assert not (make_images / "visualizations").exists()


def test_each_image_gets_a_card_of_its_own(loaded_with, make_images, capsys):
    arguments = ["in", "other/a.jpg", "in/*.png", "--phrases=a red eye", "--csv=out.csv"]
    assert call(*arguments, "--out=visualizations") == 0
    visualizations = sorted(
        path.relative_to("visualizations").as_posix() for path in Path("visualizations").rglob("*")
    )
    assert visualizations == ["a-2.png", "a.png", "deep", "deep/a.png"]
    assert {row["file"]: row["visualization"] for row in rows(make_images / "out.csv")} == {
        "in/a.png": "a.png",
        "in/deep/a.png": "deep/a.png",
        "other/a.jpg": "a-2.png",
    }
    before = (make_images / "visualizations/a-2.png").read_bytes()
    assert call(*arguments, "--out=visualizations") == 2
    assert "'out.csv' exists" in capsys.readouterr().err
    assert call("other", "--phrases=a red eye", "--out=visualizations") == 2
    assert (
        "'visualizations/a.png' exists; give another place, or --overwrite"
        in capsys.readouterr().err
    )
    assert (make_images / "visualizations/a-2.png").read_bytes() == before
    assert call("other", "--phrases=a red eye", "--out=visualizations", "--overwrite") == 0
    assert (make_images / "visualizations/a.png").read_bytes() == before


def test_an_image_is_never_replaced_by_its_visualization(loaded_with, make_images, capsys):
    before = (make_images / "in/a.png").read_bytes()
    for given in ("in", "in/a.png", "other"):
        assert call(given, "in", "--out=in", "--overwrite", "--phrases=a red eye") == 2
        assert "'in/a.png' would replace an image" in capsys.readouterr().err
        assert (make_images / "in/a.png").read_bytes() == before


def test_cards_of_a_former_call_are_no_images(make_images):
    (make_images / "in/visualizations").mkdir()
    (make_images / "in/visualizations/a.png").write_bytes(b"")
    found, nothing = find_images(["in"], make_images / "in/visualizations")
    assert [str(target.file) for target in found] == ["in/a.png", "in/deep/a.png"]
    assert nothing == []


def test_links_are_followed_and_lost_ones_named(loaded_with, make_images, capsys):
    (make_images / "links").mkdir()
    (make_images / "links" / "folder").symlink_to(make_images / "other")
    (make_images / "links" / "one.png").symlink_to(make_images / "in/a.png")
    (make_images / "links" / "round").symlink_to(make_images / "links")
    found, nothing = find_images(["links"], None)
    assert [str(target.file) for target in found] == ["links/folder/a.jpg", "links/one.png"]
    assert nothing == []
    (make_images / "links" / "lost.png").symlink_to("gone.png")
    (make_images / "links" / "x.heic").write_bytes(b"")
    assert call("links", "--labels=red,blue") == 3
    printed = capsys.readouterr().err
    assert "Skipped links/lost.png: the link leads nowhere." in printed
    assert "Skipped links/x.heic: this format is not read; convert it, say to PNG." in printed
    assert "2 images, 2 skipped." in printed


def test_a_folder_whose_name_looks_like_a_pattern_is_no_pattern(make_images):
    (make_images / "set [1]").mkdir()
    for name in ("a [2].png", "b.png"):
        (make_images / "in/a.png").rename(make_images / "set [1]" / name)
        (make_images / "set [1]" / name).write_bytes((make_images / "set [1]" / name).read_bytes())
        (make_images / "in/a.png").write_bytes((make_images / "set [1]" / name).read_bytes())
    for given, count in (("set [1]", 2), ("set [1]/*.png", 2), ("set [1]/a [2].png", 1)):
        assert len(find_images([given], None)[0]) == count
    assert len(find_images([str(make_images / "set [1]" / "?.png")], None)[0]) == 1
    assert find_images(["set [2]/*.png"], None)[1] == [
        ("set [2]/*.png", "there is no such file or folder.")
    ]


def test_a_list_in_a_folder_with_a_number_sign_is_read(loaded_with, make_images, capsys):
    folder = make_images / "lists #1"
    folder.mkdir()
    (folder / "l.txt").write_text("red, dark\nblue\n")
    (folder / "l.json").write_text(json.dumps({"C#": ["red", "blue"]}))
    (folder / "p.md").write_text("# A\n```\nclasses = ['red', 'blue']\ntemplates = ['a {}']\n```\n")
    for given, labels in (
        ("lists #1/l.txt", {"red, dark", "blue"}),
        ("lists #1/l.json#C#", {"red", "blue"}),
        ("lists #1/p.md#A", {"red", "blue"}),
    ):
        assert call("in/a.png", f"--labels={given}", "--csv=o.csv", "--overwrite") == 0
        assert {row["text"] for row in rows(make_images / "o.csv")} == labels
    assert call("in/a.png", "--labels=red,blue", "--templates=lists #1/p.md#A") == 0
    capsys.readouterr()
    for gone in ("lists #1/gone", "lists #1/gone.json#C#", "lists #1/L.TXT", "lists #2/l.md#A"):
        assert call("in/a.png", f"--labels={gone}") == 2
        assert f"There is no file {gone!r}" in capsys.readouterr().err
    assert call("in/a.png", "--phrases=lists #1/p.md#A") == 2
    assert "class names and templates only" in capsys.readouterr().err


def test_one_label_alone_says_that_it_is_certain(loaded_with, make_images, capsys):
    assert call("in/a.png", "--labels=either/or") == 0
    assert "'either/or' is the only label" in capsys.readouterr().err


def test_names_differ_where_case_is_not_told_apart(make_images):
    (make_images / "A.PNG").write_bytes(b"")
    (make_images / "a-2.bmp").write_bytes(b"")
    found, _ = find_images(["in/a.png", "A.PNG", "a-2.bmp", "other/a.jpg", "./A.PNG"], None)
    assert [str(target.visualization) for target in found] == [
        "a.png",
        "A-2.png",
        "a-2-2.png",
        "a-3.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is nothing to look for"),
        (["--labels= , "], "--labels holds no text"),
        (["--labels=a,b,a"], "--labels holds 'a' more than once"),
        (["--labels=gone.txt"], "There is no file 'gone.txt'"),
        (["--labels=descriptions.json"], "must hold a list of texts"),
        (["--labels=a", "--alpha=1"], "--alpha weighs the whole image"),
        (["--labels=a", "--method=name_and_regions"], "goes with --descriptions"),
        (["--phrases=a", "--templates=t.json"], "goes with --labels"),
        (["--labels=a", "--descriptions=descriptions.json"], "No key of 'descriptions.json'"),
        (["--labels=a", "--csv=gone/out.csv"], "There is no folder 'gone'"),
        (["--labels=a", "--csv=x", "--json=./x"], "both name 'x'"),
        (["--labels=a", "--out=broken.png"], "is a file; expected a folder"),
        (["--labels=a", "--csv=in/a.png", "--overwrite"], "would replace an image"),
        (["--labels=a", "--checkpoint=nowhere"], "There is no checkpoint in nowhere"),
    ],
)
def test_mistakes_are_one_line(loaded_with, make_images, arguments, message, capsys):
    run = [] if "--checkpoint=nowhere" in arguments else ["--checkpoint=run"]
    assert main(["in/a.png", *run, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ")
    assert message in printed.err
    assert printed.out == ""
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--alpha=2", "'2' should be a number from 0 to 1"),
        ("--alpha=abc", "'abc' should be a number from 0 to 1"),
        ("--top_k=0", "'0' should be a whole number of at least 1"),
        ("--batch_size=1.5", "'1.5' should be a whole number of at least 1"),
        ("--method=guess", "invalid choice 'guess'"),
    ],
)
def test_values_out_of_range_are_refused(option, message, capsys):
    assert main(["in/a.png", "--checkpoint=run", "--labels=a", option]) == 2
    printed = plain(capsys.readouterr().err)
    assert message in printed
    assert option.partition("=")[0] in printed


def test_without_an_image_there_is_nothing_to_look_at(capsys):
    assert main(["--checkpoint=run", "--labels=a"]) == 2
    assert "give images" in capsys.readouterr().err


def test_an_empty_text_names_no_image(make_images):
    assert find_images([""], None) == ([], [("''", "there is no such file or folder.")])


def test_what_was_done_before_ctrl_c_is_kept(loaded_with, make_images, monkeypatch, capsys):
    embed = Model.embed_images
    calls = []

    def interrupted(self, images, **options):
        calls.append(isinstance(images, list))
        if sum(calls) == 2:
            raise KeyboardInterrupt
        return embed(self, images, **options)

    monkeypatch.setattr(Model, "embed_images", interrupted)
    assert call("in", "--phrases=a red eye", "--csv=out.csv", "--batch_size=1") == 130
    assert "Stopped after 1 image; written: out.csv." in capsys.readouterr().err
    assert [row["file"] for row in rows(make_images / "out.csv")] == ["in/a.png"]


def test_ctrl_c_before_the_first_image(make_images, monkeypatch, capsys):
    def load(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "load", load)
    assert call("in", "--phrases=a red eye", "--csv=out.csv") == 130
    assert "Stopped; nothing was written." in capsys.readouterr().err


def test_answers_are_kept_where_a_card_cannot_be_drawn(
    loaded_with, make_images, monkeypatch, capsys
):
    draw = predict.draw_answer

    def full(answer, out, *, score_threshold):
        if answer.target.file.parent.name == "deep":
            raise OSError("No space left on device")
        draw(answer, out, score_threshold=score_threshold)

    monkeypatch.setattr(predict, "draw_answer", full)
    assert call("in", "--phrases=a red eye", "--csv=out.csv", "--out=visualizations") == 1
    assert "Error: No space left on device" in capsys.readouterr().err
    assert [row["file"] for row in rows(make_images / "out.csv")] == ["in/a.png"]


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
