"""A run on a mixture: what it says first, and that its weights may change where it resumes."""

import signal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from few_devices import devices_of_config
from places import HELPERS
from prepared_records import noise_image, write_prepared
from training_process import run

import grain_jax.train
from grain_jax.data.loader import training_batches
from grain_jax.data.mixture import Mixture, source_marks, source_sizes
from grain_jax.data.records import Caption, Record
from grain_jax.data.source import open_training_source
from grain_jax.data.tokenizer import build_tokenizer
from grain_jax.training import checkpoint
from grain_jax.training.resume import check_same_data
from grain_jax.training.run_folder import read_metadata

pytestmark = pytest.mark.multiprocess
BATCH, STEPS = 8, 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    made = []
    for name, count in (("large", 40), ("small", 12)):
        records = [
            Record(f"{name}-{i}", noise_image(i), (Caption(f"{name} {i}"),)) for i in range(count)
        ]
        folder = tmp_path_factory.mktemp("sets") / name
        made.append(write_prepared(folder, {"train": records, "dev": records[:4]}))
    return made[0], made[1]


def base(mixture: str) -> list[str]:
    return [
        f"--config={HELPERS / 'tiny_world.py'}:clip",
        "--data.dataset=tfds",
        f"--data.mixture={mixture}",
        "--data.eval_split=",
        *("--data.tokenizer=clip", "--model.text.vocab_size=49408", "--mesh.cpu_devices=1"),
        "--data.synthetic_birds.num_train_images=16000",
        "--data.synthetic_birds.num_eval_images=1500",
        *(f"--batch_size={BATCH}", f"--steps={STEPS}", "--loss.image_description_weight=0"),
        *("--checkpoint.save_interval_steps=1", "--checkpoint.asynchronous=false"),
        "--logging.log_interval_steps=1",
    ]


@pytest.mark.slow
def test_killed_and_resumed_with_other_weights(folders, tmp_path, capsys, monkeypatch):
    """SIGKILL in step 4; then the batches are those of a run that always had the new weights."""
    large, small = folders
    workdir = tmp_path / "run"
    first = base(f'("{large}=0.7","{small}=0.3")')
    status, _ = run(workdir, base=first, TRAIN_KILL_AT="4")
    assert status == -signal.SIGKILL
    step = checkpoint.complete_steps(workdir / "checkpoints")[-1]
    assert step == 3
    assert read_metadata(workdir / "checkpoints", step)["set_sizes"] == [40, 12]

    resumed = []

    def read(run, *_):
        resumed.extend((run.config, [np.asarray(next(run.batches).index) for _ in range(5)]))

    monkeypatch.setattr(grain_jax.train, "train", read)
    monkeypatch.setattr(grain_jax.train, "finish", lambda run, screen, signals: None)
    with devices_of_config():
        second = base(f'("{large}=1","{small}=3")')
        assert grain_jax.train.main([*second, f"--workdir={workdir}"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "resumed at step 3" in output
    assert "changed: data.mixture:" in output
    assert f"{small}: 12 images, weight 3 (75 % of the samples), 6 epochs" in output
    config, found = resumed
    always = training_batches(
        open_training_source(config.data, image_size=32),
        config.data,
        build_tokenizer(config.data),
        image_size=32,
        batch_size=BATCH,
        seed=config.seed,
    )
    with always:
        expected = [next(always).index for _ in range(step + 5)][step:]
    np.testing.assert_array_equal(found, expected)
    assert sum((index >= 40).sum() for index in found) == 30  # three quarters of five batches


def refused(arguments: list[str], capsys) -> str:
    assert grain_jax.train.main(arguments) == 2
    return " ".join(capsys.readouterr().err.split())


def test_the_check_tells_the_sets_and_refuses_what_does_not_fit(folders, tmp_path, capsys):
    large, small = folders
    check = ["--check", f"--workdir={tmp_path / 'run'}"]
    mixed = base(f'("{large}=0.7","{small}=0.3")')
    held_out = [f"--data.data_dir={small}", "--data.eval_split=dev"]
    assert grain_jax.train.main([*mixed, *held_out, *check]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "52 images of tfds/train in 2 folders" in output
    assert f"mixture {large}: 40 images, weight 0.7 (70 % of the samples), 1.68 epochs" in output
    assert f"{small}: 12 images, weight 0.3 (30 % of the samples), 2.4 epochs" in output
    assert f"{tmp_path / 'gone'}" in refused(
        [*base(f'("{large}=1","{tmp_path / "gone"}=1")'), *check], capsys
    )
    assert "--data.data_dir=DIR" in refused([*mixed, "--data.eval_split=dev", *check], capsys)
    assert "has no effect" in refused([*mixed, f"--data.data_dir={large}", *check], capsys)


def test_sets_of_one_size_cannot_be_exchanged_or_replaced(tmp_path):
    def source_of(*names: str) -> Mixture:
        sets = [[Record(f"{name}-{i}", b"") for i in range(9)] for name in names]
        return Mixture(sets, [Fraction(1)] * len(sets), names)

    source = source_of("birds", "cars")
    saved = {"set_sizes": source_sizes(source), "set_marks": source_marks(source)}
    check_same_data(saved, source, tmp_path)
    check_same_data({"set_sizes": [9, 9]}, source, tmp_path)  # as runs of before saved it
    for names, number in ((("cars", "birds"), 1), (("birds", "boats"), 2)):
        with pytest.raises(
            ValueError, match=f"{names[number - 1]}, entry {number} of data.mixture"
        ):
            check_same_data(saved, source_of(*names), tmp_path)
    reverse = [Record(f"birds-{i}", b"") for i in range(8, -1, -1)]
    alone = {"set_sizes": [9], "set_marks": saved["set_marks"][:1]}
    check_same_data(alone, source.sources[0], tmp_path)
    with pytest.raises(ValueError, match="the data set has other images"):
        check_same_data(alone, reverse, tmp_path)


@pytest.mark.slow
def test_another_set_is_refused_where_the_run_resumes(folders, tmp_path, capsys):
    large, small = folders
    workdir = tmp_path / "run"
    assert run(workdir, "--max_steps_this_run=1", base=base(f'("{large}=1","{small}=1")'))[0] == 0
    for other in (f'("{small}=1","{large}=1")', f'("{large}=1",)'):
        error = refused([*base(other), f"--workdir={workdir}", "--check"], capsys)
        assert "was trained on 40 + 12 images and the data set now has" in error
