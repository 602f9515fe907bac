"""python -m grain_jax: which commands there are."""

import ast
from pathlib import Path

# What a person does first, first.
COMMANDS = ("train", "evaluate", "predict", "prepare", "export", "data.synthetic_birds")


def summary(command: str) -> str:
    """The first paragraph of the command's documentation, in one line; imports nothing of it."""
    path = Path(__file__).parent.joinpath(*command.split("."))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def main() -> int:
    """Lists the commands; returns the exit status."""
    print("Commands of grain_jax; each has --help:\n")
    for command in COMMANDS:
        print(f"  python -m grain_jax.{command}\n      {summary(command)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
