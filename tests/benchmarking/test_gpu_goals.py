"""`tests/benchmarks/gpu_goals.py`, with a tiny model on host devices."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from places import REPOSITORY

from grain_jax.benchmarking import sweep

TINY = [
    "--batch_size=8",
    "--model.dtype=float32",
    "--model.image_size=32",
    "--model.embed_dim=16",
    "--model.vision.width=16",
    "--model.vision.depth=1",
    "--model.vision.num_heads=2",
    "--model.text.width=16",
    "--model.text.depth=1",
    "--model.text.num_heads=2",
    "--model.text.vocab_size=64",
    "--model.decoder.width=16",
    "--model.decoder.depth=1",
    "--model.decoder.num_heads=2",
    "--data.caption_length=12",
    "--data.description_length=6",
]
NAMES = ["GRAIN", "CLIP", "GRAIN, trimmed texts", "CLIP, attention by XLA"]
LARGEST = ["largest batch, dense logits", "largest batch, tiled logits"]


@pytest.fixture
def script(monkeypatch):
    path = REPOSITORY / "tests" / "benchmarks" / "gpu_goals.py"
    spec = importlib.util.spec_from_file_location("gpu_goals", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_goals", module)
    spec.loader.exec_module(module)
    return module


def run(script, tmp_path, *words):
    figures = tmp_path / "figures.json"
    assert script.main([*TINY, *words, f"--json={figures}"]) == 0
    return json.loads(figures.read_text())


def test_what_does_not_begin_in_time_is_said(script, tmp_path, capsys):
    stored = run(script, tmp_path, "--minutes=0")
    assert [line["name"] for line in stored["lines"]] == [*NAMES, *LARGEST]
    assert all(line["measured"] is None for line in stored["lines"])
    assert stored["config"]["batch_size"] == 8
    assert "minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--json=/nowhere/figures.json"], "/nowhere/figures.json"),
        (["--config=/nowhere.py"], "/nowhere.py"),
        (["--pretrained=some/clip"], "some/clip"),
        (["--batch_size=9", "--optim.grad_cache_chunks=2"], "batch_size = 9"),
        (["--minuets=3"], "--minutes"),
        (["--open_clip", "--seed=1"], "--seed=1: with --official and --open_clip"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(script, words, named, capsys):
    assert script.main(words) == 2
    assert named in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_table_has_a_line_for_each_goal(script, tmp_path, capsys, monkeypatch):
    opened = sweep.open_step

    def up_to_8(config, mesh, *, fits):
        if config.batch_size > 8:
            raise sweep.OutOfMemoryError(1, "as if it did not fit")
        return opened(config, mesh, fits=fits)

    monkeypatch.setattr(sweep, "open_step", up_to_8)
    stored = run(script, tmp_path, "--timed_steps=1")
    names = [line["name"] for line in stored["lines"]]
    assert names == NAMES + [name for name in LARGEST for _ in range(2)]
    variants = [line["measured"]["variants"][0] for line in stored["lines"]]
    sizes = [one["batch_size"] for one in variants[4:]]
    assert sizes == [8, 16] * 2
    assert [one["fits"] for one in variants] == [True] * 4 + [True, False] * 2
    padded, _, trimmed, _ = (one["step"]["flops"]["descriptions"] for one in variants[:4])
    assert 0 < trimmed < padded
    shown = capsys.readouterr().out
    assert "50 % MFU" in shown
    assert "3,000" in shown


def test_other_codes_are_timed_first_by_bench(script, tmp_path, capsys, monkeypatch):
    """With the settings that were given, their own batch, and the memory of the GPU left alone."""
    asked = []

    def bench(command, *, env, **options):
        asked.append((command[3:], env["XLA_PYTHON_CLIENT_PREALLOCATE"]))
        (file,) = (word.partition("=")[2] for word in command if word.startswith("--json="))
        turns = {"ratio": 2.5, "ratios": [2.25, 2.75], "own": [1.0, 2.0]}
        with open(file, "w", encoding="utf-8") as figures:
            json.dump({"measured": "step", "official": turns, "open_clip": turns}, figures)
        return subprocess.CompletedProcess(command, 0, "")

    streams = {"PIPE": subprocess.PIPE, "STDOUT": subprocess.STDOUT}
    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=bench, **streams))
    monkeypatch.setattr(script, "lines", lambda config, steps: iter(()))
    run(script, tmp_path, "--official=checkout", "--open_clip", "--peer_batch_size=4")
    (first, alone), (second, _) = asked
    assert alone == "false"
    assert first[0] == second[0] == "step"
    assert "--official=checkout" in first
    assert "--open_clip" in second
    assert second[1].endswith("clip_vitb16_cc12m.py")
    for words in (first, second):
        assert {"--model.image_size=32", "--batch_size=4"} <= set(words)
        assert not {"--batch_size=8", "--peer_batch_size=4"} & set(words)
    captured = capsys.readouterr()
    found = "2.50 (2.25-2.75) times as fast, 2 turns"
    assert f"against official, batch 4  {found}" in captured.err
    assert f"against open_clip, batch 4  {found}" in captured.err
    assert "against official, batch 4" in captured.out

    def broken(command, **options):
        return subprocess.CompletedProcess(command, 1, "torch is missing")

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=broken, **streams))
    assert script.main([*TINY, "--open_clip"]) == 2
    assert "torch is missing" in capsys.readouterr().err
