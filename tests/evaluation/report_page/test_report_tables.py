"""Tables of a report: cells, marks in words, sets that stand apart."""

import json
import re

import numpy as np
from report_files import (
    Page,
    grounding_lines,
    record,
    results_of,
    sections_of,
    write_results,
)

from grain_jax.evaluation.report_page.content import all_grids
from grain_jax.evaluation.report_page.evaluations import read_evaluations
from grain_jax.evaluation.report_page.plots import accuracy_plots
from grain_jax.evaluation.report_page.render import html_page, markdown_page, page_title
from grain_jax.evaluation.report_page.short_list import ShortList
from grain_jax.evaluation.statistics import mean_interval


def test_a_cell_in_which_classes_fell_back_to_their_names_says_so(two):
    _, sections = sections_of(two[0])
    grid = next(one for one in all_grids(sections) if one.title.startswith("Top-1"))
    rows = {row[0].text: row[1:] for row in grid.rows}
    assert [cell.mark for cell in rows["description, alpha = 1"]] == ["1 of 3 by name"] * 2
    assert [cell.mark for cell in rows["name"] + rows["random"]] == [""] * 4
    assert "'1 of 3 by name'" in grid.meaning
    assert grid.groups == (("birds", 2),)
    assert grid.columns == ("method", "A", "B")
    evaluations = read_evaluations(*two)
    expected = evaluations[0].get("birds", "description", "top1", 1.0).value
    cell = rows["description, alpha = 1"][0]
    assert cell.text == f"{100 * expected:.1f}"
    assert cell.interval == f"{100 * expected - 5:.1f}-{100 * expected + 4:.1f}"


COSTS = {"birds": {"name": {"texts": 1280, "passes": 1}, "wca": {"texts": 80, "passes": 61}}}


def test_methods_have_what_they_cost_beside_their_accuracy(tmp_path):
    """As a range where sets differ; nothing where the file does not say it."""
    values = {("name", None): 0.5, ("wca", None): 0.75, ("cupl", None): 0.25}
    passes = record("birds", "wca", None, "passes", 61.0, n=60)
    costs = COSTS | {"cats": {"name": {"texts": 80, "passes": 1}}, "dogs": "of a newer version"}
    cats = record("cats", "name", None, "top1", 0.5, n=60)
    one = write_results(tmp_path / "a.json", [*results_of(values), passes, cats], costs=costs)
    evaluations, sections = sections_of([one])
    grids = {grid.title: grid for grid in all_grids(sections)}
    grid = grids["Top-1 accuracy, %"]
    assert grid.columns == ("method", "texts", "passes", "birds", "cats")
    assert {row[0].text: [cell.text for cell in row[1:3]] for row in grid.rows} == {
        "name": ["80-1,280", "1"],
        "wca (random crops)": ["80", "61"],
        "cupl": ["-", "-"],
        "random": ["-", "-"],
    }
    assert "Texts: different ones" in grid.meaning
    assert "Other results" not in grids  # `passes` is in the table
    page = Page(html_page(page_title(evaluations), sections))
    assert "80-1,280" in page.texts
    assert "| method | texts | passes | birds | cats |" in markdown_page("page", sections)


def test_costs_stand_before_the_sets_of_several_files(tmp_path):
    files = []
    for name, more in (("a", {"costs": COSTS}), ("b", {})):
        path = tmp_path / f"{name}.json"
        files.append(write_results(path, results_of({("name", None): 0.5}), **more))
    _, sections = sections_of(files)
    grid = next(one for one in all_grids(sections) if one.title.startswith("Top-1"))
    assert grid.columns == ("method", "texts", "passes", "A", "B")
    assert grid.heads == ("method", "texts", "passes", "birds, A", "birds, B")
    assert [cell.text for cell in grid.rows[0][:3]] == ["name", "1,280", "1"]
    spans = [
        int(attributes["colspan"])
        for _, attributes in Page(html_page("page", sections)).attributes
        if "colspan" in attributes
    ]
    assert spans[:2] == [3, 2]


def test_sets_of_one_name_with_other_images_stand_apart(two, tmp_path):
    sets = {"birds": {"images": {"count": 60, "sha256": "another"}, "classes": None}}
    other = write_results(
        tmp_path / "c.json", results_of({("name", None): 0.5}), zero_shot_sets=sets
    )
    _, sections = sections_of([*two[0], other])
    grid = next(one for one in all_grids(sections) if one.title.startswith("Top-1"))
    assert grid.groups == (("birds (A, B)", 2), ("birds (C)", 1))


def test_a_mean_over_classes_says_what_its_interval_draws(tmp_path):
    results = [
        *results_of({("name", None): 0.5}),
        record("birds", "name", None, "per_class", 0.25, low=0.2, high=0.3, n=60),
    ]
    _, sections = sections_of([write_results(tmp_path / "a.json", results)])
    top1, per_class = (one for one in all_grids(sections) if "ccuracy" in one.title)
    assert "(Wilson, over images)" in top1.meaning
    assert "(Wilson, over images within their classes)" in per_class.meaning
    assert per_class.rows[0][1].interval == "20.0-30.0"


