"""The page on results: what is in it, escaped, marked in words, and readable."""

import csv
import io
import itertools
import json
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from grain_jax.evaluation import report_page
from grain_jax.evaluation.comparison import Measure
from grain_jax.evaluation.report_page.content import Gallery, all_grids
from grain_jax.evaluation.report_page.evaluations import read_evaluations
from grain_jax.evaluation.report_page.gallery import best_median_worst, read_images
from grain_jax.evaluation.report_page.plots import accuracy_plots, axis_ticks
from grain_jax.evaluation.report_page.render import (
    csv_table,
    html_page,
    markdown_page,
    page_title,
    report_sections,
)
from grain_jax.evaluation.statistics import mean_interval
from grain_jax.results import Result
from grain_jax.visualize.canvas import contrast

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


@pytest.fixture
def page(two, photos):
    evaluations, sections = sections_of(*two, {"val": photos})
    return Page(html_page(page_title(evaluations), sections))


def test_the_page_loads_nothing_and_runs_nothing(page):
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    for tag, attributes in page.attributes:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert value.startswith(("data:image/jpeg;base64,", "#section")), value
            assert "url(" not in (value or "")
    policy = next(a["content"] for _, a in page.attributes if "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_texts_of_the_files_are_shown_as_they_are(page):
    assert NASTY in page.texts  # a class
    assert any(f"phrase 0 of {NASTY}" in text for text in page.texts)
    for expected in ("A: demo, step 7", "settings: alphas", "[1.0, 0.5]", "≠ versions: jax"):
        assert expected in page.texts


def test_every_section_is_there_and_can_be_reached(page):
    titles = [a["id"] for tag, a in page.attributes if tag == "h2"]
    links = [a["href"] for tag, a in page.attributes if tag == "a"]
    assert links == [f"#{title}" for title in titles]
    for title in ("Zero-shot classification", "Probabilities", "Retrieval", "Grounding"):
        assert page.texts.count(title) >= 2


def test_wide_tables_scroll_in_a_region_of_their_own(page):
    inside = 0
    for tag, attributes in page.attributes:
        if tag == "table":
            assert inside
        inside = tag == "div" and attributes.get("class") == "table"
        if inside:
            assert attributes["tabindex"] == "0"
    style = stylesheet()
    assert re.search(r"\.table \{[^}]*overflow: auto", style)


def test_a_cell_in_which_classes_fell_back_to_their_names_says_so(two):
    _, sections = sections_of(two[0])
    grid = next(one for one in all_grids(sections) if one.title.startswith("Top-1"))
    rows = {row[0].text: row[1:] for row in grid.rows}
    assert [cell.mark for cell in rows["description, alpha = 1"]] == ["1 of 3 by name"] * 2
    assert [cell.mark for cell in rows["name"] + rows["random"]] == [""] * 4
    assert "'1 of 3 by name'" in grid.meaning
    assert grid.groups == (("birds", 2),)
    assert grid.columns == ("method", "A", "B")
    evaluations = read_evaluations(*two)
    expected = evaluations[0].get("birds", "description", "top1", 1.0).value
    cell = rows["description, alpha = 1"][0]
    assert cell.text == f"{100 * expected:.1f}"
    assert cell.interval == f"{100 * expected - 5:.1f}-{100 * expected + 4:.1f}"


def test_sets_of_one_name_with_other_images_stand_apart(two, tmp_path):
    sets = {"birds": {"images": {"count": 60, "sha256": "another"}, "classes": None}}
    other = write_results(
        tmp_path / "c.json", results_of({("name", None): 0.5}), zero_shot_sets=sets
    )
    _, sections = sections_of([*two[0], other])
    grid = next(one for one in all_grids(sections) if one.title.startswith("Top-1"))
    assert grid.groups == (("birds (A, B)", 2), ("birds (C)", 1))


def test_records_without_a_table_of_their_own_are_listed(two):
    _, sections = sections_of(two[0])
    other = next(one for one in all_grids(sections) if one.title == "Other results")
    assert [(row[2].text, row[4].text) for row in other.rows] == [("newer_metric", "12.5")] * 2


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


def test_probabilities_are_set_against_accuracies(two):
    _, sections = sections_of(*two)
    grid = next(one for one in all_grids(sections) if one.title.startswith("Expected calibration"))
    accuracy = mean(zero_shot_lines(5, 0.5))
    row = next(row for row in grid.rows if row[1].text == "name" and row[2].text == "A")
    assert [cell.text for cell in row[3:]] == [
        f"{100 * abs(0.7 - accuracy):.1f}",
        "70.0",
        f"{100 * accuracy:.1f}",
        "60",
    ]


def test_other_questions_are_left_out_with_the_reason(two, tmp_path):
    lines = zero_shot_lines(5, 0.5)
    lines[3]["image"] = "another.png"
    answers = write_answers(tmp_path / "c.jsonl", lines)
    file = write_results(tmp_path / "c.json", results_of({("name", None): mean(lines)}))
    _, sections = sections_of([two[0][0], file], [two[1][0], answers])
    notes = [note for section in sections for note in section.notes]
    assert any("B against A: name is left out: " in note for note in notes)
    assert any("to other questions: image" in note for note in notes)


def test_recall_and_phrases_get_intervals_from_their_answers(two):
    _, sections = sections_of(*two)
    grid = next(one for one in all_grids(sections) if one.title == "Grounding, %")
    cell = grid.rows[0][grid.columns.index("Acc@0.5")]
    lines = grounding_lines()
    low, high = mean_interval(
        np.array([line["correct"] for line in lines]),
        np.array([int(line["image"][5:]) for line in lines]),
    )
    assert cell.interval == f"{100 * low:.1f}-{100 * high:.1f}"
    _, without = sections_of(two[0])
    grid = next(one for one in all_grids(without) if one.title == "Grounding, %")
    assert grid.rows[0][grid.columns.index("Acc@0.5")].interval == ""


def test_a_file_of_an_older_version_is_read(tmp_path):
    """Results as keys and values, and nothing on sets, settings or versions."""
    path = tmp_path / "old.json"
    path.write_text(
        json.dumps(
            {
                "results": {
                    "birds/name": 0.5,
                    "birds/name/low": 0.4,
                    "birds/name/high": 0.6,
                    "birds/images": 10,
                }
            }
        )
    )
    evaluations, sections = sections_of([path])
    page = Page(html_page(page_title(evaluations), sections))
    assert "50.0" in page.texts
    assert "40.0-60.0" in page.texts
    assert "needs --predictions" in page.text


def test_what_is_not_a_number_is_said_in_words(tmp_path):
    results = results_of({("name", None): 0.5})
    results.append(record("birds", "description", 1.0, "top1", float("nan"), float("nan"), 0.5, 60))
    results.append(record("val", "model", None, "box_iou", float("inf")))
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"results": results}))
    evaluations, sections = sections_of([path])
    page = Page(html_page(page_title(evaluations), sections))
    assert page.texts.count("not a number") == 2
    assert not re.search(r"\b(nan|inf)\b", page.text)
    (plot,) = accuracy_plots(evaluations)
    assert [mark.label for mark in plot.marks] == ["name"]


