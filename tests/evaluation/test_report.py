import hashlib
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from toy_encoder import ToySource, record, toy_encoder

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.records import ZeroShotSet
from grain_jax.data.tfds_data_source import TfdsDataSource
from grain_jax.data.transforms import decode_image
from grain_jax.evaluation import report
from grain_jax.evaluation.details import ResultDetails, describe_set
from grain_jax.evaluation.tables import print_results, result_tables, results_at_step
from grain_jax.results import FILE, append_results, from_logged, read_results
from grain_jax.visualize import grounding_sheet as make_images
from grain_jax.visualize.curves import curve_panels, draw_curves, read_metrics

RESULTS = from_logged(
    {
        "seen/random": 0.005,
        "seen/name": 0.25,
        "seen/description/alpha1": 0.1,
        "seen/description/alpha1/low": 0.08,
        "seen/description/alpha1/high": 0.12,
        "seen/description/alpha1/top5": 0.3,
        "seen/description/alpha0": 0.9,
        "seen/classes": 200.0,
        "unseen/random": 0.02,
        "unseen/description/alpha0": 0.875,
        "dev/box_iou": 0.55,
        "dev/box_recall": 0.6,
        "dev/box_recall_upper_bound": 0.95,
        "dev/phrase_accuracy": 0.5,
        "dev/constant_box_iou": 0.3,
        "dev/constant_box_recall": 0.2,
        "dev/constant_phrase_accuracy": 0.1,
        **{f"dev/retrieval/image_to_text/R@{k}": k / 100 for k in (1, 5, 10)},
        **{f"dev/retrieval/text_to_image/R@{k}": k / 50 for k in (1, 5, 10)},
        "dev/retrieval/mean_R@1": 0.015,
        "dev/retrieval/image_to_text/random_R@1": 0.001,
        "dev/retrieval/text_to_image/random_R@1": 0.002,
        "dev/retrieval/images": 1_000.0,
        "dev/retrieval/texts": 4_990.0,
        "headline/alpha": 0.0,
        "headline/unseen_by_description": 0.875,
    }
)


def pixels(path) -> np.ndarray:
    return decode_image(path.read_bytes())


def test_tables_hold_every_kind_of_result():
    zero_shot, grounding, retrieval = result_tables(RESULTS)
    assert zero_shot.columns == ("set", "method", "alpha = 1", "alpha = 0", "random")
    assert zero_shot.rows == (
        ("seen (200 classes)", "name", "25.0", "-", "0.5"),
        ("seen (200 classes)", "description", "10.0 (8.0-12.0)", "90.0", "0.5"),
        ("unseen", "description", "-", "87.5", "2.0"),
    )
    assert grounding.rows == (
        ("dev", "model", "55.0", "60.0", "50.0", "95.0"),
        ("dev", "constant_boxes", "30.0", "20.0", "10.0", "95.0"),
    )
    assert retrieval.rows == (
        ("dev", "image_to_text: 1000 images to their texts", "1.0", "5.0", "10.0", "0.1"),
        ("dev", "text_to_image: 4990 texts to their images", "2.0", "10.0", "20.0", "0.2"),
    )
    for table in (zero_shot, grounding, retrieval):
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert table.meaning
    assert result_tables([]) == []


def test_rows_by_description_say_how_many_classes_have_one():
    results = {
        "pets/random": 0.01,
        "pets/classes": 100.0,
        "pets/undescribed_classes": 88.0,
        "pets/name": 0.5,
        "pets/description/alpha1": 0.5,
        "pets/name_and_regions/alpha0.5": 0.5,
    }
    (table,) = result_tables(from_logged(results))
    assert [row[1] for row in table.rows] == [
        "name",
        "description (12 of 100 described)",
        "name_and_regions (12 of 100 described)",
    ]
    assert "without descriptions are scored by their name" in table.meaning
    (table,) = result_tables(from_logged(results | {"pets/undescribed_classes": 0.0}))
    assert [row[1] for row in table.rows] == ["name", "description", "name_and_regions"]
    assert "without descriptions" not in table.meaning


def printed(width: int, **options) -> list[str]:
    console = Console(file=io.StringIO(), width=width, **options)
    print_results(RESULTS, console, headline="Unseen: 87.5 %")
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_nothing_is_wider_than_the_console_in_a_file_or_on_a_terminal(width):
    for options in ({}, {"force_terminal": True, "color_system": None, "legacy_windows": False}):
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in printed(width, **options)]
        assert max(map(len, lines)) <= width
        assert lines[-1] == "Unseen: 87.5 %"


def test_what_all_rows_have_is_said_once_above():
    lines = printed(120)
    (above,) = [line for line in lines if "recall upper bound 95.0" in line]
    assert above == "In all rows: split dev; recall upper bound 95.0."
    (row,) = [line for line in lines if "constant_boxes" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "constant_boxes", "30.0", "20.0", "10.0"
    ]  # fmt: skip


def test_a_table_reads_back_from_markdown():
    table = result_tables(RESULTS)[0]
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert cells[0] == table.columns
    assert tuple(cells[2:]) == table.rows


