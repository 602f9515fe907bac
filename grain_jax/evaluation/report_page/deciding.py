"""The descriptions that are most similar to the images that a class won or lost."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from grain_jax.evaluation.comparison import Answer
from grain_jax.evaluation.report_page.evaluations import AnswerDetails

SHOWN = 2  # descriptions of a cell
MEANING = (
    "Most similar description: of the predicted class, to the image or to its best region, with "
    "the mean cosine and the number of images, over those that are more right (won) or less "
    "(lost); 'of' names a class that it was mistaken for. 'Against': the same images by what it is "
    "compared with."
)


def has_texts(answers: AnswerDetails) -> bool:
    """Whether any answer says which description was most similar."""
    return any(text is not None for text in answers.label_text)


def deciding_cells(
    name: str,
    before: AnswerDetails,
    after: AnswerDetails,
    change: Float[np.ndarray, "N"],
    *,
    won: bool,
) -> tuple[str, str]:
    """By the value and by what it is compared with; "-" where that is not known.

    `change`: how much more right `after` is of each of the questions of `before`.
    """
    rows = [
        row
        for row, label in enumerate(before.labels)
        if label == name and (change[row] > 0 if won else change[row] < 0)
    ]
    asked = [before.questions[row] for row in rows]
    return _decided(after, asked), _decided(before, asked)


def _decided(answers: AnswerDetails, asked: Sequence[Answer]) -> str:
    place = {question: row for row, question in enumerate(answers.questions)}
    found: dict[tuple[str, str], list[float]] = {}
    for row in (place[question] for question in asked):
        label, predicted = answers.labels[row], answers.predicted[row]
        if (text := answers.predicted_text[row]) is not None and predicted is not None:
            other = "" if predicted == label else predicted
            found.setdefault((text[0], other), []).append(text[1])
    most = Counter({key: len(cosines) for key, cosines in found.items()}).most_common(SHOWN)
    parts = [
        f"\u201c{text}\u201d{f' of {other}' if other else ''}: "
        f"{np.mean(found[text, other]):.2f}, {count} of {len(asked)}"
        for (text, other), count in most
    ]
    return "; ".join(parts) or "-"
