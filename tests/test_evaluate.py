import csv
import dataclasses
import hashlib
import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from labelled_tars import write_webdataset
from PIL import Image
from plain_text import plain
from stored_results import stored_results
from toy_encoder import ToyModel, ToyTokenizer, half, make_image

from grain_jax import evaluate
from grain_jax.config import DataConfig, EvaluationConfig, SyntheticBirdsConfig, TrainConfig
from grain_jax.data.loader import evaluation_batches
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tfds_records import encode_record, shard_path, write_metadata, write_shard
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.learned import EVERYTHING, NOTHING


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that stands for a run of the toy model, whose config tests may change; what `load`
    was asked for is noted.
    """
    folder = tmp_path / "run"
    (folder / "checkpoints" / "7").mkdir(parents=True)
    (folder / "checkpoints" / "7" / "_CHECKPOINT_METADATA").touch()
    asked = []
    config = TrainConfig(
        data=DataConfig(
            synthetic_birds=SyntheticBirdsConfig(num_train_images=30, num_eval_images=25),
            caption_length=8,
            description_length=4,
            num_threads=3,
        ),
        evaluation=EvaluationConfig(alphas=(1.0, 0.5, 0.0), batch_size=8),
    )

    def load(path, *, step=None, best=False, mesh=None):
        asked.append((path, step, best))
        if path != folder:
            raise ValueError(f"{str(path)!r} holds no run.")
        return ModelBundle(
            model=ToyModel(),
            params={"logit_scale": np.log(np.float32(10.0))},
            config=config,
            tokenizer=ToyTokenizer(),
            preprocessing=Preprocessing(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
            templates=("a {} thing",),
            step=7,
            learned=EVERYTHING,
        )

    monkeypatch.setattr(evaluate, "read_model", load)
    return SimpleNamespace(folder=folder, asked=asked, config=config)


def png(*colours: str) -> bytes:
    """The toy's image, enlarged so that squashing to 32 pixels keeps what its queries look at."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:4, :4] = make_image(*colours)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "colours"
    for colour, part in (("red", "green"), ("green", "blue"), ("blue", "red")):
        (root / colour).mkdir(parents=True)
        (root / colour / "1.png").write_bytes(png(colour, part, part))
    described = {"red": ["green part"], "green": ["blue part"], "blue": ["red part"]}
    (root / "descriptions.json").write_text(json.dumps(described))
    return root


@pytest.fixture
def records(tmp_path):
    root = tmp_path / "records"
    root.mkdir()
    splits = {}
    for split, colours in (("dev", ("red", "green", "blue")), ("train", ("green", "red"))):
        own = [
            Record(
                id=f"{split}{i}",
                image=png(colour, "blue", "green"),
                captions=(Caption(f"a {colour} thing"),),
                regions=(Region(half(0), "blue part"), Region(half(1), "green part")),
            )
            for i, colour in enumerate(colours)
        ]
        path = shard_path(root, split, 0, 1)
        splits[split] = write_shard(path, [encode_record(record) for record in own])
    write_metadata(root, splits)
    return root


def written(folder, name: str = "evaluation_"):
    """The file of results whose name begins so; there is no other."""
    (path,) = folder.glob(f"{name}*.json")
    return path


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


@pytest.mark.parametrize("damage", [b"", png("red", "green", "green")[:60]])
def test_empty_and_cut_images_are_named(run, images, damage, capsys):
    (images / "red" / "1.png").write_bytes(damage)
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}"]) == 2
    assert "Zero-shot set 'colours': Image 'red/1.png' " in capsys.readouterr().err


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