def write_metrics(path):
    lines = [
        {"step": 1, "loss": 9.0},
        {"step": 2, "loss": 5.0, "images_per_second": 10.0},
        {"step": 1, "loss": 8.0, "contrastive": 3.0},  # the run was killed and went on
        {"step": 2, "dev/box_recall": 0.1},
        {"step": 3, "dev/box_recall": 0.2, "note": "text", "skipped": True},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 4, "lo'
    path.write_text(text)


def test_metrics_are_read_by_step_and_the_last_word_counts(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl")
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [entry["step"] for entry in records] == [1, 2, 3]
    assert records[0] == {"step": 1, "loss": 8.0, "contrastive": 3.0}
    assert records[1]["dev/box_recall"] == 0.1
    assert records[1]["loss"] == 5.0
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_curves_are_drawn_from_what_there_is(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl")
    records = read_metrics(tmp_path / "metrics.jsonl")
    draw_curves(records, read_results(tmp_path), tmp_path / "all.png")
    draw_curves([{"step": 1, "loss": 1.0}], {}, tmp_path / "loss.png")
    sizes = [pixels(tmp_path / name).shape[:2] for name in ("all.png", "loss.png")]
    # Two rows of two, for losses, held-out figures and speed, against losses alone.
    assert sizes[0] == (2 * sizes[1][0], 2 * sizes[1][1])
    with pytest.raises(ValueError, match="no loss"):
        draw_curves([{"step": 1}], {}, tmp_path / "none.png")


def test_each_labelled_set_has_a_curve_of_its_own():
    sets = {"pets/name": 0.5, "birds/name": 0.25, "pets/description/alpha1": 0.75}
    sets |= {"birds/description/alpha1": 0.125, "pets/random": 0.1}
    drawn = {
        line.name: line.values[-1]
        for _, lines in curve_panels([], {step: from_logged(sets) for step in (1, 2)})
        for line in lines
    }
    assert drawn == {
        "by name, pets": 0.5,
        "by name, birds": 0.25,
        "alpha = 1, pets": 0.75,
        "alpha = 1, birds": 0.125,
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    source = ToySource(record("0", "red", "green", "blue"), record("1", "green", "red", "blue"))
    monkeypatch.setattr(TfdsDataSource, "records", lambda self, split: source)
    write_metrics(tmp_path / "metrics.jsonl")
    config = TrainConfig(
        name="my run",
        steps=100,
        data=DataConfig(dataset="tfds", data_dir="flickr", eval_split="dev"),
    )
    return tmp_path, config


def test_the_report_says_what_ran_and_what_came_out(run):
    folder, config = run
    written = report.write_report(
        folder, config, RESULTS, encoder=toy_encoder(), facts={"training time": "4 min"}
    )
    assert [path.name for path in written] == ["report.md", "curves.png", "grounding.png"]
    page = (folder / "report.md").read_text()
    assert page.startswith("# my run\n\nGRAIN trained on `flickr` for 100 steps of batch 2,048.")
    for text in (
        "| dev | constant_boxes | 30.0 |",
        "![Training](curves.png)",
        "![What the regions found](grounding.png)",
        "| training time | 4 min |",
        f"| jax | {report.versions()['jax']} |",
        report.hardware()["devices"],
    ):
        assert text in page, text
    for name in ("curves.png", "grounding.png"):
        assert pixels(folder / name).std() > 5


def test_the_headline_is_that_of_the_data_set(run, monkeypatch):
    folder, config = run
    monkeypatch.setattr(TfdsDataSource, "headline", lambda self, results: f"{len(results)} found")
    encoder = toy_encoder()
    report.write_report(folder, config, RESULTS, encoder=encoder)
    assert f"**{len(RESULTS)} found**" in (folder / "report.md").read_text()
    with (folder / FILE).open("w", encoding="utf-8") as file:
        append_results(file, 7, RESULTS)
    data = TfdsDataSource(config.data, 32)
    assert f"**{len(RESULTS)} found**" in results_at_step(folder, 7, headline=data.headline)
    assert "None were measured" in results_at_step(folder, 8, headline=data.headline)


def test_the_report_names_what_was_looked_at_and_the_files_of_the_texts(run, tmp_path):
    folder, config = run
    config.evaluation.eval_interval_steps, config.evaluation.max_images = 500, 2_000
    config.evaluation.zero_shot_during_training = ("some/pets",)
    config.evaluation.best_metric = "pets/name"
    texts = tmp_path / "described.json"
    texts.write_text("{}")
    dataset = ZeroShotSet(
        "pets",
        ToySource(record("0", "red", label="cat")),
        ("cat", "dog"),
        descriptions={"cat": ("whiskers", "fur")},
        text_files={"descriptions": str(texts)},
    )
    details = ResultDetails(zero_shot_sets={"pets": describe_set(dataset)})
    report.write_report(folder, config, [], encoder=toy_encoder(), details=details)
    page = (folder / "report.md").read_text()
    short = hashlib.sha256(b"{}").hexdigest()[:8]
    assert f"| pets | 1 | 2 | 1 | 2: `described.json` ({short}) |" in page
    looked = "dev, pets: every 500 steps, at most 2,000 images of each"
    assert f"| measured during training | {looked} |" in page
    assert "| best checkpoint by | pets/name |" in page


def test_every_page_of_the_sheet_is_in_the_report(run, monkeypatch):
    folder, config = run
    monkeypatch.setattr(make_images, "EXAMPLES_PER_PAGE", 1)
    written = report.write_report(folder, config, RESULTS, encoder=toy_encoder())
    pages = ["grounding.png", "grounding-2.png"]
    assert [path.name for path in written] == ["report.md", "curves.png", *pages]
    page = (folder / "report.md").read_text()
    assert all(f"![What the regions found]({name})" in page for name in pages)
    assert page.index("grounding-2.png") < page.index("curves.png")


def test_a_run_without_regions_or_results_still_reports(run):
    folder, config = run
    config.model.type = "clip"
    (folder / "metrics.jsonl").unlink()
    written = report.write_report(folder, config, [], encoder=toy_encoder(regions=False))
    assert [path.name for path in written] == ["report.md"]
    page = (folder / "report.md").read_text()
    assert "Nothing was held out" in page
    assert "png" not in page
