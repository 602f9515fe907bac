from pathlib import Path

from grain_jax.evaluation.side_by_side import column_titles, side_by_side
from grain_jax.results import Result


def results(value: float, *, described: bool = True) -> list[Result]:
    found = [
        Result("birds", "random", None, "top1", 0.1),
        Result("birds", "name", None, "top1", value, value - 0.02, value + 0.02, 100),
        Result("birds", "name", None, "per_class", value / 2, n=100),
        Result("photographs", "retrieval", None, "mean_R@1", 0.25),
        Result("photographs", "image_to_text", None, "R@1", 0.3),
        Result("photographs", "model", None, "phrase_accuracy", 0.4),
        Result("mine", "name", None, "average", value, value - 0.01, value + 0.01, 3),
        Result("mine", "name", None, "average_expected_sets", 11.0),
    ]
    if described:
        found.append(Result("birds", "description", 0.5, "top1", 0.9))
    return found


def test_each_model_has_a_column_and_averages_are_last():
    table = side_by_side({"a": results(0.5), "b": results(0.75, described=False)})
    assert table.columns == ("set", "method", "metric", "a", "b")
    assert table.rows == (
        ("birds", "random", "top-1", "10.0", "10.0"),
        ("birds", "name", "top-1", "50.0 (48.0-52.0)", "75.0 (73.0-77.0)"),
        ("photographs", "retrieval: both ways", "mean R@1", "25.0", "25.0"),
        ("photographs", "model", "Acc@0.5", "40.0", "40.0"),
        ("birds", "description, alpha 0.5", "top-1", "90.0", "-"),
        ("mine", "name", "average over 3 of 11 sets", "50.0 (49.0-51.0)", "75.0 (74.0-76.0)"),
    )


def test_a_method_says_how_many_classes_have_descriptions():
    counted = [
        Result("birds", "dataset", None, "classes", 10.0),
        Result("birds", "dataset", None, "undescribed_classes", 2.0),
    ]
    table = side_by_side({"a": results(0.5) + counted, "b": results(0.75) + counted})
    rows = [row[1] for row in table.rows]
    assert "description, alpha 0.5 (8 of 10 described)" in rows
    assert "name" in rows
    assert "Classes without descriptions are scored by their name" in table.meaning


def test_a_suite_says_which_metric_is_shown():
    table = side_by_side({"a": results(0.5)}, metrics={"birds": "per_class"}, note="Mind the gap.")
    assert table.rows == (
        ("birds", "random", "top-1", "10.0"),
        ("birds", "name", "mean per class", "25.0"),
        ("mine", "name", "average over 3 of 11 sets", "50.0 (49.0-51.0)"),
    )
    assert table.meaning.endswith("Mind the gap.")


def test_a_mean_over_draws_has_its_spread():
    drawn = [
        Result("birds", "waffle", None, "top1", 0.5, 0.4, 0.6, 100),
        Result("birds", "waffle", None, "top1_draws_sd", 0.0125),
        *(Result("birds", "waffle", None, f"top1_draw{i}", 0.5, n=100) for i in range(3)),
    ]
    table = side_by_side({"a": [*results(0.5), *drawn], "b": results(0.5)})
    cells = {row[1]: row[3:] for row in table.rows if row[0] == "birds"}
    assert cells["waffle: WaffleCLIP"] == ("50.0 (40.0-60.0) (sd 1.2, 3 draws)", "-")
    assert "mean over draws" in table.meaning
    assert "draws" not in side_by_side({"a": results(0.5)}).meaning


def test_models_of_one_name_are_told_apart():
    assert column_titles([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert column_titles([Path("x/a"), Path("y/a"), Path("c")]) == ["x/a", "y/a", "c"]
