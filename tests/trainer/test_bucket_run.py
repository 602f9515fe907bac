"""A training run that lives in a bucket: as one on a disk, killed and resumed, of two processes."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from few_devices import devices_of_config
from places import HELPERS
from stored_results import stored_results
from training_process import ARGUMENTS, TIMED, environment, lines, undisturbed_run
from two_processes import launch_two

import grain_jax.evaluate
import grain_jax.export
import grain_jax.train
from grain_jax.paths import run_path
from grain_jax.results import read_results
from grain_jax.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

BRIEF = ("--evaluation.max_images=5", "--evaluation.num_visualized=0")
LOGGED = ("--logging.tensorboard=true",)
RUN = "gs://bucket/runs/first"


def stored_lines(storage):
    """metrics.jsonl in the bucket, without what depends on the clock."""
    text = storage.read("bucket", "runs/first/metrics.jsonl").decode()
    entries = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in entry.items() if k not in TIMED} for entry in entries]


def test_a_run_that_was_killed_is_the_same_as_one_on_a_disk(storage, tmp_path, capsys):
    killed = subprocess.run(
        [sys.executable, str(HELPERS / "train_only.py"), *ARGUMENTS, *LOGGED, f"--workdir={RUN}"],
        capture_output=True,
        text=True,
        env=environment(TRAIN_KILL_AT="10"),
        cwd=tmp_path,
        timeout=200,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert "runs/first/.lock" in storage.names("bucket")  # nobody has removed it
    assert "runs/first/config.json" in storage.names("bucket")
    (saved, *_) = reversed(checkpoint.complete_steps(run_path(RUN) / "checkpoints"))
    assert saved in (4, 8)
    before = stored_lines(storage)
    assert before[-1]["step"] >= saved  # what a checkpoint makes final was there before it

    with devices_of_config():
        assert grain_jax.train.main([*ARGUMENTS, *LOGGED, f"--workdir={RUN}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{RUN}, resumed at step {saved}" in printed
    assert f"{RUN}/report.md" in printed
    disk = undisturbed_run()
    assert [line for line in stored_lines(storage) if "loss" in line] == lines(disk)
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.load(RUN).params, checkpoint.load(disk).params
    )
    top = {name.split("/")[2] for name in storage.names("bucket", "runs/first/")}
    assert top == {
        *("checkpoints", "config.json", "metrics.jsonl", "results.jsonl", "tensorboard"),
        *("curves.png", "grounding.png", "report.md"),
    }
    assert os.listdir(tmp_path) == []

    # Evaluated from there: the same figures. Exported: the same model.
    output = tmp_path / "results.json"
    assert grain_jax.evaluate.main([f"--checkpoint={RUN}", f"--output={output}"]) == 0
    measured = read_results(run_path(RUN))[12]
    assert stored_results(output) == pytest.approx(
        {name: value for name, value in stored_lines(storage)[-1].items() if name != "step"},
        abs=1e-4,
    )
    assert len(measured) > 10
    assert json.loads(output.read_text())["checkpoint"] == RUN
    exported = tmp_path / "exported"
    arguments = [f"--checkpoint={RUN}", "--to=run", f"--output={exported}"]
    assert grain_jax.export.main(arguments) == 0
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.load(exported).params, checkpoint.load(RUN).params
    )


def test_two_processes_write_one_run(storage, tmp_path):
    class Address(str):
        parent = tmp_path

    process = launch_two(Address(RUN), *BRIEF)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "2 x cpu of 2 processes" in output
    assert output.count("step 12/12") == 1  # one process speaks
    trained = [line for line in stored_lines(storage) if "loss" in line]
    for found, expected in zip(trained, lines(undisturbed_run()), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert checkpoint.complete_steps(run_path(RUN) / "checkpoints")[-1] == 12
    written = storage.names("bucket", "runs/first/checkpoints/12/params/")
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= {name.split("/")[5] for name in written}
    assert "runs/first/report.md" in storage.names("bucket")
    assert "runs/first/.lock" not in storage.names("bucket")
