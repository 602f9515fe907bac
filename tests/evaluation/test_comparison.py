"""Comparisons of the answers that two evaluations kept, and the command."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from plain_text import plain

from grain_jax import evaluate
from grain_jax.evaluation.comparison import (
    TASKS,
    compare_methods,
    compare_models,
    compare_with_method,
    metrics_of,
    read_predictions,
)
from grain_jax.terminal import PIPE_WIDTH


def zero_shot(correct, *, method="name", alpha=None, dataset="cub", label="wren"):
    """Lines of one method, an image for each value."""
    return [
        {
            "task": "zero_shot",
            "set": dataset,
            "method": method,
            "alpha": alpha,
            "image": f"{i}.jpg",
            "label": label,
            "predicted": "wren",
            "score": 0.5,
            "correct": float(value),
        }
        for i, value in enumerate(correct)
    ]


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for group in lines for line in group))
    return path


@pytest.fixture
def two(tmp_path):
    """A and B: by name alike, by description B is right of 20 more of 60 images."""
    generator, described = np.random.default_rng(0), {"method": "description", "alpha": 1.0}
    same = generator.random(60) < 0.5
    better = same.copy()
    better[np.flatnonzero(~same)[:20]] = True
    other = zero_shot(better, **described)
    return (
        write(tmp_path / "a.jsonl", zero_shot(same), zero_shot(same, **described)),
        write(tmp_path / "b.jsonl", other[::-1], zero_shot(same)),  # in another order
    )


def test_all_of_b_are_compared_with_one_method_of_a(two, capsys):
    """GRAIN's regions have no counterpart in a CLIP, which is what they are compared with."""
    a, b = ([read_predictions(path)] for path in two)
    described, named = compare_with_method(a, b, against="name")
    assert (described.first, described.second) == ("name", "description/alpha1")
    assert described.difference.value == pytest.approx(20 / 60)
    assert (named.second, named.difference.value) == ("name", 0)
    assert evaluate.main(["compare", *map(str, two), "--against=description/alpha1"]) == 0
    printed = plain(capsys.readouterr().out)
    assert "Each method (B) against description/alpha1 (A)" in printed
    assert len(compare_with_method(a, b, against="description")) == 2
    other = {dataclasses.replace(one, dataset="cars"): two for one, two in b[0].items()}
    with pytest.raises(ValueError, match="no set in common on which A has name"):
        compare_with_method(a, [other], against="name")


def test_every_method_of_both_is_compared_image_by_image(two):
    by_name, by_description = compare_models(*([read_predictions(path)] for path in two))
    assert (by_name.first, by_name.second, by_name.images) == ("name", "name", 60)
    assert by_name.difference.value == 0
    assert by_name.difference.p_value == by_name.adjusted_p_value == 1
    assert by_description.first == "description/alpha1"
    assert by_description.difference.value == pytest.approx(20 / 60)
    assert by_description.difference.low > 0.15
    assert by_description.difference.p_value < 0.001
    assert by_description.adjusted_p_value == pytest.approx(2 * by_description.difference.p_value)


def test_answers_are_paired_whatever_their_order(tmp_path):
    """All wrong answers of A are right in B, in files of opposite order."""
    correct = [1, 0, 1, 0, 0, 1] * 5
    lines = zero_shot(np.logical_not(correct))
    write(tmp_path / "a.jsonl", zero_shot(correct))
    write(tmp_path / "b.jsonl", lines[::-1])
    (one,) = compare_models(
        *([read_predictions(tmp_path / name)] for name in ("a.jsonl", "b.jsonl"))
    )
    assert one.difference.value == 0
    assert one.difference.high - one.difference.low > 0.5  # paired in file order it would be 0


def test_methods_of_one_file_are_compared_with_one_of_them(two):
    (one,) = compare_methods([read_predictions(two[1])], against="name")
    assert (one.first, one.second) == ("name", "description/alpha1")
    assert one.difference.value == pytest.approx(20 / 60)
    with pytest.raises(ValueError, match=r"with 'names'; the file has description/alpha1, name\."):
        compare_methods([read_predictions(two[1])], against="names")


