"""Classes of a report: won, lost and confused, and paired answers."""

import numpy as np
import pytest
from report_files import (
    mean,
    results_of,
    sections_of,
    write_answers,
    write_results,
    zero_shot_lines,
)

from grain_jax.evaluation.comparison import TASKS, Measure
from grain_jax.evaluation.report_page.content import all_grids


def test_classes_won_and_lost_are_counted_on_the_same_images(two):
    evaluations, sections = sections_of(*two)
    won = [one for one in all_grids(sections) if ": classes won " in one.title]
    assert len(won) == 4  # B against A twice, and description against name in each
    grid = next(one for one in won if "B against A: description" in one.title)
    measure = Measure("zero_shot", "birds", "description/alpha1")
    before, after = (one.answers[measure] for one in evaluations)
    for row in grid.rows:
        word, name = row[0].text, row[1].text
        values = [
            np.mean(
                [hit for hit, label in zip(one.correct, one.labels, strict=True) if label == name]
            )
            for one in (after, before)
        ]
        assert [cell.text for cell in row[3:5]] == [f"{100 * value:.1f}" for value in values]
        assert word == ("won" if values[0] > values[1] else "lost")
    assert not [one for one in won if "name against" in one.title]


def test_confused_pairs_name_the_class_and_what_it_was_taken_for(two):
    _, sections = sections_of(*two)
    grid = next(
        one for one in all_grids(sections) if one.title == "birds, A: the most confused pairs"
    )
    row = next(row for row in grid.rows if row[0].text == "name" and row[1].text == "jay")
    lines = [line for line in zero_shot_lines(5, 0.5) if line["label"] == "jay"]
    wrong = [line for line in lines if line["predicted"] == "tit"]
    assert [cell.text for cell in row[2:]] == [
        "tit",
        str(len(wrong)),
        f"{100 * len(wrong) / len(lines):.1f}",
    ]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_metric_and_title(two, tmp_path, task):
    answers = [
        write_answers(
            tmp_path / f"{name}-{task}.jsonl",
            [line | {"task": task} for line in zero_shot_lines(5, 0.5)],
        )
        for name in "ab"
    ]
    result = results_of({("name", None): mean(zero_shot_lines(5, 0.5))})
    files = [write_results(tmp_path / f"{name}-{task}.json", result) for name in "ab"]
    _, sections = sections_of(files, answers)
    grid = next(grid for grid in all_grids(sections) if grid.title.startswith("Differences"))
    assert grid.rows[0][0].text == f"birds{TASKS[task].title}"
    assert grid.meaning.startswith(f"Value: {TASKS[task].metric} of what is named first")


def test_other_questions_are_left_out_with_the_reason(two, tmp_path):
    lines = zero_shot_lines(5, 0.5)
    lines[3]["image"] = "another.png"
    answers = write_answers(tmp_path / "c.jsonl", lines)
    file = write_results(tmp_path / "c.json", results_of({("name", None): mean(lines)}))
    _, sections = sections_of([two[0][0], file], [two[1][0], answers])
    notes = [note for section in sections for note in section.notes]
    assert any("B against A: name is left out: " in note for note in notes)
    assert any("to other questions: image" in note for note in notes)


def test_the_descriptions_that_decided_stand_beside_each_class(tmp_path):
    """B gets both jays right by the wing; A took one for a tit by its cap, the other by nothing."""

    def lines(predictions):
        return [
            {
                **zero_shot_lines(0, 1.0, method="description", alpha=1.0)[0],
                "image": f"{i}.png",
                "label": "jay",
                "predicted": predicted,
                "correct": float(predicted == "jay"),
                "label_text": ["a blue wing", 0.25],
                "predicted_text": [text, cosine],
            }
            for i, (predicted, text, cosine) in enumerate(predictions)
        ]

    answers = [
        lines([("tit", "a cap", 0.5), ("tit", "a cap", 0.25), ("jay", "a tail", 0.75)]),
        lines([("jay", "a blue wing", 0.5), ("jay", "a blue wing", 0.75), ("jay", "a tail", 0.5)]),
    ]
    files = [
        write_results(tmp_path / f"{k}.json", results_of({("description", 1.0): mean(own)}))
        for k, own in enumerate(answers)
    ]
    given = [write_answers(tmp_path / f"{k}.jsonl", own) for k, own in enumerate(answers)]
    _, sections = sections_of(files, given)
    grid = next(grid for grid in all_grids(sections) if "classes won 1" in grid.title)
    assert grid.columns[:5] == ("", "class", "most similar description", "against", "images")
    assert [cell.text for cell in grid.rows[0][:4]] == [
        *(
            "won",
            "jay",
            "\u201ca blue wing\u201d: 0.62, 2 of 2",
            "\u201ca cap\u201d of tit: 0.38, 2 of 2",
        ),
    ]
    _, swapped = sections_of(files[::-1], given[::-1])
    grid = next(grid for grid in all_grids(swapped) if "lost 1" in grid.title)
    assert [cell.text for cell in grid.rows[0][:3]] == [
        *("lost", "jay", "\u201ca cap\u201d of tit: 0.38, 2 of 2"),
    ]
