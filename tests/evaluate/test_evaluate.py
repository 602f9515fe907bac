"""`python -m grain_jax.evaluate`: what it measures."""

import dataclasses
import json

import numpy as np
import pytest
from labelled_tars import write_webdataset
from stored_results import stored_results
from toy_evaluations import png, written

from grain_jax import evaluate
from grain_jax.data.loader import evaluation_batches
from grain_jax.models.learned import NOTHING
from grain_jax.zero_shot.methods import ONE_PASS


def test_classes_are_grouped_by_how_often_captions_have_them(run, images, tmp_path, capsys):
    counts = tmp_path / "counts.json"
    counts.write_text('{"red": 0, "green": 5, "blue": 80}')
    given = [f"--checkpoint={run.folder}", f"--data={images}", f"--counts={counts}"]
    assert evaluate.main(given) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "by how often a class occurs in training captions" in printed
    report = json.loads(written(run.folder, "evaluation_colours").read_text())
    described = report["zero_shot_sets"]["colours"]["counts"]
    assert (described["unseen"], described["rare"], described["frequent"]) == (1, 1, 1)
    assert described["file"] == str(counts)
    assert evaluate.main([*given[:2], "--counts=cub:cc12m"]) == 2
    assert "such as 'cub:cc12m_text" in " ".join(capsys.readouterr().err.split())
    assert evaluate.main([given[0], given[2]]) == 2  # the run's own data have no such thing


def test_labelled_images_are_classified(run, images, capsys):
    status = evaluate.main(
        [f"--checkpoint={run.folder}", f"--data={images}", "--alphas=1,0", "--step=7"]
    )
    assert status == 0
    path = written(run.folder, "evaluation_colours_step7_")
    results = stored_results(path)
    assert results["colours/name"] == 1.0
    assert results["colours/description/alpha0"] == 1.0
    assert results["colours/description/alpha1"] == 0.0  # the whole says another colour
    assert run.asked == [(run.folder, 7, False)]
    report = json.loads(path.read_text())
    assert report["step"] == 7
    assert report["settings"]["alphas"] == [1.0, 0.0]
    printed = capsys.readouterr().out
    assert "Zero-shot classification" in printed
    assert f"Written to {path}" in printed


