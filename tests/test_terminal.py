"""Commands print on terminals that are not UTF-8."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from places import REPOSITORY
from toy_encoder import columns, toy_model

from grain_jax import evaluate, export, predict, prepare, train
from grain_jax.data.synthetic_birds import __main__ as world
from grain_jax.terminal import escape_unprintable

Run = Callable[..., tuple[Any, str]]


@pytest.fixture(params=["ascii", "latin-1"])
def run(request: pytest.FixtureRequest) -> Run:
    """Calls a command; what it returns, and what a terminal of that encoding was sent."""

    def call(command: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
        sent = io.BytesIO()
        with pytest.MonkeyPatch.context() as patch:
            for name in ("stdout", "stderr"):
                stream = io.TextIOWrapper(sent, encoding=request.param, write_through=True)
                patch.setattr(sys, name, stream)
            result = command(*arguments)
            return result, sent.getvalue().decode(request.param)

    return call


def test_predict_prints_labels_that_the_terminal_has_no_letters_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(columns("red", "blue")).save(tmp_path / "猫.png")
    monkeypatch.setattr(predict, "load", lambda path, **_: toy_model())
    options = "--checkpoint=run", "--labels=red,blue", "--phrases=red 猫"
    status, printed = run(predict.main, [str(tmp_path), *options])
    assert status == 0
    assert "red \\u732b" in printed
    assert "\\u732b.png" in printed
    assert "+--" in printed  # frames are of letters that it has
    assert printed.count("\\u") == printed.count("\\u732b")


def test_prepare_prints_names_and_fields(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    lines = '{"image": "a.png", "captions": ["x"], "品": 1}\n{"image": "猫", "captions": ["x"]}\n'
    (tmp_path / "in.jsonl").write_text(lines, encoding="utf-8")
    options = "--from=jsonl", f"--input={tmp_path / 'in.jsonl'}", f"--images={tmp_path}"
    status, printed = run(prepare.main, [*options, f"--out={tmp_path / 'out'}", "--workers=1"])
    assert status == 0
    assert "fields ignored: \\u54c1" in printed
    assert "dropped: '\\u732b'" in printed


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (train.main, ["--config=猫.py"]),
        (evaluate.main, ["--checkpoint=猫/猫/猫"]),
        (export.main, ["--checkpoint=猫/猫/猫", "--to=run", "--out=猫/猫"]),
        (predict.main, ["猫.png", "--checkpoint=猫/猫/猫", "--labels=a,b"]),
        (prepare.main, ["--from=jsonl", "--input=猫", "--images=猫", "--out=猫"]),
    ],
)
def test_every_command_says_errors_on_it(run: Run, command, arguments) -> None:
    status, printed = run(command, arguments)
    assert status in (1, 2)
    assert "\\u732b" in printed


def test_the_sample_of_the_world_is_named(run: Run, tmp_path: Path, monkeypatch) -> None:
    options = [f"--out={tmp_path / '猫'}", "--train=1", "--held_out=1"]
    monkeypatch.setattr(sys, "argv", ["world", *options])
    assert "\\u732b/train.jsonl" in run(world.main)[1]


def test_a_process_may_have_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    escape_unprintable()


# A terminal that is closed while a run shows its bar: it goes on, closes, and says its own status.
CLOSED = """
import os, pathlib, signal, sys, time
from grain_jax.training.progress import Screen
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as launchers do, which ask for a save
screen = Screen()
screen.start(done=0, steps=9)
sys.stdout.write("ready\\n")  # at once, unbuffered too: `print` writes the end of the line apart
sys.stdout.flush()
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.05)
screen.step(1)
screen.metrics(1, {"images_per_second": 1.0, "data_wait": 0.0}, seconds_left=8)
time.sleep(0.5)  # the thread that draws the bar
screen.stop()
screen.say("Stopped; step 1 is saved.")
print("printed to nobody")
pathlib.Path(sys.argv[2]).write_text("closed")
sys.exit(143)
"""


@pytest.mark.parametrize("how", ["terminal", "pipe"])
def test_a_run_ends_as_it_ought_to_without_its_terminal(tmp_path, how):
    reading, writing = os.openpty() if how == "terminal" else os.pipe()
    gone, written = tmp_path / "gone", tmp_path / "written"
    process = subprocess.Popen(
        [sys.executable, "-c", CLOSED, str(gone), str(written)],
        stdout=writing,
        stderr=writing,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    os.close(writing)
    shown = b""
    while b"ready" not in shown:
        shown += os.read(reading, 1000)
    os.close(reading)
    gone.touch()
    assert process.wait(timeout=60) == 143
    assert written.read_text() == "closed"
