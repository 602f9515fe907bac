"""Two evaluations of the same images, and photographs for their gallery."""

import numpy as np
import pytest
from PIL import Image
from report_files import (
    grounding_lines,
    mean,
    record,
    results_of,
    write_answers,
    write_results,
    zero_shot_lines,
)


@pytest.fixture
def two(tmp_path):
    """A and B on the same images, by name and by description, with all answers."""
    evaluations, answers = [], []
    for name, seed, rate in (("a", 0, 0.4), ("b", 1, 0.8)):
        by_name = zero_shot_lines(5, 0.5)
        described = zero_shot_lines(seed, rate, method="description", alpha=1.0)
        grounded = grounding_lines()
        accuracy = float(np.mean([line["correct"] for line in grounded]))
        results = [
            *results_of({("name", None): mean(by_name), ("description", 1.0): mean(described)}),
            record("val", "model", None, "box_iou", 0.4, n=18),
            record("val", "model", None, "phrase_accuracy", accuracy, n=18),
            record("val", "image_to_text", None, "R@1", 0.25, n=40),
            record("val", "image_to_text", None, "R@10", 0.5, n=40),
            record("val", "image_to_text", None, "random_R@1", 0.025),
            record("val", "model", None, "newer_metric", 12.5),
        ]
        sets = {"birds": {"images": {"count": 60, "sha256": "0123456789"}, "classes": None}}
        more = {"zero_shot_sets": sets, "settings": {"alphas": [1.0, 0.5]}}
        more |= {"preprocessing": {"resize": "squash"}, "versions": {"jax": f"0.{seed}"}}
        evaluations.append(write_results(tmp_path / f"{name}.json", results, **more))
        lines = [*by_name, *described, *grounded]
        answers.append(write_answers(tmp_path / f"{name}.jsonl", lines))
    return evaluations, answers


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        Image.new("RGB", (60, 40), (25 * i, 90, 120)).save(folder / f"photo{i}.png")
    return folder
