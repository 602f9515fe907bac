"""Mistakes in the options, and what is left where the command is stopped."""

import pytest
from plain_text import plain
from predict_calls import call, rows

from grain_jax import predict
from grain_jax.inference.predictor import Model
from grain_jax.predict import main


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