def test_classes_of_one_name_tie_and_the_result_says_so(run, images, capsys):
    """Two classes called red: an image of either is right in half of the draws."""
    (images / "descriptions.json").unlink()
    (images / "classes.json").write_text(
        json.dumps({"red": "red", "blue": "red", "green": "green"})
    )
    (images / "blue" / "1.png").write_bytes(png("red", "red", "red"))
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main(given) == 2
    assert "--allow_equal_names" in capsys.readouterr().err
    assert evaluate.main([*given, "--allow-equal-names"]) == 0
    assert "2 of 3 classes share their name" in capsys.readouterr().err
    path = written(run.folder, "evaluation_colours_step7_")
    report, results = json.loads(path.read_text()), stored_results(path)
    assert report["settings"]["allow_equal_names"] is True
    assert results["colours/name"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert results["colours/name/top5"] == 1.0
    assert results["colours/random"] == pytest.approx(1 / 3)
    assert results["colours/classes"] == 3


def test_a_list_of_names_is_bound_as_asked(run, images, tmp_path):
    (tmp_path / "l.txt").write_text("blue thing\ngreen thing\nsun\n")
    given = [f"--checkpoint={run.folder}", f"--data={images}", f"--classes={tmp_path / 'l.txt'}"]
    (images / "descriptions.json").unlink()
    assert evaluate.main(given) == 2
    assert evaluate.main([*given, "--classes-by=order"]) == 0
    path = written(run.folder, "evaluation_colours_step7_")
    report, results = json.loads(path.read_text()), stored_results(path)
    assert report["settings"]["classes_by"] == "order"
    # The toy knows no sun, so that the red image is as like to all three.
    assert results["colours/name"] == pytest.approx((1 + 1 + 1 / 3) / 3)


def test_prepared_records_are_retrieved_and_grounded(run, records):
    output = run.folder / "out.json"
    arguments = [f"--checkpoint={run.folder}", f"--data={records}", "--split=dev"]
    assert evaluate.main([*arguments, "--best", f"--output={output}"]) == 0
    results = stored_results(output)
    assert results["dev/retrieval/mean_R@1"] == 1.0
    assert results["dev/phrase_accuracy"] == 1.0
    assert results["dev/constant_box_recall"] == 1.0
    assert run.asked == [(run.folder, None, True)]
    arguments += ["--tasks=grounding", f"--output={output}"]
    assert evaluate.main(arguments) == 2  # it exists
    assert stored_results(output) == results
    assert evaluate.main([*arguments, "--overwrite"]) == 0
    assert not any("retrieval" in key for key in stored_results(output))


@pytest.mark.slow
def test_without_data_the_run_is_measured_as_at_its_end(run, capsys):
    lines = run.folder / "all.jsonl"
    assert evaluate.main([f"--checkpoint={run.folder}", f"--predictions={lines}"]) == 0
    results = stored_results(written(run.folder, "evaluation_step7_"))
    answers = [json.loads(line) for line in lines.read_text().splitlines()]
    own = [one for one in answers if (one["set"], one["method"]) == ("unseen", "name")]
    assert len({one["image"] for one in own}) == 25
    assert np.mean([one["correct"] for one in own]) == pytest.approx(results["unseen/name"])
    assert results["unseen/classes"] == 50
    assert "headline/alpha" in results
    assert "best alpha on the validation species" in capsys.readouterr().out


def test_figures_of_the_data_that_chose_the_checkpoint_are_called_so(run, records, capsys):
    def noted(*arguments: str) -> bool:
        given = [f"--checkpoint={run.folder}", f"--data={records}", "--batch_size=4", *arguments]
        assert evaluate.main(given) == 0
        return "highest dev/retrieval/mean_R@1" in capsys.readouterr().err

    run.config.data.dataset, run.config.data.eval_split = "tfds", "dev"
    run.config.data.data_dir = str(records.parent / "records" / ".." / "records")
    assert noted("--best")
    assert noted("--best", "--split=dev[:2]")
    assert not noted()
    assert not noted("--best", "--split=train")
    run.config.data.data_dir = str(records.parent)
    assert not noted("--best")


def test_the_threads_of_the_run_decode(run, images, monkeypatch):
    asked = []

    def spy(*arguments, num_threads, **options):
        asked.append(num_threads)
        return evaluation_batches(*arguments, num_threads=num_threads, **options)

    monkeypatch.setattr("grain_jax.inference.encoder.evaluation_batches", spy)
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}"]) == 0
    assert asked == [3]


def test_a_clip_run_says_that_it_has_no_regions(run, images, capsys):
    run.config.model.type = "clip"
    arguments = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main(arguments) == 0
    assert "no regions" not in capsys.readouterr().err
    assert evaluate.main([*arguments, "--alphas=1,0.5"]) == 0
    assert "no regions" in capsys.readouterr().err


def test_alphas_of_a_model_without_trained_regions_are_noted(run, images, monkeypatch, capsys):
    loaded = dataclasses.replace(evaluate.read_model(run.folder), learned=NOTHING)
    monkeypatch.setattr(evaluate, "read_model", lambda path, **options: loaded)
    arguments = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main(arguments) == 0
    assert "--alphas" not in capsys.readouterr().err
    assert evaluate.main([*arguments, "--region_aggregation=max_over_descriptions"]) == 0
    noted = "this GRAIN model has no trained regions: --alphas and --region_aggregation change none"
    assert noted in capsys.readouterr().err