def test_marks_are_named_and_shaped_and_stand_where_the_values_are(two):
    (plot,) = accuracy_plots(read_evaluations(two[0], []))
    assert [(mark.label, mark.letter) for mark in plot.marks] == [
        *(("name", letter) for letter in "AB"),
        *(("description, alpha = 1", letter) for letter in "AB"),
    ]
    assert len({mark.shape for mark in plot.marks}) == 2
    (first, low), (last, high) = plot.ticks[0], plot.ticks[-1]
    for mark in plot.marks:
        value = float(mark.text.partition(" ")[0])
        expected = first + (last - first) * (value - float(low)) / (float(high) - float(low))
        assert mark.place == pytest.approx(expected, abs=0.2)
        assert mark.low < mark.place < mark.high


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.72, 0.77), (0.981, 0.983), (1.0, 1.0), (0.0, 0.0), (0.3, 0.3)]
)
def test_ticks_are_few_and_hold_the_values(low, high):
    ticks = axis_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low <= high <= ticks[-1] <= 1
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_the_gallery_has_the_best_the_median_and_the_worst(two, photos):
    evaluations, sections = sections_of(*two, {"val": photos})
    galleries = [b for section in sections for b in section.blocks if isinstance(b, Gallery)]
    assert [one.title for one in galleries] == ["val, A", "val, B"]
    shown = [(image.heading, image.name) for image in galleries[0].images]
    assert shown == [
        *(("Best", f"photo{i}") for i in (8, 7, 6)),
        *(("Median", f"photo{i}") for i in (5, 4, 3)),
        *(("Worst", f"photo{i}") for i in (2, 1, 0)),
    ]
    image = galleries[0].images[0]
    assert (image.width, image.height) == (60, 40)
    assert image.phrases[0].predicted_xyxy == (0.1, 0.2, 0.5, 0.6)
    assert image.phrases[0].true_xyxy == ((0.1, 0.2, 0.6, 0.7),)
    page = Page(html_page(page_title(evaluations), sections))
    rectangles = [a for tag, a in page.attributes if tag == "rect" and a["class"] == "predicted"]
    assert len(rectangles) == 2 * 9 * 2
    place = [rectangles[0][name] for name in ("x", "y", "width", "height")]
    assert place == ["10.0%", "20.0%", "40.0%", "40.0%"]
    assert page.text.count("right") >= 8


