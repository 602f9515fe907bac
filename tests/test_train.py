"""The whole command in this process, small: what it writes, says and refuses."""

import json

import numpy as np
import pytest
from few_devices import devices_of_config
from PIL import Image
from places import HELPERS

import grain_jax.plan
import grain_jax.train
from grain_jax import runtime
from grain_jax.config import DataConfig
from grain_jax.config.cli import config_from_json
from grain_jax.data.loader_plan import plan_loader
from grain_jax.trainer.inputs import fitting_loader
from grain_jax.training import checkpoint

CONFIG = HELPERS / "tiny_world.py"
# Of all that is compiled into a step: runs that have them in common find it compiled.
SETTINGS = ("--steps=12", "--optim.ema_decay=0.9")


def train(workdir, *arguments, variant=""):
    return grain_jax.train.main(
        [
            f"--config={CONFIG}:{variant}",
            f"--workdir={workdir}",
            *arguments,
        ]
    )


def log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def trained_only(monkeypatch):
    """Without the last evaluation, and on few devices."""
    monkeypatch.setattr(grain_jax.train, "finish", lambda run, screen, signals: None)
    with devices_of_config():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with evaluation on the way, to its report."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with devices_of_config():
        status = train(
            workdir,
            *SETTINGS,
            "--checkpoint.save_interval_steps=8",
            "--logging.log_interval_steps=2",
            "--evaluation.eval_interval_steps=6",
            "--logging.tensorboard=true",
        )
    assert status == 0
    return workdir


def test_a_run_leaves_everything_it_promises(finished):
    written = {path.name for path in finished.iterdir()}
    assert written >= {
        *("config.json", "metrics.jsonl", "report.md", "curves.png", "grounding.png"),
        *("checkpoints", "tensorboard"),
    }
    assert list((finished / "tensorboard").glob("events.*"))
    assert config_from_json((finished / "config.json").read_text()).steps == 12


def test_the_log_has_losses_pace_and_held_out_metrics(finished):
    losses = [line for line in log(finished) if "loss" in line]
    assert [line["step"] for line in losses] == [2, 4, 6, 8, 10, 12]
    assert {"contrastive", "box_l1", "box_giou", "region", "match_iou"} <= losses[0].keys()
    assert {"learning_rate", "grad_norm", "images_per_second", "data_wait"} <= losses[0].keys()
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.3
    measured = [line["step"] for line in log(finished) if "validation/box_recall" in line]
    assert measured == [6, 12, 12]  # on the way, and at the end with the test sets
    assert "unseen/description/alpha0" in log(finished)[-1]
    assert not any("unseen" in name for line in log(finished)[:-1] for name in line)


