"""`python -m grain_jax.evaluate`: the files of results and of predictions."""

import csv
import hashlib
import json

import numpy as np
import pytest
from stored_results import stored_results
from toy_evaluations import png, written

from grain_jax import evaluate


def test_other_splits_and_tasks_go_to_other_files(run, records, monkeypatch):
    arguments = [f"--checkpoint={run.folder}/checkpoints", "--data=.", "--batch_size=4"]
    monkeypatch.chdir(records)
    load = evaluate.read_model
    monkeypatch.setattr(
        evaluate, "read_model", lambda path, **options: load(path.parent, **options)
    )
    for options in (["--split=dev"], ["--split=train[:1]", "--tasks=grounding"]):
        assert evaluate.main([*arguments, *options]) == 0
    for name in ("evaluation_records_dev_step7_", "evaluation_records_train-1_grounding_step7_"):
        assert stored_results(written(run.folder, name))


def test_results_that_cannot_be_written_are_still_printed(run, records, capsys, monkeypatch):
    def full(partial, path):
        raise OSError("No space left on device")

    monkeypatch.setattr("grain_jax.evaluation.results_file.os.replace", full)
    arguments = [f"--checkpoint={run.folder}", f"--data={records}", "--split=dev"]
    assert evaluate.main(arguments) == 1
    assert list(run.folder.glob("evaluation_*")) == []  # no part of it either
    printed = capsys.readouterr()
    assert "100.0" in printed.out
    assert "Written" not in printed.out
    assert printed.err.startswith("Error: the results could not be written: ")


def test_results_that_nobody_reads_are_still_written(run, records, monkeypatch):
    def closed(results, console, **options):
        raise SystemExit(1)  # rich's answer to a closed pipe

    monkeypatch.setattr(evaluate, "print_results", closed)
    with pytest.raises(SystemExit):
        evaluate.main([f"--checkpoint={run.folder}", f"--data={records}", "--split=dev"])
    assert stored_results(written(run.folder, "evaluation_records_dev_step7_"))


def test_a_set_has_one_name(run, images, tmp_path, capsys):
    """In notes, in metrics and in the name of the file: that of the link, not of its target."""
    (tmp_path / "link").symlink_to(images)
    (images / "stray.png").write_bytes(png("red", "red", "red"))  # which gives a note
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={tmp_path / 'link'}"]) == 0
    assert "Note: link: 1 images are not in a class folder" in capsys.readouterr().err
    assert "link/name" in stored_results(written(run.folder, "evaluation_link_"))


def test_a_run_notes_a_set_by_its_name_in_the_metrics(run, images, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/colours").symlink_to(images)
    (images / "stray.png").write_bytes(png("red", "red", "red"))
    run.config.evaluation.zero_shot = (str(images), str(tmp_path / "other/colours"))
    assert evaluate.main([f"--checkpoint={run.folder}"]) == 0
    names = [f"{tmp_path.name}-colours", "other-colours"]
    printed = capsys.readouterr().err
    for name in names:
        assert f"Note: {name}: 1 images are not in a class folder" in printed
        assert f"{name}/name" in stored_results(written(run.folder))


def test_other_texts_and_images_get_a_file_of_their_own(run, images, tmp_path, capsys):
    """What made the figures is named with its hash, and no result replaces another."""
    arguments = [f"--checkpoint={run.folder}", f"--data={images}"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"red": ["blue part"]}))
    templates = tmp_path / "t.txt"
    templates.write_text("one {}\n")
    for options in ([], [f"--descriptions={other}"], [f"--templates={templates}"], ["--alphas=1"]):
        assert evaluate.main([*arguments, *options]) == 0
    found = [json.loads(path.read_text()) for path in run.folder.glob("evaluation_colours_*.json")]
    assert len({report["inputs_sha256"] for report in found}) == 4
    sets = [report["zero_shot_sets"]["colours"] for report in found]
    files = {one["descriptions"]["file"]: one for one in sets}
    assert files.keys() == {str(images / "descriptions.json"), str(other)}
    described = files[str(other)]["descriptions"]
    assert described["file_sha256"] == hashlib.sha256(other.read_bytes()).hexdigest()
    assert (described["count"], described["classes_with_any"]) == (1, 1)
    assert {one["templates"]["file"] for one in sets} == {None, str(templates)}
    assert {tuple(one["templates"]["texts"]) for one in sets} == {("a {} thing",), ("one {}",)}
    assert "description (1 of 3 described)" in capsys.readouterr().out

    # The same folder with other texts and other images in it.
    (images / "descriptions.json").write_text(json.dumps({"red": ["red part"]}))
    assert evaluate.main(arguments) == 0
    (images / "red" / "2.png").write_bytes(png("red", "red", "red"))
    assert evaluate.main(arguments) == 0
    assert len(list(run.folder.glob("evaluation_colours_*.json"))) == 6


def test_the_same_evaluation_again_leaves_one_file(run, images, capsys):
    arguments = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main(arguments) == 0
    path = written(run.folder)
    first = path.read_text()
    assert evaluate.main(arguments) == 0
    assert f"{path} holds these results already" in capsys.readouterr().out
    assert written(run.folder).read_text() == first

    # Another training in the same folder: other figures of the same inputs are kept beside.
    report = json.loads(first)
    for result in report["results"]:
        if (result["method"], result["metric"]) == ("name", "top1"):
            result["value"] = 0.5
    path.write_text(json.dumps(report))
    assert evaluate.main(arguments) == 0
    assert stored_results(path)["colours/name"] == 0.5
    assert stored_results(path.with_name(f"{path.stem}-2.json"))["colours/name"] == 1.0
    assert evaluate.main([*arguments, "--overwrite"]) == 0
    assert stored_results(path)["colours/name"] == 1.0


