"""Checkpoints: what is kept, what comes back on other devices, what `load` needs."""

import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_run import TinyRun, averaged_config, random_batch

from grain_jax.config import CheckpointConfig, MeshConfig
from grain_jax.data.synthetic_birds.language import PROMPT_TEMPLATES
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.bundle import make_metadata
from grain_jax.parallel import sharding
from grain_jax.training import checkpoint
from grain_jax.training.checkpoint import Checkpoints, SaveFailed


def metadata(config):
    return make_metadata(
        config,
        tokenizer=WordTokenizer(["red", "crest"]),
        preprocessing=Preprocessing.from_config(config.data, config.model.image_size),
        templates=PROMPT_TEMPLATES,
        num_images=16,
    )


@pytest.fixture(scope="module")
def on_8():
    """A run with averaging, two steps trained on 8 devices, 2 x 2 x 2."""
    run = TinyRun(averaged_config(), mesh=MeshConfig(2, 2, 2), devices=8)
    run.train([random_batch(0), random_batch(1)])
    return run


@pytest.fixture(scope="module")
def saved(on_8, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder, CheckpointConfig(), metadata=metadata(on_8.config))
    checkpoints.save(on_8.state, step=2)
    checkpoints.wait()
    yield folder, checkpoints
    checkpoints.close()


def test_a_save_says_when_it_is_on_disk_without_being_waited_for(on_8, tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), metadata=metadata(on_8.config))
    assert not checkpoints.saving
    checkpoints.save(on_8.state, step=2)
    deadline = time.monotonic() + 60
    while checkpoints.saving and time.monotonic() < deadline:
        time.sleep(0.01)
    assert checkpoints.latest() == 2
    checkpoints.close()


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), jax.device_get(other))


@pytest.mark.parametrize(
    ("shape", "devices"), [((1, 2, 1), 2), ((1, 1, 1), 1), ((1, 2, 2), 4), ((8, 1, 1), 8)]
)
def test_restore_on_other_devices_is_exact(on_8, saved, shape, devices):
    other = TinyRun(
        on_8.config, mesh=MeshConfig(*shape), devices=devices, start=jax.device_get(on_8.state)
    )
    restored = saved[1].restore(2, other.abstract)
    same(restored, on_8.state)
    assert_placed_as(restored, other.abstract)


def assert_placed_as(state, abstract):
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_small_vectors_that_were_saved_split_over_fsdp_come_back_whole(on_8, tmp_path, monkeypatch):
    """Runs of before had every parameter with an "embed" axis split over "fsdp"."""
    start = jax.device_get(on_8.state)
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "NARROW", 0)
        before = TinyRun(on_8.config, mesh=MeshConfig(2, 2, 2), devices=8, start=start)
    for params in (before.state.params, before.state.opt_state[1].mu, before.state.ema_params):
        assert not params["vision"]["norm"]["scale"].sharding.is_fully_replicated
    settings = CheckpointConfig(asynchronous=False)
    checkpoints = Checkpoints(tmp_path, settings, metadata=metadata(on_8.config))
    checkpoints.save(before.state, step=2)
    restored = checkpoints.restore(2, on_8.abstract)
    checkpoints.close()
    same(restored, start)
    assert_placed_as(restored, on_8.abstract)
    assert restored.params["vision"]["norm"]["scale"].sharding.is_fully_replicated


@pytest.mark.slow
def test_8_devices_then_1_train_on_as_8(on_8, saved):
    """The next step on one device, from the checkpoint of eight, gives the losses of eight."""
    start = jax.device_get(on_8.state)
    on_1 = TinyRun(on_8.config, start=start)
    on_1.state = saved[1].restore(2, on_1.abstract)
    alone = on_1.train([random_batch(2)])[0]
    together = on_8.train([random_batch(2)])[0]
    on_8.set_state(start)
    np.testing.assert_allclose(alone["loss"], together["loss"], rtol=1e-5)


def test_load_gives_the_averaged_weights_and_all_that_goes_with_them(on_8, saved):
    loaded = checkpoint.load(saved[0])
    same(loaded.params, on_8.state.ema_params)
    assert not np.array_equal(
        loaded.params["text"]["projection"], on_8.state.params["text"]["projection"]
    )
    assert loaded.config == on_8.config
    assert loaded.step == 2
    assert loaded.templates == PROMPT_TEMPLATES
    assert loaded.preprocessing.image_size == 16
    expected, _ = WordTokenizer(["red", "crest"]).encode(["a red crest"], 6)
    np.testing.assert_array_equal(loaded.tokenizer.encode(["a red crest"], 6)[0], expected)
    output = loaded.model.apply(
        {"params": loaded.params}, jnp.zeros((2, 16, 16, 3)), method="encode_images"
    )
    assert output.image_embed.shape == (2, 16)