def test_methods_at_several_alphas_are_compared_at_the_same(tmp_path):
    right, wrong = [1, 1, 0, 1], [0, 0, 1, 0]
    lines = [
        zero_shot(correct, method=method, alpha=alpha)
        for method, correct in (("description", right), ("swapped_description", wrong))
        for alpha in (1.0, 0.0)
    ]
    path = write(tmp_path / "a.jsonl", *lines, zero_shot(right))
    found = compare_methods([read_predictions(path)], against="swapped_description")
    assert [(one.first, one.second) for one in found] == [
        ("swapped_description/alpha1", "description/alpha1"),
        ("swapped_description/alpha0", "description/alpha0"),
    ]
    exact = compare_methods([read_predictions(path)], against="swapped_description/alpha0")
    assert len(exact) == 4


def test_captions_of_an_image_count_as_one_image(tmp_path):
    line = {"task": "retrieval", "set": "dev", "method": "text_to_image", "score": 0}
    for name, correct in (("a", 0.0), ("b", 1.0)):
        write(
            tmp_path / f"{name}.jsonl",
            [
                {**line, "image": str(i // 5), "text": f"caption {i}", "correct": correct}
                for i in range(30)
            ],
        )
    (one,) = compare_models(
        *([read_predictions(tmp_path / f"{name}.jsonl")] for name in ("a", "b"))
    )
    assert (one.images, one.answers) == (6, 30)
    assert one.difference.p_value == pytest.approx(2 / 2**6)  # of 6 signs, not of 30


def test_the_command_prints_a_table_and_writes_records(two, tmp_path, capsys):
    output = tmp_path / "compared.json"
    assert evaluate.main(["compare", *map(str, two), f"--output={output}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "description/alpha1" in printed
    assert "+33.3" in printed
    assert "A single training of each says nothing of other seeds" in printed
    report = json.loads(output.read_text())
    assert [one["first"] for one in report["comparisons"]] == ["name", "description/alpha1"]
    assert report["comparisons"][1]["difference"]["p_value"] < 0.001
    assert evaluate.main(["compare", *map(str, two), f"--output={output}"]) == 2  # it exists
    assert evaluate.main(["compare", str(two[1]), "--against=name", f"--out={output}"]) == 2
    assert evaluate.main(["compare", str(two[1]), "--against=name"]) == 0
    printed = capsys.readouterr().out
    assert "Each method (B) against name (A)" in printed
    assert "description/alpha1" in printed


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_compared_under_the_name_of_its_metric(task, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(PIPE_WIDTH))
    files = []
    for name, correct in (("a", [0, 1] * 9), ("b", [1, 1] * 9)):
        lines = [line | {"task": task} for line in zero_shot(correct)]
        files.append(str(write(tmp_path / f"{name}.jsonl", lines)))
    assert evaluate.main(["compare", *files]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"B against A on the same images: {TASKS[task].metric}, %" in printed
    assert f"cub{TASKS[task].title} " in printed


def test_metrics_of_several_tasks_are_named_once():
    assert metrics_of(["zero_shot", "compositional"]) == "accuracy"
    assert metrics_of(TASKS) == "accuracy, R@1, Acc@0.5 or semantic IoU"


def test_trainings_are_given_with_commas(two, tmp_path, capsys):
    more = write(tmp_path / "b1.jsonl", zero_shot([True] * 60))
    assert evaluate.main(["compare", str(two[0]), f"{two[1]},{more}"]) == 0
    printed, said = capsys.readouterr()
    assert "(1 of A and 2 of B) and images. The one is taken to" in " ".join(printed.split())
    assert "Note: description/alpha1 on 'cub' is left out: file 2 of B lacks it." in said
    assert "description" not in printed  # it is in one of B's only
    assert evaluate.main(["compare", str(more), str(two[1])]) == 0
    assert "Note: description/alpha1 on 'cub' is left out: A lacks it." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (zero_shot([1] * 59), "image '59.jpg', label 'wren' is 1 times in the first file and 0"),
        (zero_shot([1] * 60, label="tit"), "times in the first file and"),
        (zero_shot([1] * 60, dataset="food"), "no set and method in common: name on 'cub' in one"),
        ([{"task": "zero_shot"}], r"c.jsonl:1 is not a line of predictions"),
        (zero_shot([2]), r"c.jsonl:1 has task 'zero_shot' and correct 2; expected"),
        ([], "c.jsonl holds no predictions"),
    ],
)
def test_other_data_is_refused(two, tmp_path, capsys, lines, message):
    other = write(tmp_path / "c.jsonl", lines)
    assert evaluate.main(["compare", str(two[0]), str(other)]) == 2
    assert message.replace(r"\.", ".") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["A"], "Give B, a second file of predictions, or --against=METHOD"),
        (["A", "B", "--against=nome"], "one method of A, which has description/alpha1, name"),
        (["A", "A"], "is given twice"),
        (["A", "nothing.jsonl"], "There is no file 'nothing.jsonl'"),
        (["A", "results.json"], "There is no file 'results.json'"),
        (["A", "B", "--output=c.csv"], "is written as JSON; end it in .json"),
    ],
)
def test_mistakes_are_named(two, capsys, given, message):
    places = {"A": str(two[0]), "B": str(two[1])}
    assert evaluate.main(["compare", *(places.get(word, word) for word in given)]) == 2
    assert message in capsys.readouterr().err


