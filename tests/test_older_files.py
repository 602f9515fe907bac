"""What was written before the package was laid out in rooms is read as it was, and trained on.

`golden/before_the_rooms.zip` holds a run of the tiny world stopped at step 5 of 6 (with two
micro-batches, slower vision tower, equal captions as negatives), its results at that step, and its
exports for Hugging Face and for the official code, all made by version 0.1.0 at commit 0fa4b79.
"""

import importlib
import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from few_devices import devices_of_config
from places import GOLDEN, HELPERS
from stored_results import stored_results

import grain_jax.evaluate
import grain_jax.train
from grain_jax.config.migration import migrate_metrics
from grain_jax.loading.load import read_model
from grain_jax.training.run_folder import complete_steps


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """Its folder, with "run", "huggingface", "official" and "results.json"."""
    folder = tmp_path_factory.mktemp("older")
    with zipfile.ZipFile(GOLDEN / "before_the_rooms.zip") as archive:
        archive.extractall(folder)
    return folder


def test_a_run_has_its_settings(older):
    run = read_model(older / "run")
    assert run.step == 5
    assert run.config.optim.grad_cache_chunks == 2
    assert run.config.optim.lr_multipliers == ("vision/*=0.5",)
    assert not run.config.loss.mask_duplicate_captions
    assert run.config.model.type == "grain"
    assert run.config.data.dataset == run.config.data.tokenizer == "synthetic_birds"
    assert run.config.evaluation.region_aggregation == "max_over_queries"


@pytest.mark.parametrize("name", ["huggingface", pytest.param("official", marks=pytest.mark.torch)])
def test_a_run_and_its_exports_hold_one_model(older, name):
    if name == "official":
        pytest.importorskip("torch", reason="its file is one of torch")
    run, export = read_model(older / "run"), read_model(older / name)
    assert export.step == 5
    assert export.templates == run.templates
    assert export.tokenizer.spec() == run.tokenizer.spec()
    assert export.preprocessing == run.preprocessing
    jax.tree.map(np.testing.assert_array_equal, export.params, run.params)


@pytest.mark.slow
def test_it_is_measured_as_it_was(older, tmp_path):
    output = tmp_path / "results.json"
    arguments = [f"--checkpoint={older / 'run'}", f"--output={output}", "--batch_size=16"]
    assert grain_jax.evaluate.main(arguments) == 0
    before = json.loads((older / "results.json").read_text())
    now = json.loads(output.read_text())
    measured = stored_results(output)
    told = migrate_metrics(before["results"])
    assert {name: measured[name] for name in told} == pytest.approx(told, abs=1e-4)
    assert stored_results(older / "results.json").keys() == told.keys()
    # The older version had bounds of fewer metrics.
    assert all(name.endswith(("/low", "/high")) for name in measured.keys() - told.keys())
    for name, told in before["zero_shot_sets"].items():
        measured = now["zero_shot_sets"][name]
        images = measured.pop("images")
        assert len(images.pop("sha256")) == 64  # of their content; the older version took none
        assert told["images"].pop("sha256") is None
        assert images == told.pop("images")
        assert measured == told  # classes, templates, descriptions by their hash


@pytest.mark.slow
def test_the_run_goes_on_with_the_flags_it_was_started_with(older, monkeypatch, capsys):
    monkeypatch.setattr(grain_jax.train, "finish", lambda run, screen, signals: None)
    workdir = older / "run"
    flags = {
        "steps": 6,
        "checkpoint.every_steps": 3,
        "evaluation.every_steps": 3,
        "mesh.cpu_devices": 1,
        "optim.max_bad_steps": 9,
        "optim.rate_factors": '("vision/*=0.5",)',
        "checkpoint.keep": 2,
        "model.vision.activation": "gelu",
        "model.vision.qk_norm": "true",
        "model.region_logit_scale": "shared",
        "loss.duplicate_captions": "negative",
        "optim.accumulate": 2,
        "evaluation.num_pictures": 1,
    }
    given = [f"--config.{path}={value}" for path, value in flags.items()]
    arguments = [f"--config={HELPERS / 'tiny_world.py'}", f"--workdir={workdir}", *given]
    with devices_of_config():
        status = grain_jax.train.main(arguments)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "resumed at step 5" in " ".join(printed.out.split())
    assert complete_steps(workdir / "checkpoints") == [5, 6]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert losses[6] < losses[2]


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("load_zero_shot", "evaluation.folders", "data.classification.folders"),
        ("open_source", "data.sources", "data.source"),
    ],
)
def test_scripts_find_what_they_imported(name, before, now):
    old, new = (importlib.import_module(f"grain_jax.{module}") for module in (before, now))
    assert getattr(old, name) is getattr(new, name)
