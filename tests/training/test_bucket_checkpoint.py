"""Checkpoints in a bucket: which are whole, and what a killed save has left."""

import gc
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_run import TinyRun, averaged_config, bundle_of

from grain_jax.config import CheckpointConfig
from grain_jax.parallel.processes import may_pass
from grain_jax.paths import run_path
from grain_jax.training import checkpoint
from grain_jax.training.checkpoint import Checkpoints, SaveFailed
from grain_jax.training.run_folder import complete_steps


@pytest.fixture(scope="module")
def tiny():
    return TinyRun(averaged_config())


def opened(run, tiny, **settings):
    settings.setdefault("max_to_keep", 2)
    return Checkpoints(run, CheckpointConfig(**settings), metadata=bundle_of(tiny).metadata())


@pytest.mark.slow
def test_the_newest_and_the_best_are_kept(storage, tiny):
    run = run_path("gs://bucket/run")
    checkpoints = opened(run, tiny, max_to_keep=1)
    for step, score in ((1, 0.9), (2, 0.1), (3, 0.2)):
        checkpoints.save(tiny.state, step=step, score=score)
    checkpoints.close()
    assert checkpoint.latest_in_all(run) == 3
    assert complete_steps(run / "checkpoints") == [1, 3]  # the best and the newest
    assert not storage.names("bucket", "run/checkpoints/2/")  # nothing is left of it
    loaded = checkpoint.load("gs://bucket/run", best=True)
    assert loaded.step == 1
    jax.tree.map(np.testing.assert_array_equal, loaded.params, tiny.state.ema_params)


def test_a_step_without_its_end_mark_is_no_checkpoint_and_makes_way(storage, tiny):
    run = run_path("gs://bucket/run")
    started = json.dumps({"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": None}).encode()
    storage.put("bucket", "run/checkpoints/4/_CHECKPOINT_METADATA", started)
    storage.put("bucket", "run/checkpoints/4/params/d/abc", b"half")
    assert checkpoint.latest_in_all(run) is None
    with pytest.raises(ValueError, match="There is no checkpoint in gs://bucket/run"):
        checkpoint.load(run)
    checkpoints = opened(run, tiny)
    assert not storage.names("bucket", "run/checkpoints/4/")
    checkpoints.save(tiny.state, step=4)
    checkpoints.wait()
    assert complete_steps(run / "checkpoints") == [4]
    restored = checkpoints.restore(4, tiny.abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, tiny.state)
    checkpoints.close()


def test_a_checkpoint_copied_without_its_end_mark_is_not_removed(storage, tiny):
    whole = json.dumps({"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": 2}).encode()
    storage.put("bucket", "run/checkpoints/4/_CHECKPOINT_METADATA", whole)
    with pytest.raises(ValueError, match=r"gs://bucket/run/checkpoints/4 was saved whole elsewher"):
        opened(run_path("gs://bucket/run"), tiny)
    assert storage.names("bucket") == ["run/checkpoints/4/_CHECKPOINT_METADATA"]


def save_and_wait(checkpoints, state):
    checkpoints.save(state, step=1)
    checkpoints.wait()


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("UNAVAILABLE: Error writing gs://bucket/run: CURL error", True),
        ("PERMISSION_DENIED: Error writing gs://bucket/run", False),
    ],
)
def test_a_save_into_a_bucket_out_of_reach_may_be_tried_again(
    storage, tiny, monkeypatch, text, passes
):
    checkpoints = opened(run_path("gs://bucket/run"), tiny)

    def fails(manager):
        raise ValueError(text)  # as TensorStore does

    with monkeypatch.context() as patched:
        patched.setattr(ocp.CheckpointManager, "check_for_errors", fails)
        with pytest.raises(SaveFailed, match=text) as raised:
            checkpoints.check()
    assert may_pass(raised.value) == passes
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_is_refused_says_where(storage, tiny):
    """What Orbax leaves of it unawaited is freed here, with its warnings, and in no other test."""
    checkpoints = opened(run_path("gs://bucket/run"), tiny)
    storage.refuse = lambda method, path: 403 if method == "POST" else None
    with pytest.raises(SaveFailed, match="could not be written to gs://bucket/run/checkpoints"):
        save_and_wait(checkpoints, tiny.state)
    del checkpoints
    gc.collect()
