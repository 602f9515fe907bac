"""A report as Markdown and CSV."""

import csv
import io
import re

from report_files import (
    results_of,
    sections_of,
    write_results,
)

from grain_jax.evaluation.report_page.content import all_grids
from grain_jax.evaluation.report_page.evaluations import read_evaluations
from grain_jax.evaluation.report_page.render import (
    csv_table,
    markdown_page,
    page_title,
)


def test_markdown_has_the_same_tables_with_markup_escaped(two, photos):
    evaluations, sections = sections_of(*two, {"val": photos})
    text = markdown_page(page_title(evaluations), sections)
    assert "\\<script\\>alert(1)\\</script\\>\\|\\`x\\`" in text
    assert not re.search(r"(?<!\\)<", text)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == len(all_grids(sections))
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, table
    assert "| birds, A | birds, B |" in text
    assert "1 of 3 by name" in text


def test_csv_has_every_record(two):
    evaluations = read_evaluations(two[0], [])
    rows = list(csv.DictReader(io.StringIO(csv_table(evaluations))))
    assert len(rows) == sum(len(one.results) for one in evaluations)
    first = evaluations[0].results[4]
    assert rows[4]["evaluation"] == "A"
    assert rows[4]["method"] == first.method
    assert float(rows[4]["value"]) == first.value
    assert rows[4]["step"] == "7"
    assert rows[4]["split"] == ""


def test_csv_has_what_the_method_of_a_record_costs(tmp_path):
    costs = {"birds": {"name": {"texts": 80, "passes": 1}}}
    path = write_results(tmp_path / "a.json", results_of({("name", None): 0.5}), costs=costs)
    rows = list(csv.DictReader(io.StringIO(csv_table(read_evaluations([path], [])))))
    known = {(row["method"], row["texts"], row["passes"]) for row in rows}
    assert known == {("name", "80", "1"), ("random", "", ""), ("dataset", "", "")}


def test_a_key_stays_findable_in_markdown(tmp_path):
    path = write_results(tmp_path / "a.json", results_of({("name_and_regions", 0.5): 0.5}))
    _, sections = sections_of([path])
    text = markdown_page("_x_", sections)
    assert text.startswith("# \\_x\\_\n")
    assert "| name_and_regions, alpha = 0.5 |" in text
