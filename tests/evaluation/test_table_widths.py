"""Tables on terminals of any width and in pipes: no number is cut."""

import io
import re

import pytest
from rich.console import Console

from grain_jax.evaluation.tables import print_table, result_tables
from grain_jax.results import Result

ALPHAS = (1.0, 0.75, 0.5, 0.0)
RESULTS = [
    Result("unseen", "random", None, "top1", 0.02),
    *(
        Result("unseen", method, alpha, "top1", 0.749, 0.727, 0.77, 1_500)
        for method in ("name", "description")
        for alpha in ALPHAS
    ),
]


def printed(width: int, *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    (table,) = result_tables(RESULTS)
    print_table(table, console)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_every_number_is_whole_and_within_the_terminal(width):
    text = printed(width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    assert len(re.findall(r"\(72\.7-77\.0\)", text)) == len(re.findall(r"\b74\.9\b", text)) == 8
    assert "…" not in text
    for word in ("unseen", "name", "description", *(f"alpha = {alpha:g}" for alpha in ALPHAS)):
        assert word in text


def test_an_interval_stands_beside_its_value_where_there_is_room():
    assert "74.9 (72.7-77.0)" in printed(140, terminal=True)
    stacked = printed(100, terminal=True)
    assert "74.9 (72.7-77.0)" not in stacked
    assert re.search(r"74\.9 │.*\n.*\(72\.7-77\.0\) │", stacked)


def test_a_line_of_a_pipe_has_a_whole_row():
    text = printed(20, terminal=False)
    rows = [line for line in text.splitlines() if "unseen" in line]
    assert [line.count("74.9 (72.7-77.0)") for line in rows] == [4, 4]