def test_load_reads_no_optimizer_state(saved, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(saved[0], copy)
    shutil.rmtree(copy / "checkpoints" / "2" / "optimizer")
    assert checkpoint.load(copy).step == 2


def test_load_onto_a_mesh(saved, on_8):
    loaded = checkpoint.load(saved[0], mesh=on_8.mesh)
    same(loaded.params, on_8.state.ema_params)
    kernel = loaded.params["vision"]["layer_0"]["mlp"]["fc1"]["kernel"]
    assert len(kernel.sharding.device_set) == 8


@pytest.fixture(scope="module")
def on_1(on_8):
    """The same run on one device, which saves in a tenth of the time."""
    return TinyRun(on_8.config, start=jax.device_get(on_8.state))


def test_the_newest_and_the_best_are_kept(on_1, tmp_path):
    checkpoints = Checkpoints(
        tmp_path,
        CheckpointConfig(max_to_keep=2, asynchronous=False),
        metadata=metadata(on_1.config),
    )
    for step, score in [(1, 0.1), (2, 0.9), (3, None), (4, 0.3), (5, None)]:
        checkpoints.save(on_1.state, step=step, score=score)
    checkpoints.wait()
    assert checkpoint.complete_steps(checkpoints.folder) == [2, 4, 5]
    assert checkpoint.load(tmp_path, best=True).step == 2
    assert checkpoint.load(tmp_path).step == 5
    assert checkpoint.load(tmp_path / "checkpoints", step=4).step == 4
    with pytest.raises(ValueError, match=r"no step 3; it has \[2, 4, 5\]"):
        checkpoint.load(tmp_path, step=3)
    checkpoints.close()


def test_scores_of_another_metric_do_not_count(on_1, tmp_path):
    settings = CheckpointConfig(max_to_keep=1, asynchronous=False)
    for metric, step, score in (("recall", 1, 0.9), ("accuracy", 2, 0.2), ("accuracy", 3, 0.1)):
        checkpoints = Checkpoints(tmp_path, settings, metadata=metadata(on_1.config), metric=metric)
        before = checkpoints.best_score()
        checkpoints.save(on_1.state, step=step, score=score)
        checkpoints.wait()
        checkpoints.close()
    assert before == 0.2
    assert checkpoint.complete_steps(checkpoints.folder) == [2, 3]
    assert checkpoint.load(tmp_path, best=True).step == 2


def test_an_incomplete_checkpoint_is_ignored(saved, on_8, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(saved[0], copy)
    folder = copy / "checkpoints"
    (folder / "7.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    shutil.copytree(folder / "2", folder / "9")
    (folder / "9" / "_CHECKPOINT_METADATA").unlink()  # half copied from elsewhere
    assert checkpoint.load(copy).step == 2
    checkpoints = Checkpoints(copy, CheckpointConfig(), metadata=metadata(on_8.config))
    assert checkpoints.latest() == 2
    checkpoints.save(on_8.state, step=9)  # the half one is put aside, not trusted
    checkpoints.wait()
    assert checkpoints.latest() == 9
    assert (folder / "9.incomplete").exists()
    checkpoints.close()


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        checkpoint.load(tmp_path)


def test_best_without_a_metric_is_refused(saved):
    with pytest.raises(ValueError, match="carries a held-out metric"):
        checkpoint.load(saved[0], best=True)


def test_a_save_that_failed_in_the_background_surfaces(on_8, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), metadata=metadata(on_8.config))

    def disk_full(manager):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "check_for_errors", disk_full)
    with pytest.raises(SaveFailed, match=r"No space left on device.*Check the space"):
        checkpoints.check()
    with pytest.raises(SaveFailed, match="No space left"):
        checkpoints.save(on_8.state, step=5)

    def other_process_left(manager):  # as Orbax's barriers say it
        cause = jax.errors.JaxRuntimeError("UNAVAILABLE: the other has left")
        raise TimeoutError("Timed out while waiting for the barrier.") from cause

    monkeypatch.setattr(ocp.CheckpointManager, "check_for_errors", other_process_left)
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE: the other has left"):
        checkpoints.check()
    monkeypatch.undo()
    checkpoints.close()
