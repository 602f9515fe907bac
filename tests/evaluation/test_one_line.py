"""What a watched checkpoint is summed up by."""

from grain_jax.evaluation.one_line import one_line
from grain_jax.results import Result


def top1(dataset, method, value, alpha=None, *bounds):
    return Result(dataset, method, alpha, "top1", value, *bounds)


def test_the_main_metrics_of_each_set_are_in_a_line():
    results = [
        top1("birds", "random", 0.1),
        top1("birds", "name", 0.25, None, 0.2, 0.375),
        Result("birds", "name", None, "per_class", 0.9),
        *(top1("birds", "description", value, alpha) for alpha, value in ((1.0, 0.5), (0.5, 0.75))),
        top1("birds", "swapped_description", 0.99, 1.0),
        Result("dev", "image_to_text", None, "R@1", 0.9),
        Result("dev", "retrieval", None, "mean_R@1", 0.125),
        Result("dev", "model", None, "phrase_accuracy", 0.5),
        Result("dev", "constant_boxes", None, "phrase_accuracy", 0.9),
        Result("headline", "model", None, "unseen_by_description", 0.7),
    ]
    assert one_line(results) == (
        "birds: name 25.0 (20.0-37.5), description at alpha 0.5 75.0; "
        "dev: mean R@1 12.5, Acc@0.5 50.0"
    )


def test_other_methods_stand_in_where_neither_was_measured():
    results = [top1("birds", name, 0.5) for name in ("random", "waffle", "zpe", "cupl")]
    assert one_line(results) == "birds: waffle 50.0, zpe 50.0"