def test_few_images_are_shown_once(two):
    evaluations = read_evaluations(*two)
    answers = evaluations[0].answers[Measure("grounding", "val", "phrase")]
    answers.iou[:] = [None] * 14 + answers.iou[14:]
    chosen = best_median_worst(answers)
    assert [(heading, one.image) for heading, one in chosen] == [
        ("Best", "photo8"),
        ("Best", "photo7"),
    ]


def test_a_centre_crop_is_shown_as_the_model_saw_it(two, photos):
    report = json.loads(two[0][0].read_text())
    report["preprocessing"]["resize"] = "crop"
    two[0][0].write_text(json.dumps(report))
    _, sections = sections_of(*two, {"val": photos})
    first, second = (b for s in sections for b in s.blocks if isinstance(b, Gallery))
    assert (first.images[0].width, first.images[0].height) == (40, 40)
    assert (second.images[0].width, second.images[0].height) == (60, 40)


def test_images_are_read_from_their_folder_alone(tmp_path, photos):
    (tmp_path / "secret.png").write_bytes(b"x")
    names = ["photo1", "photo2.png", "../secret.png", "../secret", "/etc/hostname", "a\0b", "no"]
    assert sorted(read_images(photos, "val", names)) == ["photo1", "photo2.png"]


def test_missing_and_broken_images_are_named(two, photos):
    (photos / "photo8.png").unlink()
    (photos / "photo7.png").write_bytes(b"not an image")
    _, sections = sections_of(*two, {"val": photos})
    notes = " ".join(note for section in sections for note in section.notes)
    assert "'photo8' of val, A is not in" in notes
    assert "'photo7' of val, A is left out" in notes


@pytest.mark.parametrize("name", ["birds", "other"])
def test_a_set_without_grounding_has_no_gallery(two, photos, name):
    with pytest.raises(ValueError, match=f"'{name}', and the predictions have boxes .* on val"):
        sections_of(*two, {name: photos})


def test_another_folder_of_images_is_refused(two, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"None of the images of 'val' is in .*'photo8'"):
        sections_of(*two, {"val": tmp_path / "empty"})
    with pytest.raises(ValueError, match="There is no folder"):
        sections_of(*two, {"val": tmp_path / "nowhere"})


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


def stylesheet():
    return (resources.files(report_page) / "page.css").read_text(encoding="utf-8")


def test_every_colour_can_be_read_on_what_is_behind_it():
    style = stylesheet()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style))
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", style)) == set(colours.values())
    texts = set(re.findall(r"(?<![-\w])(?:color|fill): var\(--(\w+)\)", style)) - {"rim"}
    behind = set(re.findall(r"background: var\(--(\w+)\)", style))
    assert {"ink", "faint", "note", "mark"} <= texts
    assert behind == {"paper", "panel"}
    for front, back in itertools.product(texts, behind):
        assert contrast(colours[front], colours[back]) >= 4.5, (front, back)
    assert contrast(colours["rim"], colours["mark"]) >= 4.5  # a number on its plate
    for line in ("mark", "ink"):  # boxes on their rim
        assert contrast(colours[line], colours["rim"]) >= 4.5


def test_columns_give_way_to_a_narrow_window():
    minima = re.findall(r"minmax\((.+?), 1fr\)", stylesheet())
    assert len(minima) == 3
    assert all(minimum.startswith("min(100%, ") for minimum in minima)
