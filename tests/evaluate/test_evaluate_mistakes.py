"""`python -m grain_jax.evaluate`: what it refuses, and in which words."""

import json
import os
from pathlib import Path

import pytest
from plain_text import plain
from toy_evaluations import png

from grain_jax import evaluate


@pytest.mark.parametrize("damage", [b"", png("red", "green", "green")[:60]])
def test_empty_and_cut_images_are_named(run, images, damage, capsys):
    (images / "red" / "1.png").write_bytes(damage)
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}"]) == 2
    assert "Zero-shot set 'colours': Image 'red/1.png' " in capsys.readouterr().err


def test_a_model_without_data_of_its_own_asks_for_some(run, capsys):
    run.config.data.dataset = "tfds"
    assert evaluate.main([f"--checkpoint={run.folder}"]) == 2
    assert (
        "says nothing of data to evaluate it on; give some with --data" in capsys.readouterr().err
    )


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
        (["--data={records}", "--methods=wca", "--crops=9"], "goes with zero-shot classification"),
        (["--data={records}", "--crops=9"], "--crops goes with zero-shot classification"),
        (["--data={images}", "--crops=9"], "--crops is of methods with random crops, and none"),
        (
            ["--data={images}", "--methods=fgvp", "--crop_sizes=0.7,0.9"],
            "some of wca, wca_cupl",
        ),
        (["--data={images}", "--methods=wca", "--crop_seed=-1"], "--crop_seed=-1 should be 0 or"),
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
        (
            ["--predictions=gs://bucket/said/"],
            "is an address, and a folder or file of this machine",
        ),
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


@pytest.mark.parametrize(
    ("methods", "option", "message"),
    [
        (
            "waffle",
            "--prompt_ensembling=score",
            "by none of the methods waffle; name some of name,",
        ),
        ("zlap,dpa", "--prompt_ensembling=score", "by none of the methods zlap, dpa; name some of"),
        (
            "name",
            "--region_aggregation=max_over_descriptions",
            "by none of the methods name; name some of description, name_and_regions, shared_",
        ),
        ("name", "--alphas=1,0.5", "by none of the methods name; name some of description, name_"),
        (
            "name,name_and_regions",
            "--description_template=a {}",
            "by none of the methods name, name_and_regions; name some of description, shared_desc",
        ),
        (
            "waffle",
            "--templates=official",
            "by none of the methods waffle; name some of name, description,",
        ),
        (
            "name",
            "--descriptions={images}/descriptions.json",
            "by none of the methods name; name some of description, name_and_regions,",
        ),
        ("name", "--texts=cupl=...", "by none of the methods name; name some of cupl, wca_cupl"),
    ],
)
def test_what_none_of_the_methods_reads_is_refused(run, images, methods, option, message, capsys):
    option = option.replace("{images}", str(images))
    given = [f"--checkpoint={run.folder}", f"--data={images}", option]
    assert evaluate.main([*given, f"--methods={methods}"]) == 2
    assert f"{option} is read {message}" in plain(capsys.readouterr().err)
    assert run.asked == []
    if "--texts" not in option:
        assert evaluate.main([*given, f"--methods={methods},name_and_regions,description"]) == 0
        assert evaluate.main([*given, "--overwrite"]) == 0


def test_templates_are_refused_where_every_class_has_other_texts(run, images, capsys):
    """As no class falls back to its name; of a class that does, the name is in them."""
    given = [f"--checkpoint={run.folder}", f"--data={images}", "--methods=description"]
    assert evaluate.main([*given, "--templates=official"]) == 2
    said = "--templates=official is read by none of the methods description on this set"
    assert said in plain(capsys.readouterr().err)
    (images / "descriptions.json").write_text(json.dumps({"red": ["green part"]}))
    assert evaluate.main([*given, "--templates=official"]) == 0


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
