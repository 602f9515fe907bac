"""How many texts `annotate audit` takes for faulty: of people, who make few faults, or of a model.

    python tests/benchmarks/audit_texts.py FILE... [--examples=10]

FILE is JSON lines with `captions`, or JSON whose texts are all taken.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from grain_jax.annotation.audit.texts import is_about_absence, is_refusal, is_truncated
from grain_jax.command_line import Count, parse

FAULTS: dict[str, Callable[[str], bool]] = {
    "absence": is_about_absence,
    "refusal": is_refusal,
    "truncated": is_truncated,
}


@dataclass
class Options:
    """What to measure."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    examples: Count = 10  # of each fault


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a file."""
    if path.suffix != ".jsonl":
        yield from texts_in(json.loads(path.read_text(encoding="utf-8")))
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        yield from texts_in(json.loads(line)["captions"])


def texts_in(value: Any) -> Iterator[str]:
    """All texts in JSON, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_in(each)


def main() -> None:
    options = parse(Options, None, command="audit_texts", description=__doc__)
    texts = [text for path in options.files for text in texts_of(path)]
    for name, is_faulty in FAULTS.items():
        found = [text for text in texts if is_faulty(text)]
        print(f"{name}: {len(found):,} of {len(texts):,}")
        for text in found[:: max(1, len(found) // options.examples)][: options.examples]:
            print(f"    {' '.join(text.split())[:120]}")


if __name__ == "__main__":
    main()
