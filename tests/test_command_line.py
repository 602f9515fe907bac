"""Options that all commands read alike."""

import errno
import os
from pathlib import Path

import pytest

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
    runnable = {
        path.stem for path in package.glob("*.py") if "sys.exit(main())" in path.read_text()
    }
    assert runnable <= set(grain_jax.__main__.COMMANDS)
    for command in grain_jax.__main__.COMMANDS:
        assert f"python -m grain_jax.{command}\n      " in printed
        assert len(grain_jax.__main__.summary(command)) > 20
