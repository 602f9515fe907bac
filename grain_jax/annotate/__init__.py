"""Bare images to descriptions and boxes, in stages that can be stopped and continued.

  python -m grain_jax.annotate describe --images=DIR --endpoint=http://localhost:8000/v1 \
      --model=NAME --output=ANN
  python -m grain_jax.annotate ground --images=DIR --annotations=ANN --detector=NAME
  python -m grain_jax.annotate audit --annotations=ANN
  python -m grain_jax.annotate review --annotations=ANN --images=DIR --output=page.html

Each stage adds rows to a folder of annotations, which
`python -m grain_jax.prepare --from=annotations` turns into a data set (`docs/annotate.md`).
`annotate STAGE --help` has the options of a stage.
"""

import difflib
import sys
from collections.abc import Callable, Sequence

from grain_jax.annotate import audit, describe, ground, review
from grain_jax.command_line import ExitStatus
from grain_jax.terminal import escape_unprintable

# Name of each stage -> its command, which gets the arguments behind the name.
STAGES: dict[str, Callable[[Sequence[str]], int]] = {
    "describe": describe.main,
    "ground": ground.main,
    "audit": audit.main,
    "review": review.main,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    escape_unprintable()
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in STAGES:
        return STAGES[name](rest[:-1])
    stages = ", ".join(STAGES)
    if name in ("--help", "-h"):
        print(f"{__doc__}\nStages: {stages}")
        return ExitStatus.DONE
    near = difflib.get_close_matches(name, STAGES, n=1)
    hint = f" (is it {near[0]!r}?)" if near else ""
    given = f"{name!r} is not a stage{hint}" if name else "no stage is given"
    print(
        f"Error: {given}. Type python -m grain_jax.annotate STAGE, with one of: {stages}.",
        file=sys.stderr,
    )
    return ExitStatus.MISTAKE
