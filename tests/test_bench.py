"""python -m grain_jax.bench, in this process."""

import json

import pytest

from grain_jax import bench
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


@pytest.mark.slow
def test_bench_step_times_the_step_without_a_data_set(tmp_path, capsys):
    figures = tmp_path / "figures.json"
    command = ["step", "--config=configs/grain_vitb16_cc3m.py", "--timed_steps=3", *TINY]
    assert bench.main([*command, f"--json={figures}"]) == ExitStatus.DONE
    stored = json.loads(figures.read_text())
    assert len(stored["seconds"]) == 3
    low, median = stored["percentiles"]["p10"], stored["percentiles"]["p50"]
    assert 0 < low <= median <= stored["percentiles"]["p90"]
    assert stored["images_per_second"] == pytest.approx(8 / median)
    assert stored["mfu"] is None  # no peak of this CPU is published
    assert stored["flops"]["vision"] > stored["useful_flops"]["captions"] > 0
    assert stored["useful_flops"]["captions"] < stored["flops"]["captions"]
    assert stored["temporary_bytes"] > 0
    assert stored["config"]["model"]["vision"]["width"] == 16
    assert stored["versions"]["jax"]
    shown = capsys.readouterr().out
    assert "images/s" in shown
    assert "no published peak" in shown


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "nothing"),
        (["loader"], "loader"),
        (["step", "--pretrained=some/clip"], "some/clip"),
        (["step", "--batch_size=12", *TINY[1:]], "batch_size"),
        (["step", "--timed_steps=0"], "timed_steps"),
        (["step", "--json=/nowhere/figures.json"], "/nowhere/figures.json"),
    ],
)
def test_bench_refuses(words, named, capsys):
    assert bench.main(words) == ExitStatus.MISTAKE
    assert named in capsys.readouterr().err
