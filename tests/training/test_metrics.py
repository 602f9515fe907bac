"""Log windows and files."""

import json
import os
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_batch, tiny_config

from grain_jax.results import FILE as RESULTS_FILE
from grain_jax.results import Result, read_results
from grain_jax.training.metrics import FILE, MetricsLog, Window
from grain_jax.visualize.curves import read_metrics


def step_metrics(loss, boxes, *, bad=0.0, streak=0.0, replaced=0.0):
    one = jnp.float32(1)
    return {
        "loss": (jnp.float32(loss), one * (1 - bad)),
        "box_l1": (jnp.float32(boxes[0]), jnp.float32(boxes[1])),
        "nonfinite_steps": (jnp.float32(bad), one),
        "consecutive_nonfinite": (jnp.float32(streak), one),
        "replaced_images": (jnp.float32(replaced), one),
    }


def test_a_window_gives_exact_means_and_names_bad_batches():
    window, batch = Window(), jax.device_put(random_batch())
    window.add(11, step_metrics(2.0, (6.0, 3.0)), batch)
    window.add(12, step_metrics(0.0, (0.0, 0.0), bad=1.0, streak=1.0), batch)
    window.add(13, step_metrics(4.0, (1.0, 4.0), replaced=2.0), batch)
    summary = window.close(batch_size=16, wait_seconds=0.0)
    assert summary.step == 13
    assert summary.values["loss"] == 3.0  # of the two good steps
    assert summary.values["box_l1"] == 1.0  # 7 over 7 boxes, not the mean of 2 and 0.25
    assert summary.values["nonfinite_steps"] == 1.0
    assert summary.values["replaced_images"] == 2.0
    assert summary.values["consecutive_nonfinite"] == 1.0
    assert summary.consecutive_nonfinite == 0
    assert list(summary.nonfinite_batches) == [12]
    np.testing.assert_array_equal(summary.nonfinite_batches[12], np.arange(16))


def test_each_step_of_a_window_is_told_once_it_has_its_result():
    window, waited = Window(), []

    class OnDevice:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            waited.append(self.step)

    assert list(window.results()) == []
    for step in (11, 12):
        window.add(step, {"loss": (OnDevice(step), OnDevice(step))}, random_batch())
    for step in window.results():
        assert waited == [11, 11] + [12, 12] * (step == 12)


def test_pace_leaves_out_compiling_and_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    window, batch = Window(), jax.device_put(random_batch())
    window.add(1, step_metrics(1.0, (1.0, 1.0)), batch)
    now[0] = 100.0  # compiled
    window.restart_clock(wait_seconds=5.0)
    window.add(2, step_metrics(1.0, (1.0, 1.0)), batch)
    now[0] = 102.0
    with window.paused():
        now[0] = 150.0  # evaluated
    summary = window.close(batch_size=16, wait_seconds=6.0)
    assert summary.values["images_per_second"] == 8.0
    assert summary.values["data_wait"] == 0.5
    assert summary.seconds_per_step == 2.0


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    config = tiny_config()
    log = MetricsLog(tmp_path, config, start_step=0)
    for step in (2, 4, 6):
        log.write(step, {"loss": float(step), "train_seconds": 10.0 * step})
        log.write_results(step, [Result("dev", "name", None, "top1", step / 10)])
    log.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    log = MetricsLog(tmp_path, config, start_step=4)
    assert log.seconds_before == 40.0
    log.write(6, {"loss": 6.5})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["dev/name"] for line in lines if "dev/name" in line] == [0.2, 0.4]
    lines = [line for line in lines if "loss" in line]
    records = (tmp_path / RESULTS_FILE).read_text().splitlines()
    assert [json.loads(line)["value"] for line in records] == [0.2, 0.4]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2.0), (4, 4.0), (6, 6.5)]
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    "cut",
    [
        b'{"step": 6, "lo',  # killed while writing
        b'{"step": 6, "name": "caf\xc3',  # in the middle of a letter
        bytes(4096),  # what some file systems have after the power was lost
        b"\xff\xfe\x00{}",
    ],
)
def test_a_last_line_that_was_cut_costs_that_line_alone(tmp_path, cut):
    config = tiny_config()
    log = MetricsLog(tmp_path, config, start_step=0)
    log.write(2, {"loss": 2.0})
    log.write_results(2, [Result("dev", "name", None, "top1", 0.5)])
    log.write(4, {"loss": 1.0})
    log.close()
    for name in (FILE, RESULTS_FILE):
        with (tmp_path / name).open("ab") as file:
            file.write(cut)
    assert read_metrics(tmp_path / FILE)[-1] == {"step": 4, "loss": 1.0}
    assert read_results(tmp_path)[2][0].value == 0.5
    log = MetricsLog(tmp_path, config, start_step=4)
    log.write(6, {"loss": 0.5})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines if "loss" in line] == [
        (2, 2.0),
        (4, 1.0),
        (6, 0.5),
    ]
    assert len((tmp_path / RESULTS_FILE).read_text().splitlines()) == 1


def test_lines_are_on_the_disk_after_a_sync(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, tiny_config(), start_step=0)
    log.write(2, {"loss": 2.0})
    synced = []

    def fsync(number):
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        assert b'"loss": 2.0' in (tmp_path / FILE).read_bytes()

    monkeypatch.setattr(os, "fsync", fsync)
    log.sync()
    assert synced == [str(tmp_path / FILE), str(tmp_path / RESULTS_FILE)]
    log.close()


def test_wandb_without_the_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_config()
    config.logging.wandb = True
    with pytest.raises(ValueError, match=r"pip install .*\[wandb\]"):
        MetricsLog(tmp_path, config, start_step=0)


def test_wandb_gets_figures_and_keeps_its_identity(tmp_path, monkeypatch):
    started, logged = [], []

    def init(**settings):
        started.append(settings)
        return types.SimpleNamespace(
            log=lambda figures, step: logged.append((step, figures)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = tiny_config()
    config.logging.wandb = True
    for start_step in (0, 2):
        log = MetricsLog(tmp_path, config, start_step=start_step)
        log.write(start_step + 2, {"loss": 1.0})
        log.write(start_step + 1, {"nonfinite_batch_ids": ["a"]})
        log.close()
    assert logged == [(2, {"loss": 1.0}), (4, {"loss": 1.0})]
    assert started[0]["id"] == started[1]["id"]
    assert started[0]["config"]["seed"] == 0
