"""Options that all commands read alike."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

import grain_jax.__main__
from grain_jax import evaluate, export, predict, prepare
from grain_jax.command_line import ExitStatus, Parser, status_of


@pytest.mark.parametrize(
    ("main", "twice"),
    [
        (evaluate.main, ["--checkpoint=a", "--checkpoint=b"]),
        (evaluate.main, ["--checkpoint=a", "--step=1", "--step=2"]),
        (predict.main, ["x.png", "--checkpoint=a", "--labels=a", "--labels=b"]),
        (predict.main, ["x.png", "--checkpoint=a", "--batch_size=1", "--batch-size=2"]),
        (export.main, ["--checkpoint=a", "--to=huggingface", "--out=a", "--out", "b"]),
        (prepare.main, ["--from=jsonl", "--input=a", "--input=b"]),
        (prepare.main, ["--from=jsonl", "--from=jsonl"]),
    ],
)
def test_a_value_that_is_given_twice_is_refused(main, twice, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(twice)
    assert stopped.value.code == 2
    assert "is given twice" in capsys.readouterr().err


def test_each_command_line_is_read_afresh():
    for value in ("a", "b"):
        parser = Parser("some", "Text.")
        parser.add_argument("--one")
        parser.add_argument("--flag", action="store_true")
        options = parser.parse_args([f"--one={value}", "--flag", "--flag"])
        assert (options.one, options.flag) == (value, True)
        assert parser.prog == "python -m grain_jax.some"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no split 'x'"), ExitStatus.MISTAKE),
        (FileNotFoundError(errno.ENOENT, "there is no such file"), ExitStatus.MISTAKE),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ExitStatus.STOPPED),
        (ValueError(f"tensorstore: {os.strerror(errno.EDQUOT)}"), ExitStatus.STOPPED),
    ],
)
def test_a_mistake_is_told_from_a_disk_that_refuses(error, status):
    assert status_of(error) == status


def test_the_package_lists_its_commands(capsys):
    """Every module at its root that can be run, and each with what it does."""
    assert grain_jax.__main__.main() == 0
    printed = capsys.readouterr().out
    package = Path(grain_jax.__file__).parent
    runnable = {path.stem for path in package.glob("*.py") if "    end(main())" in path.read_text()}
    assert runnable <= set(grain_jax.__main__.COMMANDS)
    for command in grain_jax.__main__.COMMANDS:
        assert f"python -m grain_jax.{command}\n      " in printed
        assert len(grain_jax.__main__.summary(command)) > 20


def test_a_command_that_is_given_as_an_argument_is_refused(capsys):
    assert grain_jax.__main__.main(["trian", "--config=demo"]) == ExitStatus.MISTAKE
    assert "Type python -m grain_jax.train." in capsys.readouterr().err
    assert grain_jax.__main__.main(["--help"]) == ExitStatus.DONE


def test_a_part_of_an_option_is_no_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--checkpoint=a", "--alpha=0.5"])
    assert stopped.value.code == ExitStatus.MISTAKE
    assert "unrecognized arguments: --alpha=0.5" in capsys.readouterr().err


def test_an_interrupted_export_says_so(monkeypatch, capsys, tmp_path):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_load", interrupt)
    options = ["--checkpoint=a", "--to=official", f"--out={tmp_path / 'out'}"]
    assert export.main(options) == ExitStatus.INTERRUPTED
    assert "Stopped; nothing was written." in capsys.readouterr().err


def test_an_interrupted_command_ends_while_its_threads_compute(tmp_path):
    """The orderly end of Python would wait for them, or crash under them."""
    code = (
        "import threading, time\n"
        "from grain_jax.command_line import ExitStatus, end\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('said')\n"
        "end(ExitStatus.INTERRUPTED)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=40
    )
    assert (ended.returncode, ended.stdout) == (130, "said\n")