def test_a_model_without_data_of_its_own_asks_for_some(run, capsys):
    run.config.data.dataset = "tfds"
    assert evaluate.main([f"--checkpoint={run.folder}"]) == 2
    assert (
        "says nothing of data to evaluate it on; give some with --data" in capsys.readouterr().err
    )


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
    def closed(results, console, *, headline):
        raise SystemExit(1)  # rich's answer to a closed pipe

    monkeypatch.setattr(evaluate, "print_results", closed)
    with pytest.raises(SystemExit):
        evaluate.main([f"--checkpoint={run.folder}", f"--data={records}", "--split=dev"])
    assert stored_results(written(run.folder, "evaluation_records_dev_step7_"))


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=nowhere"], "no folder 'nowhere'"),
        (["--data={records}", "--split=test"], "no split 'test'"),
        (["--data={records}", "--split=dev", "--tasks=zero_shot"], "not 'zero_shot'"),
        (["--data={records}", "--classes=c.json"], "--classes goes with labelled images"),
        (["--data={records}", "--keep_names"], "--keep_names goes with labelled images"),
        (["--data={records}", "--alphas=1"], "--alphas goes with zero-shot classification"),
        (
            ["--data={records}", "--region_aggregation=max_over_descriptions"],
            "--region_aggregation goes with zero-shot",
        ),
        (
            ["--data={records}", "--prompt_ensembling=score"],
            "--prompt_ensembling goes with zero-shot",
        ),
        (["--data={images}", "--tasks=retrieval"], "--tasks goes with prepared records"),
        (["--data={images}", "--descriptions=none.json"], "no file 'none.json'"),
        (["--data={images}/red", "--alphas=1"], "no labelled images"),
        (["--split=dev"], "--split goes with prepared records or"),
        (["--keep_names"], "--keep_names goes with labelled images"),
        (["--classes_by=order"], "--classes_by goes with labelled images"),
        (["--data={records}", "--allow_equal_names"], "--allow_equal_names goes with labelled"),
        (
            ["--data={images}", "--classes_by=order"],
            "only where they are a list; no file of them was given",
        ),
        (["--description_template=a {{}}"], "--description_template goes with labelled images"),
        (["--checkpoint=elsewhere"], "holds no run"),
        (["--output=nowhere/out.json"], "no folder 'nowhere' for --output"),
        (["--output={images}"], "is a folder; expected a file"),
        (["--output={records}/dataset_info.json"], "exists; give another file, or --overwrite"),
        (["--predictions={records}/dataset_info.json"], "exists; give another file"),
        (["--predictions={records}/a.txt"], "should end in .jsonl or .csv"),
        (["--predictions=a.csv", "--output=./a.csv"], "name one file; give each its own"),
    ],
)
def test_mistakes_are_one_line(run, images, records, arguments, message, capsys):
    given = [text.format(images=images, records=records) for text in arguments]
    if not given[0].startswith("--checkpoint"):
        given.insert(0, f"--checkpoint={run.folder}")
    assert evaluate.main(given) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ")
    assert message in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    "option",
    ["--checkpoint=s3://b/run", "--data=gs://b/images", "--output=gs://b/a.json"],
)
def test_an_address_is_not_a_path_of_this_machine(option, capsys):
    given = [option] if option.startswith("--checkpoint") else ["--checkpoint=run", option]
    assert evaluate.main(given) == 2
    printed = plain(capsys.readouterr().err)
    name, _, address = option.partition("=")
    assert f"{name}: {address!r} is an address" in printed
    assert "copy or mount it here first" in printed


@pytest.mark.parametrize("option", ["--alphas=1", "--description_template=a {}"])
def test_options_about_descriptions_need_some(run, images, option, capsys):
    (images / "descriptions.json").unlink()
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}", option]) == 2
    assert "goes with descriptions, which these images lack" in capsys.readouterr().err


def test_a_run_of_records_classifies_nothing_by_itself(run, records, capsys):
    run.config.data.dataset, run.config.data.eval_split = "tfds", "dev"
    run.config.data.data_dir = str(records)
    assert evaluate.main([f"--checkpoint={run.folder}", "--alphas=1"]) == 2
    assert "zero-shot classification, which this run has no images for" in capsys.readouterr().err
    run.config.data.eval_split = ""
    assert evaluate.main([f"--checkpoint={run.folder}"]) == 2
    assert "no evaluation split" in capsys.readouterr().err


