"""python -m grain_jax.bench, in this process."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from grain_jax import bench
from grain_jax.benchmarking.profile import PAGE
from grain_jax.command_line import ExitStatus

TINY = [
    "--batch_size=8",
    "--model.dtype=float32",
    "--model.image_size=32",
    "--model.vision.width=16",
    "--model.vision.depth=1",
    "--model.vision.num_heads=2",
    "--model.text.width=16",
    "--model.text.depth=1",
    "--model.text.num_heads=2",
    "--model.decoder.width=16",
    "--model.decoder.depth=1",
    "--model.decoder.num_heads=2",
    "--data.caption_length=12",
    "--data.description_length=6",
]
CLIP = ["--config=configs/clip_vitb16_cc12m.py", *(word for word in TINY if "decoder" not in word)]
BIRDS = ["--config=demo:clip", *(word for word in CLIP[1:] if "length" not in word)]
# What launch/local.sh adds.
LOCAL = ["--coordinator=localhost:9", "--num_processes=2", "--process_id=0"]
SHOWN = [word for word in BIRDS if not word.startswith("--batch_size")]
SET = [*SHOWN, "--set=."]
SWEPT = [word for word in CLIP if not word.startswith("--batch_size")]


def measured(kind, words, tmp_path):
    figures = tmp_path / "figures.json"
    assert bench.main([kind, *words, f"--json={figures}"]) == ExitStatus.DONE
    stored = json.loads(figures.read_text())
    assert stored["measured"] == kind
    assert stored["versions"]["jax"]
    assert stored["hardware"]["cpus"] >= 1
    assert stored["hardware"]["processor"]
    assert stored["config"]["model"]["vision"]["width"] == 16
    return stored


@pytest.mark.slow
def test_bench_step_times_the_step_without_a_data_set(tmp_path, capsys):
    words = ["--config=configs/grain_vitb16_cc3m.py", "--timed_steps=3", *TINY]
    stored = measured("step", words, tmp_path)
    assert len(stored["seconds"]) == 3
    low, median = stored["percentiles"]["p10"], stored["percentiles"]["p50"]
    assert 0 < low <= median <= stored["percentiles"]["p90"]
    assert stored["images_per_second"] == pytest.approx(8 / median)
    assert stored["mfu"] is None  # no peak of this CPU is published
    assert stored["flops"]["vision"] > stored["useful_flops"]["captions"] > 0
    assert stored["useful_flops"]["captions"] < stored["flops"]["captions"]
    assert stored["temporary_bytes"] > 0
    assert stored["data_wait"] is None
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert "no published peak" in shown


@pytest.mark.slow
def test_a_profile_says_where_the_step_goes(tmp_path):
    measured("step", [*CLIP, "--timed_steps=1", f"--profile={tmp_path / 'trace'}"], tmp_path)
    page = (tmp_path / "trace" / PAGE).read_text()
    assert "| matrix products |" in page
    assert "| image tower |" in page
    assert "| captions |" in page
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_bench_loader_takes_batches_of_the_data(tmp_path, capsys):
    stored = measured("loader", [*BIRDS, "--timed_steps=4"], tmp_path)
    assert stored["images"] == 8
    assert stored["images_per_second"] == pytest.approx(32 / sum(stored["seconds"]))
    assert stored["bytes_of_image"] > 32 * 32 * 3
    assert stored["cpu_seconds"] > 0
    assert "2 threads" in capsys.readouterr().out


@pytest.mark.slow
def test_bench_full_says_how_long_the_step_waits_for_data(tmp_path, capsys):
    stored = measured("full", [*BIRDS, "--timed_steps=4"], tmp_path)
    assert len(stored["seconds"]) == 4
    assert 0 < stored["data_wait"] < 1
    assert stored["images_per_second"] == pytest.approx(32 / sum(stored["seconds"]))
    assert 0 < stored["useful_flops"]["captions"] < stored["flops"]["captions"]
    assert "data wait" in capsys.readouterr().out


@pytest.mark.slow
def test_bench_eval_encodes_and_classifies(tmp_path):
    words = [*SHOWN, "--num_images=12", "--num_classes=3", "--rounds=2"]
    words += ["--evaluation.batch_size=8"]
    stored = measured("eval", words, tmp_path)
    assert (stored["images"], stored["classes"], stored["batch_size"]) == (12, 3, 8)
    assert stored["texts"] >= 3 + 3 * 5
    for name in ("image_seconds", "text_seconds", "classify_seconds"):
        assert len(stored[name]) == 3
    assert stored["images_per_second"] == pytest.approx(24 / sum(stored["image_seconds"][1:]))


@pytest.mark.slow
def test_bench_checkpoint_saves_restores_and_leaves_nothing(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    stored = measured("checkpoint", [*BIRDS, "--rounds=2", f"--workdir={folder}"], tmp_path)
    assert list(folder.iterdir()) == []
    assert stored["num_bytes"] > 3 * 4 * 512 * 16  # the token table with two moments
    for blocked, saved in zip(stored["blocked_seconds"], stored["save_seconds"], strict=True):
        assert 0 < blocked < saved
    assert len(stored["restore_seconds"]) == 2
    assert stored["save_bytes_per_second"] > 0
    assert all(seconds > 0 for seconds in stored["beside_seconds"])


@pytest.mark.slow
def test_bench_sweep_marks_the_best(tmp_path, capsys):
    words = [*SWEPT, "--timed_steps=1", "--remats", "none", "full", "--batch_sizes", "16", "8"]
    variants = measured("sweep", words, tmp_path)["variants"]
    assert [(one["remat"], one["batch_size"]) for one in variants] == [
        ("none", 8),
        ("none", 16),
        ("full", 8),
        ("full", 16),
    ]
    speeds = [one["step"]["images_per_second"] for one in variants]
    assert [one["best"] for one in variants] == [speed == max(speeds) for speed in speeds]
    assert all(one["fits"] and one["needed_bytes"] > 0 for one in variants)
    assert "best" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "nothing"),
        (["everything"], "everything"),
        (["step", "--pretrained=some/clip"], "some/clip"),
        (["full", "--pretrained=some/clip"], "some/clip"),
        (["step", "--batch_size=12", *TINY[1:]], "batch_size"),
        (["step", "--timed_steps=0"], "timed_steps"),
        (["step", "--json=/nowhere/figures.json"], "/nowhere/figures.json"),
        (["loader", "--config=configs/clip_vitb16_cc12m.py"], "data_dir"),
        (["eval", *SHOWN, "--set=/nowhere"], "/nowhere"),
        (["checkpoint", *BIRDS, "--workdir=/nowhere"], "/nowhere"),
        (["sweep", *SWEPT, "--batch_sizes", "8", "many"], "many"),
        (["sweep", *SWEPT, "--remats", "some"], "some"),
        (["sweep", *SWEPT, "--batch_sizes", "8", "9"], "batch_size = 9"),
        (["sweep", *SWEPT, "--remats"], "at least one"),
        (["sweep", *CLIP, "--batch_sizes", "8"], "give --batch_sizes"),
        (["sweep", *SWEPT, "--model.remat", "full"], "give --remats"),
        (["eval", *SHOWN, "--timed_steps=3"], "--timed_steps"),
        (["checkpoint", *BIRDS, "--timed_steps=3"], "--timed_steps"),
        (["step", *CLIP, "--turns=3"], "--official"),
        (["step", *CLIP, "--turns=5"], "--official"),  # as it is by default
        (["step", *CLIP, "--steps=10"], "--timed_steps"),
        (["full", *BIRDS, "--max_steps_this_run=10"], "--max_steps_this_run"),
        (["step", *CLIP, "--logging.profile_step=3"], "--profile"),
        (["step", *CLIP, "--logging.compilation_cache=programs"], "compilation"),
        (["full", *BIRDS, "--logging.plan=plan.json"], "beside what it measures"),
        (["checkpoint", *BIRDS, "--epochs=1"], "--rounds"),
        (["eval", *BIRDS], "--evaluation.batch_size"),
        (["eval", *SHOWN, "--evaluation.zero_shot=photos"], "--set=DIR"),
        (["eval", *SET, "--num_images=512"], "--num_images"),
        (["eval", *SET, "--num_classes=3"], "--num_classes"),
        (["step", *CLIP, "--official=/nowhere"], "model.type = 'clip'"),
        (["step", "--config=demo:smoke", "--open_clip"], "model.type = 'grain'"),
    ],
)
def test_bench_refuses(words, named, capsys):
    assert bench.main(words) == ExitStatus.MISTAKE
    assert named in capsys.readouterr().err


def test_bench_says_what_it_can_measure(capsys):
    assert bench.main(["--help"]) == ExitStatus.DONE
    shown = capsys.readouterr().out
    for kind in bench.KINDS:
        assert f"bench {kind} " in shown


def test_a_sweep_asks_nothing_of_the_batch_that_it_replaces(tmp_path, monkeypatch, capsys):
    config = tmp_path / "odd.py"
    config.write_text(
        "from grain_jax.config import TrainConfig\n\n\n"
        "def get_config(variant: str) -> TrainConfig:\n    return TrainConfig(batch_size=13)\n"
    )
    seen = []
    monkeypatch.setattr(bench, "sweep", lambda config, **given: seen.append(given) or [])
    assert bench.main(["sweep", f"--config={config}", "--remats", "full"]) == ExitStatus.DONE
    assert seen[0]["batch_sizes"] is None
    assert seen[0]["remats"] == ("full",)
    shown = capsys.readouterr().out
    assert "224 px" in shown
    assert "batch 13" not in shown


def in_place_of_a_step(monkeypatch, measure):
    kind = dataclasses.replace(bench.KINDS["step"], measure=measure)
    monkeypatch.setitem(bench.KINDS, "step", kind)


def test_a_lack_of_memory_while_it_runs_says_what_to_change(monkeypatch, capsys):
    in_place_of_a_step(monkeypatch, lambda options: jnp.zeros(1 << 48, jnp.uint8))
    assert bench.main(["step", *CLIP]) == ExitStatus.MISTAKE
    shown = capsys.readouterr().err
    assert "memory of a device does not suffice" in shown
    assert "a smaller --batch_size" in shown
    assert "Traceback" not in shown


def test_another_error_of_the_devices_is_not_taken_for_one_of_memory(monkeypatch):
    def fail(options):
        raise jax.errors.JaxRuntimeError("INTERNAL: a cable was pulled")

    in_place_of_a_step(monkeypatch, fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="cable"):
        bench.main(["step", *CLIP])


@pytest.mark.parametrize("kind", bench.KINDS)
def test_one_of_several_processes_is_refused(kind, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert bench.main([kind, *SHOWN]) == ExitStatus.MISTAKE
    assert "one of several processes" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("words", [["--distributed"], LOCAL])
def test_options_that_join_processes_are_refused(words, capsys):
    assert bench.main(["step", *CLIP, *words]) == ExitStatus.MISTAKE
    assert "one of several processes" in " ".join(capsys.readouterr().err.split())


def test_a_host_of_a_slice_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert bench.main(["step", *CLIP]) == ExitStatus.MISTAKE
    assert "one of several processes" in " ".join(capsys.readouterr().err.split())
