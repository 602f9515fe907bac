"""Many methods: plots and tables of classes of some, tables of all."""

from report_files import (
    mean,
    results_of,
    sections_of,
    write_answers,
    write_results,
    zero_shot_lines,
)

from grain_jax.evaluation.report_page.content import Plot, ReliabilityPlot, all_grids
from grain_jax.evaluation.report_page.evaluations import read_evaluations
from grain_jax.evaluation.report_page.render import report_sections
from grain_jax.evaluation.report_page.short_list import ShortList

MANY = {
    ("name", None): 0.2,
    ("description", 0.5): 0.1,
    **{(f"method{k}", None): k / 10 for k in range(3, 9)},
}
SHOWN = {"name", "description", "method8", "method7", "method6"}


def test_by_name_grains_own_and_the_best_are_shown(tmp_path):
    evaluations = read_evaluations([write_results(tmp_path / "a.json", results_of(MANY))], [])
    listed = ShortList(evaluations)
    assert {name for name, alpha in MANY if listed.has("birds", (name, alpha))} == SHOWN
    assert listed.has("other", ("method3", None))  # of a set without accuracies
    (note,) = listed.notes
    assert "5 of 8 methods" in note
    every = ShortList(evaluations, every=True)
    assert all(every.has("birds", method) for method in MANY)
    assert every.notes == []


def test_plots_and_class_tables_are_of_the_short_list_and_tables_of_all(tmp_path):
    lines, accuracies = [], {}
    for number, (method, alpha) in enumerate(MANY):
        own = zero_shot_lines(number, MANY[method, alpha], method=method, alpha=alpha)
        accuracies[method, alpha] = mean(own)
        lines += own
    files = [write_results(tmp_path / "a.json", results_of(accuracies))]
    answers = [write_answers(tmp_path / "a.jsonl", lines)]
    evaluations, sections = sections_of(files, answers)
    blocks = [block for section in sections for block in section.blocks]
    (plot,) = (block for block in blocks if isinstance(block, Plot))
    assert len(plot.marks) == len([b for b in blocks if isinstance(b, ReliabilityPlot)]) == 5
    by_class = next(grid for grid in all_grids(sections) if "accuracy of each class" in grid.title)
    assert len(by_class.columns) == 2 + 5
    top1 = next(grid for grid in all_grids(sections) if grid.title.startswith("Top-1"))
    assert len(top1.rows) == len(MANY) + 1  # and random
    error = next(grid for grid in all_grids(sections) if grid.title.startswith("Expected"))
    assert len(error.rows) == len(MANY)
    every = report_sections(evaluations, {}, against="name", all_methods=True)
    plots = [b for section in every for b in section.blocks if isinstance(b, ReliabilityPlot)]
    assert len(plots) == len(MANY)