def test_a_damaged_image_is_named_with_its_set(run, images, capsys):
    (images / "red" / "1.png").write_bytes(b"no image")
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Error: Zero-shot set 'colours': Image 'red/1.png' ")
    assert "Take it out of the set" in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--alphas=2", "'2' should be numbers from 0 to 1, as in 1,0.5,0"),
        ("--alphas=1,x", "'1,x' should be numbers from 0 to 1"),
        ("--alphas=nan", "'nan' should be numbers from 0 to 1"),
        ("--batch_size=0", "'0' should be a whole number of at least 1"),
        ("--batch_size=x", "'x' should be a whole number of at least 1"),
    ],
)
def test_numbers_outside_their_range_are_refused(run, option, message, capsys):
    assert evaluate.main([f"--checkpoint={run.folder}", option]) == 2
    printed = plain(capsys.readouterr().err)
    assert message in printed
    assert option.partition("=")[0] in printed
    assert run.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions=x.txt"], "should end in .jsonl or .csv"),
        (["--data={records}", "--tasks=zero_shot"], "not 'zero_shot'"),
        (["--output={locked}/a.json"], "a.json cannot be written to"),
        (["--predictions={locked}/a.csv"], "a.csv cannot be written to"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    run, records, tmp_path, monkeypatch, arguments, message, capsys
):
    locked = tmp_path / "locked"
    locked.mkdir()
    access = os.access  # root may write anywhere, whatever the mode says
    monkeypatch.setattr(
        os, "access", lambda path, mode: locked != Path(path) and access(path, mode)
    )
    given = [text.format(records=records, locked=locked) for text in arguments]
    assert evaluate.main([f"--checkpoint={run.folder}", *given]) == 2
    assert message in capsys.readouterr().err
    assert run.asked == []


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
    assert sorted(path.name.rpartition("_")[0] for path in here.iterdir()) == [
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


@pytest.fixture
def two_runs(run, tmp_path, monkeypatch):
    """A second run beside the first, whose model sees no red, and red in green."""
    other = tmp_path / "other"
    (other / "checkpoints" / "7").mkdir(parents=True)
    load = evaluate.read_model

    class Mistaken(ToyModel):
        def encode_images(self, images, *, train=False):
            output = super().encode_images(images, train=train)
            return dataclasses.replace(output, image_embed=output.image_embed[:, [1, 1, 2]])

    def load_either(path, **options):
        loaded = load(run.folder, **options)
        return dataclasses.replace(loaded, model=Mistaken()) if path == other else loaded

    monkeypatch.setattr(evaluate, "read_model", load_either)
    return run.folder, other


def test_several_checkpoints_are_one_table_and_a_file_each(two_runs, images, capsys):
    first, other = two_runs
    given = [f"--checkpoint={first}", f"--checkpoint={other}", f"--data={images}"]
    assert evaluate.main(given) == 0
    printed = plain(capsys.readouterr().out)
    assert re.search(r"colours name top-1 100.0 \(\S+-100.0\) 61.1 \(\S+-\S+\)", printed)
    assert printed.count("Written to") == 2
    assert stored_results(written(first))["colours/name"] == 1.0
    mistaken = (1 / 3 + 1 / 2 + 1) / 3  # red is nothing to it, green is red as well
    assert stored_results(written(other))["colours/name"] == pytest.approx(mistaken)


def test_a_file_of_one_model_is_refused_for_several(two_runs, images, tmp_path, capsys, run):
    given = [f"--checkpoint={two_runs[0]},{two_runs[1]}", f"--data={images}"]
    assert evaluate.main([*given, f"--output={tmp_path / 'a.json'}"]) == 2
    assert "--output names one file, and 2 checkpoints" in capsys.readouterr().err
    assert run.asked == []


@pytest.fixture
def suite(images):
    path = images.parent / "mine.toml"
    path.write_text(
        'note = "Of colours."\nalphas = [0.25]\n[[images]]\nname = "colours"\nnum_images = 3\n'
        '[[images]]\nname = "absent"\n'
    )
    return path


def test_a_suite_is_measured_with_what_it_has(run, suite, capsys):
    given = [f"--checkpoint={run.folder}", f"--suite={suite}"]
    assert evaluate.main(given) == 2
    assert f"absent: no folder '{suite.parent / 'absent'}'" in capsys.readouterr().err
    assert run.asked == []
    assert evaluate.main([*given, "--allow_missing"]) == 0
    printed = plain(capsys.readouterr().out)
    assert "average over 1 of 2 sets" in printed
    assert "Of colours." in printed
    path = written(run.folder, "evaluation_mine_step7_")
    results = stored_results(path)
    assert results["colours/description/alpha0.25"] == 1.0
    assert results["mine/name/average"] == 1.0
    report = json.loads(path.read_text())
    assert report["settings"]["suite"]["missing"] == ["absent"]
    assert report["settings"]["alphas"] == [0.25]
    assert evaluate.main([*given, "--allow_missing", "--alphas=0.75"]) == 0  # the user's go first
    assert "alpha 0.75" in plain(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=."], "--suite and --data both say what to measure"),
        (["--templates=a.txt"], "--templates is of one set; write it under the set"),
        (["--tasks=retrieval"], "--tasks goes with prepared records"),
        (["--suite_data=nowhere"], "2 of the 2 sets of suite 'mine' are missing"),
    ],
)
def test_what_does_not_go_with_a_suite_is_refused(run, suite, arguments, message, capsys):
    assert evaluate.main([f"--checkpoint={run.folder}", f"--suite={suite}", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert run.asked == []


def test_options_of_suites_need_one(run, capsys):
    assert evaluate.main([f"--checkpoint={run.folder}", "--allow_missing"]) == 2
    assert "--allow_missing goes with --suite" in capsys.readouterr().err
    assert evaluate.main([f"--checkpoint={run.folder}", "--suite=grain12"]) == 2
    assert "did you mean 'grain11'" in capsys.readouterr().err


def test_a_checkpoint_chosen_on_labelled_images_is_flattered_by_them(run, images, capsys):
    run.config.evaluation.zero_shot_during_training = (str(images),)
    run.config.evaluation.best_metric = "colours/name"
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main([*given, "--best"]) == 0
    assert "figures of 'colours' flatter it" in " ".join(capsys.readouterr().err.split())
    run.config.evaluation.best_metric = "validation/box_recall"
    assert evaluate.main([*given, "--best"]) == 0
    assert "flatter" not in capsys.readouterr().err


@pytest.mark.parametrize("given", ["name", "description,name"])
def test_methods_are_those_asked_for(run, images, given):
    assert (
        evaluate.main([f"--checkpoint={run.folder}", f"--data={images}", f"--methods={given}"]) == 0
    )
    report = json.loads(written(run.folder, "evaluation_colours_step7_").read_text())
    measured = {result["method"] for result in report["results"]}
    assert measured - {"random", "dataset"} == set(given.split(","))
    assert report["settings"]["methods"] == given.split(",")


def test_a_method_that_lacks_something_says_what(run, images, capsys):
    (images / "descriptions.json").unlink()
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main([*given, "--methods=name,description"]) == 0
    said = capsys.readouterr().err
    sentence = "colours: 1 method is left out: description needs descriptions"
    assert said.count(sentence) == 2  # before, and at the end
    assert said.rstrip().splitlines()[-1].startswith(f"Note: {sentence}")
    assert evaluate.main([*given, "--methods=description", "--overwrite"]) == 2
    assert "No method of those that are named" in (said := capsys.readouterr().err)
    assert "On 'colours': description needs descriptions" in said
    assert evaluate.main([*given, "--methods=nearest"]) == 2
    assert "Unknown method 'nearest'" in capsys.readouterr().err


def test_a_second_evaluation_reads_embeddings(run, images, tmp_path, monkeypatch, capsys):
    """The model is called for texts that are new, and not at all where none is."""
    cache = tmp_path / "cache"
    arguments = [f"--checkpoint={run.folder}", f"--data={images}", f"--cache={cache}"]
    assert evaluate.main(arguments) == 0
    first = stored_results(written(run.folder))
    said = " ".join(capsys.readouterr().out.split())
    assert f"0 images and 0 texts read from {cache}, 3 and 9 encoded" in said

    def called(*arguments, **options):
        raise AssertionError("the model was called")

    monkeypatch.setattr(ToyModel, "encode_images", called)
    template = tmp_path / "templates.txt"
    template.write_text("one {}\n")
    assert evaluate.main([*arguments, f"--templates={template}"]) == 0
    assert "3 images and 6 texts read from" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(ToyModel, "encode_texts", called)
    again = tmp_path / "again.json"
    assert evaluate.main([*arguments, f"--output={again}"]) == 0
    assert stored_results(again) == first
    with pytest.raises(AssertionError, match="the model was called"):
        evaluate.main([*arguments[:2], "--cache=none", f"--output={tmp_path / 'none.json'}"])


def test_a_cache_that_cannot_be_written_is_refused(run, images, tmp_path, capsys):
    (tmp_path / "file").touch()
    given = [f"--checkpoint={run.folder}", f"--data={images}", f"--cache={tmp_path / 'file'}"]
    assert evaluate.main(given) == 2
    assert "cannot hold embeddings" in capsys.readouterr().err
    assert run.asked == []


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


def test_a_run_is_watched_to_its_end(run, images, capsys):
    for step in (3, 7):
        place = run.folder / "checkpoints" / str(step)
        (place / "metadata").mkdir(parents=True)
        (place / "metadata" / "metadata").write_text('{"config": {"steps": 7}}')
        (place / "_CHECKPOINT_METADATA").touch()
    given = [f"--checkpoint={run.folder}", f"--data={images}", "--watch"]
    assert evaluate.main(given) == 0
    assert [step for _, step, _ in run.asked] == [3, 7]
    lines = (run.folder / "watch_results.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    top1 = [one for one in found if (one["method"], one["metric"]) == ("name", "top1")]
    assert [(one["step"], one["value"]) for one in top1] == [(3, 1.0), (7, 1.0)]
    captured = capsys.readouterr()
    assert "the run has ended at step 7" in captured.err
    printed = [line for line in captured.out.splitlines() if line.startswith("Step ")]
    assert [line.partition(": ")[0] for line in printed] == ["Step 3", "Step 7"]
    assert len(captured.out.splitlines()) == 2
    assert re.match(r"Step 3: colours: name 100\.0 \(\S+-100\.0\), ", printed[0])
    assert re.search(r"\. Written to \S+_step7_\w+\.json$", printed[0])
    assert evaluate.main(given) == 0
    assert len(run.asked) == 2
    assert evaluate.main([*given, "--best"]) == 2
    assert evaluate.main([*given[:2], "--idle_minutes=3"]) == 2
    assert evaluate.main([*given[:2], "--tables"]) == 2
    capsys.readouterr()
    assert evaluate.main([*given, "--tables", "--alphas=1"]) == 0
    assert capsys.readouterr().out.count("Zero-shot classification") == 2
