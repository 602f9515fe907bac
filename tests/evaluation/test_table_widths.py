"""Tables in any width, on terminals and in pipes: no number is cut, nothing is said twice."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from grain_jax.evaluation.tables import (
    Table,
    print_table,
    result_tables,
    without_equal_columns,
)
from grain_jax.results import Result
from grain_jax.terminal import consoles

ALPHAS = (1.0, 0.75, 0.5, 0.0)
RESULTS = [
    Result("unseen", "random", None, "top1", 0.02),
    *(
        Result("unseen", method, alpha, "top1", 0.749, 0.727, 0.77, 1_500)
        for method in ("name", "description")
        for alpha in ALPHAS
    ),
]


def printed(width: int, *, terminal: bool, results=RESULTS) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    (table,) = result_tables(results)
    print_table(table, console)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_every_number_is_whole_and_within_the_width(width, terminal):
    text = printed(width, terminal=terminal)
    assert max(map(len, text.splitlines())) <= width
    assert len(re.findall(r"\(72\.7-77\.0\)", text)) == len(re.findall(r"\b74\.9\b", text)) == 8
    assert "…" not in text
    for word in ("unseen", "name", "description", *(f"alpha = {alpha:g}" for alpha in ALPHAS)):
        assert word in text


RETRIEVED = [
    *(
        Result("photographs", method, None, f"R@{k}", 0.749, 0.727, 0.77, 1_500)
        for method in ("image_to_text", "text_to_image")
        for k in (1, 5, 10)
    ),
    Result("photographs", "image_to_text", None, "random_R@1", 0.005),
    Result("photographs", "text_to_image", None, "random_R@1", 0.001),
    Result("photographs", "retrieval", None, "mean_R@1", 0.749, 0.727, 0.77),
]

GROUNDED = [
    *(
        Result("photographs", method, None, metric, 0.749, 0.727, 0.77, 1_500)
        for method in ("model", "constant_boxes", "part_boxes")
        for metric in ("box_iou", "box_recall", "phrase_accuracy")
    ),
    Result("photographs", "model", None, "box_recall_upper_bound", 1.0),
]


@pytest.mark.parametrize(("results", "count"), [(RETRIEVED, 6), (GROUNDED, 9)])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_intervals_of_recalls_and_boxes_are_within_the_width(width, results, count):
    text = printed(width, terminal=False, results=results)
    assert max(map(len, text.splitlines())) <= width
    assert len(re.findall(r"\(72\.7-77\.0\)", text)) == len(re.findall(r"\b74\.9\b", text)) == count
    assert "95 % interval (bootstrap over images)" in re.sub(r"\s+", " ", text)


def test_an_interval_stands_beside_its_value_where_there_is_room():
    assert "74.9 (72.7-77.0)" in printed(120, terminal=True)
    stacked = printed(80, terminal=True)
    assert "74.9 (72.7-77.0)" not in stacked
    assert re.search(r"74\.9 │.*\n.*\(72\.7-77\.0\) │", stacked)


@pytest.mark.parametrize("width", [80, 120])
def test_long_methods_are_folded_between_words(width):
    several = [
        *RESULTS,
        *(Result("unseen", "shared_named_description", a, "top1", 0.5, 0.4, 0.6) for a in ALPHAS),
    ]
    text = printed(width, terminal=False, results=several)
    assert max(map(len, text.splitlines())) <= width
    assert "shared_named_description:" in text
    assert "In all rows: set unseen; random 2.0." in text


def test_a_column_of_texts_is_left_and_a_single_row_is_whole():
    table = Table(
        "t", ("set", "method", "images", "b"), (("s", "m", "1", "2"), ("s", "m", "1", "3")), ""
    )
    found, alike = without_equal_columns(table)
    assert found.columns == ("method", "b")
    assert found.rows == (("m", "2"), ("m", "3"))
    assert found.num_texts == 1
    assert alike == ["set s", "images 1"]
    measured = replace(table, columns=("set", "method", "a", "b"))
    assert without_equal_columns(measured)[0].columns == ("method", "a", "b")
    assert without_equal_columns(replace(table, rows=table.rows[:1])) == (
        replace(table, rows=table.rows[:1]), []
    )  # fmt: skip


def test_a_sentence_is_said_below_the_first_table_only():
    file, said = io.StringIO(), set[str]()
    console = Console(file=file, width=80, color_system=None)
    for meaning in ("One thing. Two things.", "Other. Two things."):
        print_table(Table("t", ("a",), (("1",),), meaning, num_texts=1), console, said=said)
    assert re.findall(r"One thing\.|Two things\.|Other\.", file.getvalue()) == [
        "One thing.", "Two things.", "Other."
    ]  # fmt: skip


def test_a_pipe_has_a_fixed_width_unless_columns_says_another(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert consoles()[1].width == 120
    monkeypatch.setenv("COLUMNS", "80")
    assert consoles()[1].width == 80


@pytest.mark.parametrize("width", [80, 120])
def test_where_sets_fit_in_no_form_each_has_a_table_of_its_own(width):
    spread = [
        Result("seen", "random", None, "top1", 0.005),
        *(replace(one, dataset="seen") for one in RESULTS[1:]),
        *(
            result
            for name in ("unseen", "seen")
            for alpha in ALPHAS
            for result in (
                Result(name, "shared_description", alpha, "top1", 0.749, 0.727, 0.77, 1_500),
                Result(name, "shared_description", alpha, "top1_draws_sd", 0.012),
                *(
                    Result(name, "shared_description", alpha, f"top1_draw{k}", 0.749)
                    for k in range(7)
                ),
            )
        ),
        Result("unseen", "waffle", None, "top1", 0.749, 0.727, 0.77, 1_500),
    ]
    text = printed(width, terminal=False, results=[*RESULTS, *spread])
    assert max(map(len, text.splitlines())) <= width
    assert text.count("In all rows: set unseen; random 2.0.") == 1
    assert text.count("In all rows: set seen; random 0.5.") == 1
    assert len(re.findall(r"\b74\.9\b", text)) == 25
    assert len(re.findall(r"sd 1\.2, 7 draws", text)) == 8
    assert text.count("Alpha is the weight") == 1
    if width == 80:  # a line for each number that there is
        assert len(re.findall(r"waffle: WaffleCLIP +│ alpha = 1 ", text)) == 1
