"""python -m grain_jax: which commands there are."""

import ast
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from grain_jax.command_line import ExitStatus, end

# What a person does first, first.
COMMANDS = (
    "train",
    "evaluate",
    "calibrate",
    "predict",
    "annotate",
    "prepare",
    "export",
    "plan",
    "bench",
    "data.synthetic_birds",
)


def summary(command: str) -> str:
    """The first paragraph of the command's documentation, in one line; imports nothing of it."""
    path = Path(__file__).parent.joinpath(*command.split("."))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def main(arguments: Sequence[str] = ()) -> int:
    """Lists the commands; returns the exit status, 2 where one was named as an argument."""
    if arguments and arguments[0] not in ("--help", "-h"):
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = (
            f" Type python -m grain_jax.{near[0]}"
            if near
            else " Type python -m grain_jax to list them"
        )
        print(f"Error: the commands are modules.{hint}.", file=sys.stderr)
        return ExitStatus.MISTAKE
    print("Commands of grain_jax; each has --help:\n")
    for command in COMMANDS:
        print(f"  python -m grain_jax.{command}\n      {summary(command)}")
    return ExitStatus.DONE


if __name__ == "__main__":
    end(main(sys.argv[1:]))
