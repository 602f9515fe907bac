"""The command `predict` called from a test, and what it wrote."""

import csv

from grain_jax.predict import main


def call(*arguments: str) -> int:
    return main([*arguments, "--checkpoint=run"])


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