def test_the_newest_and_the_best_by_a_held_out_metric_are_there(finished):
    steps = checkpoint.complete_steps(finished / "checkpoints")
    assert steps[-1] == 12
    name = "validation/description/alpha0"
    scores = {line["step"]: line[name] for line in log(finished)[:-1] if name in line}
    assert checkpoint.load(finished, best=True).step == max(
        scores, key=lambda step: (scores[step], step)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("trained_only")
def test_a_plan_is_printed_beside_what_is_measured(tmp_path, capsys):
    """Host devices stand for the GPUs in both."""
    planned = tmp_path / "plan.json"
    command = [f"--config={CONFIG}", *SETTINGS]
    assert grain_jax.plan.main([*command, "--topology=h100x2", f"--json={planned}"]) == 0
    capsys.readouterr()
    first = ["--max_steps_this_run=4", "--logging.log_interval_steps=2"]
    assert train(tmp_path / "run", *SETTINGS, *first, f"--logging.plan={planned}") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("Planned: at least") == 1
    assert "GiB a device." in printed.partition("Planned: at least")[2]
    other = train(tmp_path / "other", *SETTINGS, "--batch_size=8", f"--logging.plan={planned}")
    assert other == 2
    assert "was made with batch_size" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.usefixtures("trained_only")
def test_labelled_images_steer_a_run_where_the_user_says_so(tmp_path, capsys):
    for label in ("red bird", "blue bird"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for shade in (0, 250, 99):
            image = Image.fromarray(np.full((40, 40, 3), shade, np.uint8))
            image.save(tmp_path / "pets" / label / f"{shade}.png")
    workdir = tmp_path / "run"
    status = train(
        workdir,
        *SETTINGS,
        "--max_steps_this_run=4",
        "--evaluation.eval_interval_steps=2",
        "--evaluation.max_images=4",
        f"--evaluation.zero_shot_during_training={tmp_path / 'pets'}",
        "--evaluation.best_metric=pets/name",
        variant="clip",
    )
    assert status == 0
    assert "metrics of 'pets' flatter" in " ".join(capsys.readouterr().out.split())
    scores = {line["step"]: line["pets/name"] for line in log(workdir) if "pets/name" in line}
    assert list(scores) == [2, 4]
    assert set(scores.values()) <= {0.0, 0.25, 0.5, 0.75, 1.0}  # of 4 images
    best = checkpoint.load(workdir, best=True).step
    assert scores[best] == max(scores.values())


def test_the_same_command_on_a_finished_run_says_so(finished, capsys):
    before = (finished / "report.md").stat().st_mtime_ns
    assert train(finished, *SETTINGS) == 0
    assert f"This run is finished (step 12); its report is {finished}" in capsys.readouterr().out
    assert (finished / "report.md").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.usefixtures("trained_only")
def test_the_baseline_is_the_same_trainer(tmp_path, capsys):
    workdir = tmp_path / "clip"
    assert train(workdir, *SETTINGS, variant="clip") == 0
    assert "CLIP, " in capsys.readouterr().out
    lines = log(workdir)
    assert "box_l1" not in lines[0]
    assert lines[-1]["contrastive"] < lines[0]["contrastive"]


@pytest.mark.slow
@pytest.mark.usefixtures("trained_only")
def test_too_many_bad_steps_stop_the_run_and_keep_the_good_checkpoint(tmp_path, capsys):
    """The second step goes so far that no later one is finite; the resumed run finds the same."""
    arguments = (
        tmp_path / "run",
        "--optim.learning_rate=1e30",
        "--optim.max_consecutive_nonfinite=3",
        "--checkpoint.save_interval_steps=1",
        "--steps=50",
    )
    assert train(*arguments, variant="clip") == 1
    output = capsys.readouterr().out
    assert "not finite for" in output
    assert "Lower optim.learning_rate" in output
    assert "Step 3 changed nothing" in output
    assert "step 2 is saved" in output
    lines = log(tmp_path / "run")
    (bad,) = [line for line in lines if line["step"] == 3 and "nonfinite_batch_ids" in line]
    assert len(bad["nonfinite_batch_index"]) == len(bad["nonfinite_batch_ids"]) == 16
    assert checkpoint.complete_steps(tmp_path / "run" / "checkpoints") == [1, 2]
    assert train(*arguments, variant="clip") == 1
    assert checkpoint.complete_steps(tmp_path / "run" / "checkpoints") == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh.data=3"], "does not fit 8 devices"),
        (["--batch_size=12"], "cannot be split over 8 devices"),
        (["--model.text.vocab_size=20"], "raise the latter"),
        (["--batch_size=64"], "fewer than one batch"),
        (["--model.image_size=33"], "not a multiple of model.vision.patch_size"),
        (["--evaluation.zero_shot=nowhere"], "nowhere"),
        (
            [
                "--evaluation.eval_interval_steps=2",
                "--evaluation.best_metric=validation/recal",
            ],
            "Did you mean 'validation/box_recall'?",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, capsys, arguments, message):
    assert train(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error
    assert error.count("\n") == 1
    assert checkpoint.complete_steps(tmp_path / "run" / "checkpoints") == []


@pytest.mark.slow
@pytest.mark.usefixtures("trained_only")
def test_a_log_whose_package_is_not_there_is_refused(tmp_path, capsys):
    """Not before the state is made: on the devices for which it is compiled already."""
    assert train(tmp_path / "run", "--logging.wandb=true", *SETTINGS, variant="clip") == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert "[wandb]" in error
    assert error.count("\n") == 1
    assert checkpoint.complete_steps(tmp_path / "run" / "checkpoints") == []


def test_a_check_says_what_would_start_and_writes_nothing(tmp_path, capsys):
    arguments = ("--check", "--check_devices=2x4", "--data.num_workers=16")
    arguments += ("--data.cache=none",)
    assert train(tmp_path / "run", *arguments) == 0
    output = capsys.readouterr().out
    assert "8 steps of batch 16" in output
    assert "48 images of synthetic_birds/train" in output
    assert "Nothing was started" in output
    assert not (tmp_path / "run").exists()


def test_a_check_finds_a_mesh_that_cannot_split_a_parameter(tmp_path, capsys):
    arguments = ("--check", "--check_devices=16", "--mesh.tensor=16")
    assert train(tmp_path / "run", *arguments) == 2
    assert "mesh.tensor = 16 cannot split parameter" in capsys.readouterr().err


def test_a_check_of_a_run_that_is_there_knows_where_it_stands(finished, capsys):
    assert train(finished, "--check", "--steps=30", "--optim.ema_decay=0.9") == 2
    assert "has finished its 12 steps" in capsys.readouterr().err
    assert train(finished, "--check", *SETTINGS) == 0
    output = " ".join(capsys.readouterr().out.split())  # a long folder wraps
    assert "resumed at step 12" in output


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("3", "multiple of 3"),
        ("2x8", "divisor of 8"),
        ("many", "expected a number such as 16, or 2x8"),
    ],
)
def test_a_check_refuses_devices_that_the_mesh_does_not_fit(tmp_path, capsys, devices, message):
    fsdp = ("--mesh.fsdp=16",) if devices == "2x8" else ()
    assert train(tmp_path / "run", f"--check_devices={devices}", *fsdp) == 2
    assert message in capsys.readouterr().err


def test_no_more_loader_processes_than_cpus(monkeypatch):
    monkeypatch.setattr(runtime, "usable_cpus", lambda: 3)
    data, notes = fitting_loader(DataConfig(num_workers=16), rows=256)
    assert data.num_workers == 3
    assert "num_workers = 16" in notes[0]
    assert "3 loader processes are started" in notes[0]
    for fits in (0, 3):
        data = DataConfig(num_workers=fits)
        assert fitting_loader(data, rows=256) == (data, [])


@pytest.mark.parametrize(("rows", "expected"), [(4, 2), (1, 0)])
def test_no_more_loader_processes_than_rows_keep_busy(monkeypatch, rows, expected):
    """A small batch of each process: fewer are started, instead of an error after the queue."""
    monkeypatch.setattr(runtime, "usable_cpus", lambda: 16)
    data, notes = fitting_loader(DataConfig(num_workers=16), rows=rows)
    assert data.num_workers == expected
    assert f"with {rows} images" in notes[0]
    started = f"{expected} loader processes are" if expected else "threads of this process"
    assert started in notes[0]
    plan_loader(data, rows=rows, row_bytes=1)


def test_help_and_print_config(capsys):
    assert grain_jax.train.main(["--help"]) == 0
    assert "--workdir" in capsys.readouterr().out
    assert grain_jax.train.main(["--print_config", "--seed=5"]) == 0
    assert config_from_json(capsys.readouterr().out).seed == 5
