"""Result files and predictions of two made-up evaluations, and a reader of their page."""

import json
from html.parser import HTMLParser
from importlib import resources

import numpy as np

from grain_jax.evaluation import report_page
from grain_jax.evaluation.report_page.evaluations import read_evaluations
from grain_jax.evaluation.report_page.render import report_sections
from grain_jax.results import Result

NASTY = "<script>alert(1)</script>|`x`"
CLASSES = (NASTY, "jay", "tit")
VOID = {"meta", "img", "br", "link"}


def record(dataset, method, alpha, metric, value, low=None, high=None, n=None):
    """A result as its file has it."""
    found = Result(dataset, method, alpha, metric, value, low, high, n)
    return {**found.__dict__}


def results_of(accuracies, *, undescribed=1, count=60):
    """Records of one set: method and alpha -> accuracy."""
    found = [
        record("birds", "random", None, "top1", 1 / 3),
        record("birds", "dataset", None, "images", count),
        record("birds", "dataset", None, "classes", 3),
        record("birds", "dataset", None, "undescribed_classes", undescribed),
    ]
    for (method, alpha), value in accuracies.items():
        found.append(
            record("birds", method, alpha, "top1", value, value - 0.05, value + 0.04, count)
        )
    return found


def write_results(path, results, **more):
    report = {"checkpoint": "/runs/demo", "step": 7, "data": "birds", "results": results, **more}
    path.write_text(json.dumps(report), encoding="utf-8")
    return path


def write_answers(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def zero_shot_lines(seed, rate, *, method="name", alpha=None):
    """60 answers about three classes, and how many are right."""
    generator = np.random.default_rng(seed)
    lines = []
    for i in range(60):
        label = CLASSES[i % 3]
        right = generator.random() < rate
        predicted = label if right else CLASSES[(i + 1) % 3]
        lines.append(
            {
                "task": "zero_shot",
                "set": "birds",
                "method": method,
                "alpha": alpha,
                "image": f"{i}.png",
                "label": label,
                "predicted": predicted,
                "score": 0.3,
                "correct": float(right),
                "probability": 0.7,
                "choices": "abc",
            }
        )
    return lines


def mean(lines):
    return float(np.mean([line["correct"] for line in lines]))


def grounding_lines(count=9):
    return [
        {
            "task": "grounding",
            "set": "val",
            "method": "phrase",
            "image": f"photo{i}",
            "text": f"phrase {j} of {NASTY}",
            "score": 0.4,
            "correct": float(i / count >= 0.5),
            "iou": i / count,
            "query": j,
            "box_xyxy": [0.1, 0.2, 0.5, 0.6],
            "true_xyxy": [[0.1, 0.2, 0.6, 0.7]],
        }
        for i in range(count)
        for j in range(2)
    ]


class Page(HTMLParser):
    """Tags, attributes and texts of a page; fails where elements are not nested properly."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(data.strip())

    @property
    def text(self):
        return " ".join(self.texts)


def sections_of(files, answers=(), images=None, against="name"):
    evaluations = read_evaluations(files, answers)
    return evaluations, report_sections(evaluations, images or {}, against=against)


def stylesheet():
    return (resources.files(report_page) / "page.css").read_text(encoding="utf-8")
