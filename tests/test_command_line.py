"""Options that all commands read alike."""

import contextlib
import errno
import functools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from places import REPOSITORY
from rich.console import Console
from tyro.conf import Positional, arg

import grain_jax.__main__
from grain_jax import annotate, bench, calibrate, evaluate, export, plan, predict, prepare, train
from grain_jax.command_line import ExitStatus, NotParsed, may_be_cut, parse, status_of
from grain_jax.data.synthetic_birds import __main__ as synthetic_birds


@pytest.mark.parametrize(
    ("main", "twice"),
    [
        (evaluate.main, ["--checkpoint=a", "--data=a", "--data=b"]),
        (evaluate.main, ["--checkpoint=a", "--step=1", "--step=2"]),
        (predict.main, ["x.png", "--checkpoint=a", "--labels=a", "--labels=b"]),
        (predict.main, ["x.png", "--checkpoint=a", "--batch_size=1", "--batch-size=2"]),
        (export.main, ["--checkpoint=a", "--to=huggingface", "--out=a", "--out", "b"]),
        (prepare.main, ["--from=jsonl", "--input=a", "--input=b"]),
        (prepare.main, ["--from=jsonl", "--from=jsonl"]),
    ],
)
def test_a_value_that_is_given_twice_is_refused(main, twice, capsys):
    assert main(twice) == 2
    printed = capsys.readouterr().err
    assert "is given twice" in printed
    assert (
        twice[-1].partition("=")[0].replace("batch-", "batch_") in printed or "--output" in printed
    )


@dataclass(frozen=True)
class Few:
    """Some options."""

    one: str = ""  # a value
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE")] = ()  # some files
    a_flag: bool = False  # a flag


def test_a_flag_may_be_repeated_and_takes_no_value():
    given = ["--a-flag", "x.png", "--one=a", "--a_flag"]
    options = parse(Few, given, command="some", description="Text.")
    assert (options.one, options.a_flag, options.images) == ("a", True, ("x.png",))


def test_the_same_value_twice_is_refused_unless_it_may_be(capsys):
    twice = ["--one=a", "--one=a"]
    with pytest.raises(NotParsed):
        parse(Few, twice, command="some", description="Text.")
    assert parse(Few, twice, command="some", description="Text.", may_repeat=True).one == "a"


MAINS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "evaluate compare": lambda words: evaluate.main(["compare", *words]),
    "evaluate report": lambda words: evaluate.main(["report", *words]),
    "calibrate": calibrate.main,
    "evaluate grounding": lambda words: evaluate.main(["grounding", *words]),
    "predict": predict.main,
    "prepare": prepare.main,
    "export": export.main,
    "plan": plan.main,
    **{
        f"bench {kind}": functools.partial(lambda kind, words: bench.main([kind, *words]), kind)
        for kind in bench.KINDS
    },
    "data.synthetic_birds": synthetic_birds.main,
    **{f"annotate {stage}": main for stage, main in annotate.STAGES.items()},
}


@contextlib.contextmanager
def closed_output():
    """stdout, of which the reader wants no more."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output, contextlib.redirect_stdout(output):
        yield


@pytest.mark.parametrize("times", [1, 5_000])  # what fits the buffer is written later
def test_help_that_is_cut_ends_without_a_word(times, capfd):
    with closed_output():
        with pytest.raises(NotParsed) as ended:
            parse(Few, ["--help"], command="some", description="A line.\n" * times)
        print("what follows does not fail", flush=True)
    assert ended.value.status == ExitStatus.DONE
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("write", [print, lambda text: Console().print(text)])
def test_a_command_continues_where_what_it_prints_is_cut(write, capfd):
    with closed_output():
        with may_be_cut():
            write("A line.\n" * 5_000)
        print("what follows does not fail", flush=True)
    assert capfd.readouterr() == ("", "")


def test_every_command_is_among_those_with_options():
    assert {name.partition(" ")[0] for name in MAINS} == set(grain_jax.__main__.COMMANDS)


@pytest.mark.parametrize("command", MAINS)
def test_every_option_of_every_command_has_a_help_text(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert MAINS[command](["--help"]) == ExitStatus.DONE
    printed = capsys.readouterr().out
    assert f"usage: python -m grain_jax.{command} " in printed
    helps: dict[str, str] = {}
    name = ""
    for row in printed.splitlines():
        row = row.strip("│").rstrip()
        # " --out DIR, --output DIR  text", or the text in further rows, which start further right
        if option := re.match(
            r" {1,2}(?:-h, )?--\w\S*(?: [^\s,]\S*)*(?:, --\S+ \S+)*(?=  |$)", row
        ):
            name = option[0]
            helps[name] = row.removeprefix(name)
        elif name and row.startswith("    "):
            helps[name] += row
    assert len(helps) >= 5
    for name, text in helps.items():
        assert re.search(r"\w", re.sub(r"\((default: .*|required)\)", "", text)), name


@pytest.mark.parametrize(
    ("main", "given", "nearest"),
    [
        (train.main, ["--workdr=a"], "--workdir"),
        (evaluate.main, ["--checkpoint=a", "--outptu=b"], "--output"),
        (predict.main, ["x.png", "--checkpoint=a", "--phrase", "b"], "--phrases"),
        (
            prepare.main,
            ["--from=jsonl", "--input=a", "--images=a", "--out=a", "--splt=b"],
            "--split",
        ),
        (export.main, ["--checkpoint=a", "--to=run", "--out=a", "--bst"], "--best"),
        (synthetic_birds.main, ["--out=a", "--held-ot=3"], "--held_out"),
    ],
)
def test_a_mistyped_option_names_the_nearest(main, given, nearest, capsys):
    assert main(given) == ExitStatus.MISTAKE
    printed = capsys.readouterr().err
    assert (
        f"{nearest} " in printed.partition("Perhaps you meant")[2]
        or f"{nearest} " in (printed.partition("similar to")[2])
    )


@pytest.mark.parametrize("main", [evaluate.main, predict.main, export.main])
def test_a_step_and_the_best_exclude_each_other(main, capsys):
    more = {predict.main: ["x.png"], export.main: ["--to=run", "--out=a"]}.get(main, [])
    assert main([*more, "--checkpoint=a", "--best", "--step=3"]) == ExitStatus.MISTAKE
    printed = capsys.readouterr().err
    assert "--best" in printed
    assert "--step" in printed


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


def test_a_part_of_an_option_is_not_an_option(capsys):
    assert evaluate.main(["--checkpoint=a", "--alpha=0.5"]) == ExitStatus.MISTAKE
    assert "--alpha" in capsys.readouterr().err


def test_paths_that_commands_write_are_called_output_or_out(tmp_path):
    for name in ("--output", "--out"):
        folder = tmp_path / name
        given = [f"{name}={folder}", "--train=1", "--held-out=1", "--level=hard"]
        assert synthetic_birds.main(given) == ExitStatus.DONE
        assert (folder / "train.jsonl").is_file()


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
