"""What all commands that parse with argparse have in common."""

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """Shows the text of the command's module as it is, and refuses a value that is given twice.

    argparse would keep the last and drop the others without a word.
    """

    def __init__(self, command: str, description: str | None):
        super().__init__(
            prog=f"python -m grain_jax.{command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name in (None, "store"):
            self.register("action", name, _StoreOnce)


class _StoreOnce(argparse.Action):
    """Stores a value; an error where there was one."""

    _earlier: Any = None
    _given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if self._given and option_string is not None:
            given = f"{str(self._earlier)!r} and {str(values)!r}"
            parser.error(
                f"{option_string} is given twice, {given}, and takes one value; give one of them, "
                "or run the command once for each."
            )
        self._given, self._earlier = True, values
        setattr(namespace, self.dest, values)
