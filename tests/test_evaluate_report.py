"""`python -m grain_jax.evaluate report`: what it writes, and what it refuses in clear words."""

import csv
import json
import re

import numpy as np
import pytest

from grain_jax import evaluate
from grain_jax.command_line import ExitStatus
from grain_jax.data.records import InMemory, Record, ZeroShotSet
from grain_jax.evaluate_report import files, folders
from grain_jax.evaluation.predictions import PredictionsFile
from grain_jax.results import Result


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A result file and its predictions, in the current folder."""
    monkeypatch.chdir(tmp_path)
    results = [
        Result("birds", "name", None, "top1", 0.75, 0.3, 0.95, 4).__dict__,
        Result("birds", "random", None, "top1", 0.5).__dict__,
    ]
    report = {"checkpoint": "/runs/demo", "step": 3, "data": "birds", "results": results}
    (tmp_path / "a.json").write_text(json.dumps(report))
    with PredictionsFile(tmp_path / "a.jsonl") as lines:
        for i in range(4):
            lines.write(
                task="zero_shot",
                set="birds",
                method="name",
                alpha=None,
                image=f"{i}.png",
                label="wren",
                predicted="tit" if i == 0 else "wren",
                score=0.5,
                correct=float(i > 0),
            )
    return tmp_path


def report(*words):
    return evaluate.main(["report", *words])


def test_html_markdown_and_csv_are_written(given, capsys):
    assert report("a.json", "--predictions=a.jsonl") == ExitStatus.DONE
    page = (given / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().startswith("<!DOCTYPE html>")
    assert "75.0" in page
    assert "30.0-95.0" in page
    assert "Written to report.html" in capsys.readouterr().out
    assert report("a.json", "--output=report.md") == ExitStatus.DONE
    assert "| name | 75.0 (30.0-95.0) |" in (given / "report.md").read_text(encoding="utf-8")
    assert report("a.json", "--output=all.csv") == ExitStatus.DONE
    with (given / "all.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [(row["method"], float(row["value"])) for row in rows] == [
        ("name", 0.75),
        ("random", 0.5),
    ]


def test_a_report_is_not_replaced_unless_asked(given, capsys):
    (given / "report.html").write_text("mine")
    assert report("a.json") == ExitStatus.MISTAKE
    assert "--overwrite" in capsys.readouterr().err
    assert (given / "report.html").read_text() == "mine"
    assert report("a.json", "--overwrite") == ExitStatus.DONE
    assert (given / "report.html").read_text() != "mine"


def test_predictions_as_csv_give_the_same_page(given):
    lines = [json.loads(line) for line in (given / "a.jsonl").read_text().splitlines()]
    with PredictionsFile(given / "a.csv") as table:
        for line in lines:
            table.write(**line)
    for suffix in ("jsonl", "csv"):
        words = (f"--predictions=a.{suffix}", f"--output={suffix}.md")
        assert report("a.json", *words) == ExitStatus.DONE
    first, second = (
        (given / f"{suffix}.md").read_text().replace(f"a.{suffix}", "a")
        for suffix in ("jsonl", "csv")
    )
    assert first == second


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give one or more result files"),
        (("b.json",), "There is no file 'b.json'"),
        (("a.jsonl",), "predictions as --predictions=a.jsonl"),
        (("a.json", "a.json"), "given twice"),
        (("a.json", "--predictions=a.json"), "given twice"),
        (("a.json", "--predictions=b.jsonl"), "There is no file 'b.jsonl'"),
        (("a.json", "--predictions=other.json"), "'other.json' is no file of predictions"),
        (("a.json", "--predictions=a.jsonl,b.jsonl"), "2 files for 1 result files"),
        (("other.json",), "'other.json' has no 'results'"),
        (("broken.json",), "'broken.json' is not JSON"),
        (("empty.json",), "holds no results"),
        (("odd.json",), "is not a result"),
        (("a.json", "--output=report.pdf"), "should end in .html, .md or .csv"),
        (("a.json", "--output=nowhere/report.html"), "There is no folder 'nowhere'"),
        (
            ("a.json", "--images=val=photos"),
            "none are beside these results",
        ),
        (("a.json", "--against=name"), "--against goes with predictions"),
        (("a.json", "--seed=1"), "--seed goes with predictions"),
        (("a.json", "--predictions=a.jsonl", "--output=a.csv"), "changes nothing of a .csv"),
        (
            ("a.json", "--predictions=a.jsonl", "--against=x"),
            "No predictions are by the method 'x'",
        ),
        (("a.json", "--predictions=a.jsonl", "--images=photos"), "should be SET=FOLDER"),
        (("a.json", "--predictions=a.jsonl", "--images=val=photos"), "boxes of phrases on no set"),
        (("a.json", "--predictions=wrong.jsonl"), "does not belong to a.json"),
        (("a.json", "--predictions=else.jsonl"), "no set and method in common"),
        (("a.json", "--predictions=boxes.jsonl"), "boxes.jsonl, answer 1: probability and iou"),
        (("a.json", "--predictions=text.jsonl"), "text.jsonl:1 is not a line of predictions"),
    ],
)
def test_a_mistake_is_named(given, capsys, words, said):
    (given / "other.json").write_text('{"a": 1}')
    (given / "broken.json").write_text('{"results": [')
    (given / "empty.json").write_text('{"results": []}')
    (given / "odd.json").write_text('{"results": [{"dataset": "birds"}]}')
    (given / "text.jsonl").write_text("hello\n")
    lines = [json.loads(line) for line in (given / "a.jsonl").read_text().splitlines()]
    for name, changed in (
        ("wrong", {"correct": 1.0}),
        ("else", {"set": "fish"}),
        ("boxes", {"box_xyxy": [0, 1]}),
    ):
        text = "".join(json.dumps(line | changed) + "\n" for line in lines)
        (given / f"{name}.jsonl").write_text(text)
    assert report(*words) == ExitStatus.MISTAKE
    printed = capsys.readouterr().err
    # tyro frames what it says
    assert said in re.sub(r"[\s│]+", " ", printed)
    assert not (given / "report.html").exists()


def test_names_with_commas_are_kept_whole(given):
    (given / "a,b.jsonl").write_text("")
    assert [path.name for path in files("a,b.jsonl")] == ["a,b.jsonl"]
    assert [path and path.name for path in files(",a.jsonl")] == [None, "a.jsonl"]
    assert [(name, str(path)) for name, path in folders("val=x,y,test=z")] == [
        ("val", "x,y"),
        ("test", "z"),
    ]
    with pytest.raises(ValueError, match="twice"):
        folders("val=x,val=y")


def test_the_probability_of_an_answer_is_that_of_the_softmax(tmp_path):
    scores = np.array([[0.2, 0.5, 0.1], [0.3, 0.3, 0.3]])

    images = InMemory(tuple(Record(f"{i}.png", b"", label="a") for i in range(2)))
    birds = ZeroShotSet("birds", images, ("a", "b", "c"))
    with PredictionsFile(tmp_path / "a.jsonl") as file:
        file.of_set(birds, logit_scale=10.0)("name", None, 0, scores, np.array([1, 0]))
        file.of_set(birds)("description", 1.0, 0, scores, np.array([1, 0]))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    powers = np.exp([2.0, 5.0, 1.0])
    assert lines[0]["probability"] == pytest.approx(powers[1] / powers.sum(), rel=1e-5)
    assert lines[1]["probability"] == pytest.approx(1 / 3, rel=1e-5)
    assert all("probability" not in line for line in lines[2:])