def test_a_checkpoint_chosen_on_labelled_images_is_flattered_by_them(run, images, capsys):
    run.config.evaluation.zero_shot_during_training = (str(images),)
    run.config.evaluation.best_metric = "colours/name"
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main([*given, "--best"]) == 0
    assert "figures of 'colours' flatter it" in " ".join(capsys.readouterr().err.split())
    run.config.evaluation.best_metric = "validation/box_recall"
    assert evaluate.main([*given, "--best"]) == 0
    assert "flatter" not in capsys.readouterr().err


def test_crops_are_as_many_and_as_large_as_asked_for(run, images):
    given = [f"--checkpoint={run.folder}", f"--data={images}", "--methods=wca"]
    assert evaluate.main([*given, "--crops=3", "--crop_sizes=0.7,0.9", "--crop_seed=2"]) == 0
    report = json.loads(written(run.folder).read_text())
    settings, numbers = report["settings"], report["zero_shot_sets"]["colours"]["random_crops"]
    assert (settings["crops"], settings["crop_sizes"], settings["crop_seed"]) == (3, [0.7, 0.9], 2)
    assert numbers == {"number": 3, "smallest": 0.7, "largest": 0.9, "seed": 2}
    assert [r["value"] for r in report["results"] if r["metric"] == "passes"] == [4.0]
    assert report["costs"]["colours"]["wca"]["passes"] == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [("all", ONE_PASS), ("all,wca", (*ONE_PASS, "wca")), ("fgvp,name,fgvp", ("fgvp", "name"))],
)
def test_all_methods_are_those_that_encode_an_image_once(given, expected):
    options = evaluate.parse_options(["--checkpoint=run", f"--methods={given}"])
    assert options.methods == expected


@pytest.mark.parametrize("given", ["name", "description,name"])
def test_methods_are_those_asked_for(run, images, given):
    assert (
        evaluate.main([f"--checkpoint={run.folder}", f"--data={images}", f"--methods={given}"]) == 0
    )
    report = json.loads(written(run.folder, "evaluation_colours_step7_").read_text())
    measured = {result["method"] for result in report["results"]} - {"random", "dataset"}
    assert measured == set(given.split(","))
    assert report["settings"]["methods"] == given.split(",")
    costs = report["costs"]["colours"]
    assert {(name, cost["passes"]) for name, cost in costs.items()} == {(n, 1) for n in measured}
    assert all(cost["texts"] > 0 for cost in costs.values())


def test_a_method_that_lacks_something_says_what(run, images, capsys):
    (images / "descriptions.json").unlink()
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main([*given, "--methods=name,description"]) == 0
    said = capsys.readouterr().err
    sentence = "colours: 1 method is left out: description needs descriptions"
    assert said.count(sentence) == 1
    assert said.rstrip().splitlines()[-1].startswith(f"Note: {sentence}")
    assert evaluate.main([*given, "--methods=description", "--overwrite"]) == 2
    assert "No method of those that are named" in (said := capsys.readouterr().err)
    assert "On 'colours': description needs descriptions" in said
    assert evaluate.main([*given, "--methods=nearest"]) == 2
    assert "Unknown method 'nearest'" in capsys.readouterr().err


def test_images_in_tars_are_classified_and_the_split_is_written(run, tmp_path, capsys):
    names = ["green", "red", "blue"]
    members = {}
    for number, name in enumerate(names):
        members |= {f"{name}.png": png(name, name, name), f"{name}.cls": str(number).encode()}
    root = write_webdataset(tmp_path / "tars", [members], names)
    given = [f"--checkpoint={run.folder}", f"--data={root}"]
    assert evaluate.main([*given, "--split=test"]) == 0
    path = written(run.folder, "evaluation_tars_test_step7_")
    assert stored_results(path)["tars/name"] == 1.0
    report = json.loads(path.read_text())
    assert report["split"] == "test"
    assert report["zero_shot_sets"]["tars"]["classes"]["file"] == str(root / "classnames.txt")
    assert evaluate.main([*given, "--split=train"]) == 2
    assert "has no split 'train'; it has test" in " ".join(capsys.readouterr().err.split())
    assert evaluate.main([*given, "--label_column=kind"]) == 2