def test_answers_from_other_classes_are_refused(two, tmp_path, capsys):
    """The same images with the same labels, among 200 classes and among 10."""
    for name, choices in (("a", "1234abcd"), ("b", "00000000")):
        lines = [line | {"choices": choices} for line in zero_shot([1, 0] * 30)]
        write(tmp_path / f"{name}1.jsonl", lines)
    given = [str(tmp_path / name) for name in ("a1.jsonl", "b1.jsonl")]
    assert evaluate.main(["compare", *given]) == 2
    assert "chosen from different classes, texts or images" in capsys.readouterr().err
    assert evaluate.main(["compare", given[0], str(two[0])]) == 0  # of before there were choices


def test_grounding_by_unlike_protocols_is_refused(tmp_path):
    paths = {}
    for name, protocol in (
        ("a", "truth=any; feature=region"),
        ("b", "truth=merged; feature=region"),
    ):
        lines = [
            line | {"task": "grounding", "method": method, "protocol": protocol + method}
            for method in ("region", "crop")
            for line in zero_shot([1, 0] * 30)
        ]
        paths[name] = read_predictions(write(tmp_path / f"{name}.jsonl", lines))
    with pytest.raises(ValueError, match=r"unlike protocols of grounding.*truth: any or merged"):
        compare_models([paths["a"]], [paths["b"]])
    assert len(compare_models([paths["a"]], [paths["a"]])) == 2
    assert len(compare_methods([paths["a"]], against="crop")) == 1  # the feature may differ
    without = [line | {"task": "grounding", "method": "region"} for line in zero_shot([1, 0] * 30)]
    older = read_predictions(write(tmp_path / "older.jsonl", without))
    assert len(compare_models([paths["a"]], [older])) == 1


def test_a_csv_is_compared_and_a_cell_that_is_too_long_named(two, tmp_path, capsys):
    rows = [json.loads(line) for line in two[1].read_text().splitlines()]
    table, broken = tmp_path / "b.csv", tmp_path / "c.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert evaluate.main(["compare", str(two[0]), str(table)]) == 0
    assert "+33.3" in capsys.readouterr().out
    broken.write_text(table.read_text() + "x" * 200_000 + "\n")
    assert evaluate.main(["compare", str(two[0]), str(broken)]) == 2
    assert "c.csv:121 cannot be read: field larger than" in capsys.readouterr().err


def test_a_file_with_a_comma_in_its_name_is_one_file(two, tmp_path):
    moved = two[1].rename(tmp_path / "b,1.jsonl")
    assert evaluate.main(["compare", str(two[0]), str(moved)]) == 0


def test_bytes_that_are_no_json_are_named(two, tmp_path, capsys):
    (tmp_path / "c.jsonl").write_bytes(b"\x80\x81\n")
    assert evaluate.main(["compare", str(two[0]), str(tmp_path / "c.jsonl")]) == 2
    assert "c.jsonl:1 is not a line of predictions" in capsys.readouterr().err