def test_nothing_is_written_beside_a_model_of_others(run, images, tmp_path, monkeypatch, capsys):
    load = evaluate.read_model
    monkeypatch.setattr(evaluate, "read_model", lambda path, **_: load(run.folder, best=False))
    exported, here = tmp_path / "export", tmp_path / "here"
    for folder in (exported, here):
        folder.mkdir()
    (exported / "weights.pth").write_bytes(b"")
    monkeypatch.chdir(here)
    for model in (exported, exported / "weights.pth", "owner/name.v1"):
        assert evaluate.main([f"--checkpoint={model}", f"--data={images}"]) == 0
    assert sorted(path.name.rpartition("_")[0] for path in here.glob("*.json")) == [
        "evaluation_export_colours_step7",
        "evaluation_name.v1_colours_step7",
        "evaluation_weights_colours_step7",
    ]
    assert [path.name for path in exported.iterdir()] == ["weights.pth"]
    monkeypatch.chdir(exported)
    assert evaluate.main(["--checkpoint=.", f"--data={images}"]) == 2
    assert "that of the model '.', into which no result is written" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_every_answer_can_be_had_and_their_mean_is_the_figure(
    run, images, records, tmp_path, suffix
):
    results: dict[str, float] = {}
    lines: list[dict[str, str]] = []
    for name, options in (("a", [f"--data={images}"]), ("b", [f"--data={records}", "--split=dev"])):
        path = tmp_path / f"{name}.{suffix}"
        given = [f"--checkpoint={run.folder}", *options, f"--predictions={path}"]
        assert evaluate.main([*given, f"--output={tmp_path / name}.json"]) == 0
        results |= stored_results(tmp_path / f"{name}.json")
        with path.open(newline="", encoding="utf-8") as file:
            lines += list(csv.DictReader(file)) if suffix == "csv" else map(json.loads, file)
    metrics = {
        "image_to_text": "retrieval/image_to_text/R@1",
        "text_to_image": "retrieval/text_to_image/R@1",
        "phrase": "phrase_accuracy",
    }
    correct: dict[str, list[float]] = {}
    for line in lines:
        metric = f"{line['set']}/{metrics.get(line['method'], line['method'])}"
        if line.get("alpha") not in (None, ""):
            metric += f"/alpha{float(line['alpha']):g}"
        correct.setdefault(metric, []).append(float(line["correct"]))
    for metric, values in correct.items():
        assert np.mean(values) == pytest.approx(results[metric], abs=1e-5), metric
    assert {"colours/name", "colours/description/alpha0", "dev/phrase_accuracy"} <= correct.keys()
    one = next(line for line in lines if line["image"] == "red/1.png" and line["method"] == "name")
    assert (one["label"], one["predicted"]) == ("red", "red")
    top = json.loads(one["top5"]) if suffix == "csv" else one["top5"]
    assert top[0][0] == "red"
    assert len(top) == 3
    assert 1 / 3 < float(one["probability"]) <= 1
    caption = next(line for line in lines if line["method"] == "text_to_image")
    assert (caption["text"], float(caption["rank"])) == ("a red thing", 1.0)
    phrase = next(line for line in lines if line["method"] == "phrase")
    assert float(phrase["iou"]) == 1.0
    predicted, (true,) = (
        json.loads(phrase[name]) if suffix == "csv" else phrase[name]
        for name in ("box_xyxy", "true_xyxy")
    )
    assert predicted == pytest.approx(true, abs=1e-5)
    files = (f"{tmp_path}/{name}.{kind}" for kind in ("json", suffix) for name in "ab")
    first, second, *answers = files
    page = tmp_path / "page.html"
    words = [first, second, f"--predictions={','.join(answers)}", f"--images=dev={records}"]
    assert evaluate.main(["report", *words, f"--output={page}"]) == 0
    assert 'class="true"' in page.read_text(encoding="utf-8")
    assert list(tmp_path.glob("*.partial")) == []


def test_predictions_of_a_failed_evaluation_are_not_there(run, images, tmp_path):
    (images / "red" / "1.png").write_bytes(b"no image")
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main([*given, f"--predictions={tmp_path / 'all.csv'}"]) == 2
    assert not list(tmp_path.glob("all.csv*"))


def test_results_are_kept_where_predictions_find_the_disk_full(
    run, images, tmp_path, monkeypatch, capsys
):
    def full(self, **line):
        self.failure = OSError(28, "No space left on device")

    monkeypatch.setattr("grain_jax.evaluation.predictions.PredictionsFile.write", full)
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main([*given, f"--predictions={tmp_path / 'all.csv'}"]) == 1
    printed = capsys.readouterr()
    assert "the predictions could not be written: [Errno 28] No space left" in printed.err
    assert "Zero-shot classification" in printed.out
    assert "Predictions:" not in printed.out
    assert stored_results(written(run.folder))["colours/name"] == 1.0
    assert not list(tmp_path.glob("*all*"))
