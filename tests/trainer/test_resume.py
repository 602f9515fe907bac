"""A run that is killed, stopped or changed goes on exactly, or says why it cannot."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_world
from few_devices import devices_of_config
from training_process import (
    ARGUMENTS,
    CLIP,
    ENDLESS,
    STEPS,
    lines,
    run,
    start,
    undisturbed_run,
)

import grain_jax.train
from grain_jax.config.cli import config_from_json, config_to_json
from grain_jax.parallel.processes import StopRequested, StopSignals
from grain_jax.training import checkpoint
from grain_jax.training.resume import check_schedule

pytestmark = pytest.mark.multiprocess


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    """SIGKILL before the first checkpoint, then while one is being written, then to the end."""
    workdir = tmp_path / "killed"
    assert run(workdir, TRAIN_KILL_AT="3")[0] == -signal.SIGKILL
    assert checkpoint.complete_steps(workdir / "checkpoints") == []
    assert run(workdir, TRAIN_KILL_AT="10")[0] == -signal.SIGKILL
    assert checkpoint.complete_steps(workdir / "checkpoints")[-1] in (4, 8)
    status, output = run(workdir)
    assert status == 0
    assert "resumed at step" in output

    assert lines(workdir) == lines(undisturbed_run())
    assert [line["step"] for line in lines(workdir)] == [2, 4, 6, 8, 10, 12]
    found, expected = checkpoint.load(workdir), checkpoint.load(undisturbed_run())
    assert found.step == expected.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(folder, output, exit status) of a run of CLIP that got SIGTERM after its first line."""
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    process = start(workdir, *ENDLESS, base=CLIP)
    while not (workdir / "metrics.jsonl").exists() or not lines(workdir):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    return workdir, output, process.returncode


def test_sigterm_saves_first_and_says_so(stopped):
    workdir, output, status = stopped
    assert status == 128 + signal.SIGTERM, output
    (saved,) = checkpoint.complete_steps(workdir / "checkpoints")
    assert "SIGTERM: saving before stopping" in output
    assert f"step {saved} is saved in {workdir}" in output
    assert lines(workdir)[-1]["step"] == saved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.embed_dim=32", r"model.embed_dim: 16 -> 32"),
        ("--data.caption_length=9", r"data.caption_length: 32 -> 9"),
        ("--seed=1", r"seed: 0 -> 1"),
        ("--optim.ema_decay=0.9", r"optim.ema_decay: 0.0 -> 0.9"),
    ],
)
def test_a_change_the_weights_or_batches_do_not_survive_is_refused(
    stopped, change, message, capsys
):
    workdir, *_ = stopped
    before = (workdir / "config.json").read_text()
    assert grain_jax.train.main([*CLIP, *ENDLESS, f"--workdir={workdir}", change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--workdir" in error
    assert (workdir / "config.json").read_text() == before


@pytest.mark.slow
def test_other_changes_are_allowed_and_told(tmp_path, capsys, monkeypatch):
    workdir = tmp_path / "longer"
    shutil.copytree(undisturbed_run(), workdir)
    arguments = (f"--steps={STEPS + 2}", "--optim.learning_rate=1e-4")
    assert grain_jax.train.main([*ARGUMENTS, f"--workdir={workdir}", *arguments]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "has finished its 12 steps, and with 14 its learning rate would go from 1e-05 to" in (
        error
    )
    assert f"--pretrained={workdir}" in error
    assert lines(workdir) == lines(undisturbed_run())
    monkeypatch.setattr(grain_jax.train, "finish", lambda run, screen, signals: None)
    with devices_of_config():
        command = [*ARGUMENTS, f"--workdir={workdir}", *arguments, "--change_schedule"]
        assert grain_jax.train.main(command) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "the learning rate of step 13 was to be 1e-05 and is 1.6" in output
    assert f"changed: steps: {STEPS} -> {STEPS + 2}" in output
    was = tiny_world.get_config().optim.learning_rate
    assert f"changed: optim.learning_rate: {was:g} -> 0.0001" in output
    assert lines(workdir)[-1]["step"] == STEPS + 2
    saved = config_from_json((workdir / "config.json").read_text())
    assert saved.optim.learning_rate == 1e-4


def saved_as(config, num_images=1000):
    """What a checkpoint of this run holds."""
    return {"config": json.loads(config_to_json(config)), "num_images": num_images}


def cosine_run(**settings):
    config = tiny_world.get_config()
    config.batch_size, config.optim.warmup_steps = 10, 100
    config.steps, config.optim.learning_rate, config.optim.final_learning_rate = 1000, 1e-3, 1e-5
    return dataclasses.replace(config, **settings)


def check(before, after, step, *, allowed=False):
    return check_schedule(saved_as(before), after, step=step, workdir=Path("W"), allowed=allowed)


def test_the_same_schedule_goes_on_without_a_word():
    run = cosine_run()
    for step in (1, 500, 1000):
        assert check(run, cosine_run(), step) == []
        assert check(run, cosine_run(max_steps_this_run=step), step) == []
    assert check(run, cosine_run(steps=0, epochs=10.0), 1000) == []  # as many steps


@pytest.mark.parametrize(
    ("given", "step", "message"),
    [
        ({"steps": 2000}, 1000, "finished its 1000 steps, .* 2000 .* from 1e-05 to 0.00054"),
        (
            {"steps": 1001},
            1000,
            "finished its 1000 steps, .* follow another curve from 1e-05",
        ),
        ({"steps": 0, "epochs": 20.0}, 1000, "finished its 1000 steps, and with 2000"),
        ({"steps": 2000}, 950, "at step 950 of 1000 steps, .* from 1.75e-05 to 0.00058"),
        ({"steps": 400}, 500, "at step 500 of 1000, past the 400 .*max_steps_this_run"),
        ({"steps": 500}, 500, "past the 500"),
    ],
)
def test_other_steps_that_would_restart_the_learning_rate_are_refused(given, step, message):
    with pytest.raises(ValueError, match=message) as raised:
        check(cosine_run(), cosine_run(**given), step)
    assert "--change_schedule" in str(raised.value)
    check(cosine_run(), cosine_run(**given), step, allowed=True)


def test_other_steps_that_change_little_are_told_with_both_rates():
    assert check(cosine_run(), cosine_run(steps=1100), 50) == []  # still warming up
    (note,) = check(cosine_run(), cosine_run(steps=2000), 400)
    assert note == "the learning rate of step 401 was to be 0.000752 and is 0.00094"


def test_a_learning_rate_that_was_set_is_meant():
    higher = cosine_run()
    higher.optim.learning_rate = 1e-2
    (note,) = check(cosine_run(), higher, 400)
    assert note == "the learning rate of step 401 was to be 0.000752 and is 0.0075"


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.1)


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal has it; a shell ignores it for what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_asks_and_a_second_one_aborts():
    with StopSignals() as signals:
        assert not signals.requested(1)
        send(signal.SIGINT)
        assert signals.requested(2)
        assert signals.exit_status == 130
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_evaluation_is_dropped_for_a_signal():
    with StopSignals() as signals:
        with pytest.raises(StopRequested), signals.interrupting():
            send(signal.SIGTERM)
        with pytest.raises(StopRequested), signals.interrupting():
            pytest.fail("a second evaluation began")
        assert signals.exit_status == 143