def test_records_without_a_table_of_their_own_are_listed(two):
    _, sections = sections_of(two[0])
    other = next(one for one in all_grids(sections) if one.title == "Other results")
    assert [(row[2].text, row[4].text) for row in other.rows] == [("newer_metric", "12.5")] * 2


def test_draws_of_random_texts_are_their_spread_and_no_further_results(tmp_path):
    results = [
        *results_of({("waffle", None): 0.5}),
        record("birds", "waffle", None, "per_class", 0.25, n=60),
        record("birds", "waffle", None, "top1_draws_sd", 0.0125),
        *(record("birds", "waffle", None, f"top1_draw{i}", 0.5, n=60) for i in range(7)),
    ]
    _, sections = sections_of([write_results(tmp_path / "a.json", results)])
    grids = {grid.title: grid for grid in all_grids(sections)}
    assert "Other results" not in grids
    grid = grids["Top-1 accuracy, %"]
    spreads = {row[0].text: row[1].spread for row in grid.rows}
    assert spreads == {"waffle: WaffleCLIP": "sd 1.2, 7 draws", "random": ""}
    assert "mean over draws" in grid.meaning
    assert "mean over draws" not in grids["Mean accuracy per class, %"].meaning
    assert "sd 1.2, 7 draws" in Page(html_page("page", sections)).texts
    assert "50.0 (45.0-54.0) (sd 1.2, 7 draws)" in markdown_page("page", sections)


def test_bounds_of_other_results_are_told_from_signs_and_exponents(tmp_path):
    results = [record("birds", "newer", None, "gap", -0.5, -0.75, 1.5e-17, 60)]
    _, sections = sections_of([write_results(tmp_path / "a.json", results)])
    other = next(one for one in all_grids(sections) if one.title == "Other results")
    assert other.rows[0][4].interval == "-0.75 to 1.5e-17"


def test_recall_and_phrases_get_intervals_from_their_answers(two):
    _, sections = sections_of(*two)
    grid = next(one for one in all_grids(sections) if one.title == "Grounding, %")
    cell = grid.rows[0][grid.columns.index("Acc@0.5")]
    lines = grounding_lines()
    low, high = mean_interval(
        np.array([line["correct"] for line in lines]),
        np.array([int(line["image"][5:]) for line in lines]),
    )
    assert cell.interval == f"{100 * low:.1f}-{100 * high:.1f}"
    _, without = sections_of(two[0])
    grid = next(one for one in all_grids(without) if one.title == "Grounding, %")
    assert grid.rows[0][grid.columns.index("Acc@0.5")].interval == ""


def test_a_file_of_an_older_version_is_read(tmp_path):
    """Results as keys and values, and nothing on sets, settings or versions."""
    path = tmp_path / "old.json"
    path.write_text(
        json.dumps(
            {
                "results": {
                    "birds/name": 0.5,
                    "birds/name/low": 0.4,
                    "birds/name/high": 0.6,
                    "birds/images": 10,
                }
            }
        )
    )
    evaluations, sections = sections_of([path])
    page = Page(html_page(page_title(evaluations), sections))
    assert "50.0" in page.texts
    assert "40.0-60.0" in page.texts
    assert "needs --predictions" in page.text


def test_what_is_not_a_number_is_said_in_words(tmp_path):
    results = results_of({("name", None): 0.5})
    results.append(record("birds", "description", 1.0, "top1", float("nan"), float("nan"), 0.5, 60))
    results.append(record("val", "model", None, "box_iou", float("inf")))
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"results": results}))
    evaluations, sections = sections_of([path])
    page = Page(html_page(page_title(evaluations), sections))
    assert page.texts.count("not a number") == 2
    assert not re.search(r"\b(nan|inf)\b", page.text)
    (plot,) = accuracy_plots(evaluations, ShortList(evaluations))
    assert [mark.label for mark in plot.marks] == ["name"]


def test_methods_that_were_left_out_are_listed_in_full(tmp_path):
    lacking = {"cupl": ["texts"], "knn": ["labelled images", "a bank"]}
    missing = {"birds": lacking, "seen": {"cupl": ["texts"]}}
    path = write_results(tmp_path / "a.json", results_of({("name", None): 0.5}), left_out=missing)
    _, sections = sections_of([path])
    grid = next(one for one in all_grids(sections) if one.title == "Methods that were left out")
    assert [tuple(cell.text for cell in row) for row in grid.rows] == [
        ("cupl", "A", "texts", "birds, seen"),
        ("knn: kNN + name (labelled images)", "A", "labelled images and a bank", "birds"),
    ]
