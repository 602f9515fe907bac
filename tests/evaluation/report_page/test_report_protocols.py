"""Tables of grounding protocols and of tests of composition."""

from report_files import Page, record, sections_of, write_results

from grain_jax.evaluation.report_page.content import all_grids
from grain_jax.evaluation.report_page.render import html_page

PROTOCOL = {
    "boxes": "predicted",
    "truth": "merged",
    "feature": "region",
    "image_size": 224,
    "resize": "squash",
    "interpolation": "bicubic",
    "prompt": "{}",
    "queries": "every mention",
    "candidates": "the boxes that the model predicts",
}


def grounding_file(path):
    results = [
        *(record("f30k", "region", None, f"R@{k}", k / 20, k / 25, k / 16, 80) for k in (10, 1, 5)),
        record("f30k", "region", None, "pointing", 0.25, 0.2, 0.4, 80),
        record("f30k", "region", None, "queries_used", 7, n=80),
        record("f30k", "region", None, "query_entropy", 0.75, n=80),
        record("f30k", "random", None, "R@1", 0.02, 0.01, 0.04, 80),
        record("f30k", "fitted_box", None, "R@1", 0.125, 0.1, 0.2, 80),
        record("f30k", "decoder", None, "upper_bound", 0.9, 0.8, 0.95, 80),
        record("f30k", "decoder", None, "box_iou", 0.5, n=90),
        record("f30k", "decoder", None, "region_cosine", 0.875, n=20),
        record("f30k", "region", None, "caption_top1", 0.5, 0.4, 0.6, 30),
        record("f30k", "region", None, "caption_random_top1", 0.1, n=30),
        record("f30k", "region", None, "caption_rank", 2.5, n=30),
    ]
    settings = {"format": "flickr30k_entities", "protocols": {"region": PROTOCOL}}
    return write_results(path, results, settings=settings)


def grid_of(sections, title):
    return next(grid for grid in all_grids(sections) if grid.title.startswith(title))


def cells(row):
    return [f"{one.text} ({one.interval})" if one.interval else one.text for one in row]


def test_grounding_has_methods_by_rows_with_their_protocol_and_baselines(tmp_path):
    _, sections = sections_of([grounding_file(tmp_path / "g.json")])
    grid = grid_of(sections, "Grounding of queries")
    assert grid.columns[3:] == (
        *("chosen by", "R@1", "R@5", "R@10", "pointing", "upper bound", "queries"),
    )
    rows = {row[3].text: cells(row) for row in grid.rows}
    assert list(rows) == [
        "region: region feature",
        "fitted_box: best constant box",
        "random: random box",
    ]
    bound = "90.0 (80.0-95.0)"
    assert rows["region: region feature"] == [
        *("f30k", "A", "boxes predicted, merged", "region: region feature", "5.0 (4.0-6.2)"),
        *("25.0 (20.0-31.2)", "50.0 (40.0-62.5)", "25.0 (20.0-40.0)", bound, "80"),
    ]
    assert rows["fitted_box: best constant box"][4:8] == ["12.5 (10.0-20.0)", "-", "-", "-"]
    assert "IoU of at least 0.5 with the rectangle around all of the text's boxes" in grid.meaning
    captions = grid_of(sections, "True captions")
    assert cells(captions.rows[0])[3:] == ["50.0 (40.0-60.0)", "10.0", "2.50", "30"]
    decoder = grid_of(sections, "The decoder's queries")
    assert cells(decoder.rows[0])[2:] == ["50.0", "-", "-", "0.875", "-", "7", "0.750"]
    assert not [grid for grid in all_grids(sections) if grid.title == "Other results"]


def test_tests_of_composition_are_a_table(tmp_path):
    results = [
        record("crepe/swap", "model", None, "accuracy", 0.75, 0.6, 0.85, 40),
        record("crepe", "model", None, "accuracy", 0.625, 0.5, 0.75, 80),
        record("crepe", "model", None, "mean_over_groups", 0.5, 0.4, 0.7, 80),
        record("crepe", "dataset", None, "groups", 2.0),
        record("crepe", "random", None, "accuracy", 0.5),
        record("wino", "model", None, "group", 0.25, 0.1, 0.5, 12),
        record("wino", "random", None, "group", 1 / 6),
    ]
    _, sections = sections_of([write_results(tmp_path / "c.json", results)])
    grid = grid_of(sections, "Captions that differ")
    assert [cells(row) for row in grid.rows] == [
        ["crepe", "swap", "A", "75.0 (60.0-85.0)", "50.0", "40"],
        ["crepe", "all questions", "A", "62.5 (50.0-75.0)", "50.0", "80"],
        ["crepe", "mean over groups", "A", "50.0 (40.0-70.0)", "50.0", "80"],
        ["wino", "group", "A", "25.0 (10.0-50.0)", "16.7", "12"],
    ]
    assert not [grid for grid in all_grids(sections) if grid.title == "Other results"]
    assert "Composition" in Page(html_page("page", sections)).texts


def test_a_protocol_of_another_version_is_shown_as_far_as_it_is_known(tmp_path):
    results = [record("f30k", "region", None, "R@1", 0.5, n=3)]
    settings = {"protocols": {"region": {"boxes": "given", "later": 1}}}
    _, sections = sections_of([write_results(tmp_path / "g.json", results, settings=settings)])
    grid = grid_of(sections, "Grounding of queries")
    assert grid.rows[0][2].text == "boxes given, ?"
