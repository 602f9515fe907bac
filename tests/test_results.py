import json
from dataclasses import asdict

import pytest

from grain_jax.results import (
    FILE,
    Result,
    append_results,
    from_json,
    from_logged,
    logged,
    read_results,
)

# One of each kind, with the key that metrics.jsonl has had since version 0.1.
KINDS = {
    "pets/random": Result("pets", "random", None, "top1", 0.1),
    "pets/name": Result("pets", "name", None, "top1", 0.5, 0.4, 0.6, 90),
    "pets/name/top5": Result("pets", "name", None, "top5", 0.9, 0.8, 0.95, n=90),
    "pets/description/alpha0.25": Result("pets", "description", 0.25, "top1", 0.5, 0.4, 0.6, 90),
    "pets/description/alpha1/per_class": Result("pets", "description", 1.0, "per_class", 0.5, n=90),
    "pets/images": Result("pets", "dataset", None, "images", 90.0),
    "pets/undescribed_classes": Result("pets", "dataset", None, "undescribed_classes", 3.0),
    "dev/retrieval/image_to_text/R@1": Result("dev", "image_to_text", None, "R@1", 0.5, 0.4, 0.6),
    "dev/retrieval/text_to_image/random_R@1": Result(
        "dev", "text_to_image", None, "random_R@1", 0.1
    ),
    "dev/retrieval/mean_R@1": Result("dev", "retrieval", None, "mean_R@1", 0.5, 0.4, 0.6),
    "dev/retrieval/texts": Result("dev", "retrieval", None, "texts", 40.0),
    "dev/box_recall": Result("dev", "model", None, "box_recall", 0.5, 0.4, 0.6),
    "dev/constant_box_iou": Result("dev", "constant_boxes", None, "box_iou", 0.5),
    "dev/part_phrase_accuracy": Result("dev", "part_boxes", None, "phrase_accuracy", 0.5),
    "headline/alpha": Result("headline", "model", None, "alpha", 0.25),
}


@pytest.mark.parametrize("key", KINDS)
def test_a_key_and_its_record_lead_to_each_other(key):
    assert KINDS[key].key == key
    (found,) = [result for result in from_logged(logged(KINDS.values())) if result.key == key]
    assert found == KINDS[key]
    assert len(from_logged(logged(KINDS.values()))) == len(KINDS)  # bounds are no results


def test_what_is_no_result_is_left_out_and_older_keys_are_read():
    logged_before = {
        "step": 3,
        "loss": 2.0,
        "box_l1": 0.1,
        "note": "text",
        "pets/chance": 0.1,
        "pets/flag": True,
        "dev/box_recall_ceiling": 0.9,
    }
    assert from_logged(logged_before) == [
        Result("pets", "random", None, "top1", 0.1),
        Result("dev", "model", None, "box_recall_upper_bound", 0.9),
    ]


def test_fields_of_later_versions_are_left_out():
    known = KINDS["pets/description/alpha0.25"]
    assert from_json([asdict(known) | {"unit": "%"}]) == [known]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "not a NoneType"),
        ("pets", "not a str"),
        ([3], "3 is not a result"),
        ([{"dataset": "pets", "value": 1.0}], "expected dataset, method, alpha"),
        ([asdict(KINDS["pets/name"]) | {"value": None}], "is not a result"),
        ([asdict(KINDS["pets/name"]) | {"low": "x"}], "is not a result"),
    ],
)
def test_what_is_not_results_is_refused(stored, message):
    with pytest.raises(ValueError, match=message):
        from_json(stored)


def test_a_run_folder_reads_back_by_step_and_the_last_word_counts(tmp_path):
    again = Result("pets", "name", None, "top1", 0.75)
    with (tmp_path / FILE).open("w", encoding="utf-8") as file:
        append_results(file, 20, [KINDS["pets/name"], KINDS["pets/random"]])
        append_results(file, 30, [KINDS["pets/name"]])
        append_results(file, 30, [again])
        file.write('{"step": 20, "unit": "%"}\n')  # of another version
        file.write('{"step": 30, "dataset": "pe')  # cut off by a kill
    lines = [
        {"step": 10, "loss": 1.0, "pets/name": 0.25},  # of a version without records
        {"step": 20, "pets/name": 0.0, "birds/name": 0.5},
        {"step": 25, "loss": 1.0},
    ]
    metrics = "\n".join(map(json.dumps, lines))
    (tmp_path / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    assert read_results(tmp_path) == {
        10: [Result("pets", "name", None, "top1", 0.25)],
        20: [
            KINDS["pets/name"],
            KINDS["pets/random"],
            Result("birds", "name", None, "top1", 0.5),
        ],
        30: [again],
    }
    assert read_results(tmp_path / "none") == {}


def test_alphas_that_share_a_key_are_told_apart(tmp_path):
    both = [Result("pets", "description", a, "top1", a) for a in (1 / 3, 0.333333)]
    with (tmp_path / FILE).open("w", encoding="utf-8") as file:
        append_results(file, 10, both)
    assert read_results(tmp_path) == {10: both}
