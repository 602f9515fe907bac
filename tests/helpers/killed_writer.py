"""Ends a writer of annotations at each of its steps on the disk, as kill -9 would.

  python killed_writer.py FOLDER

A process is forked for each step: an opened, renamed or removed file. It appends the rows in
`IMAGES`, a part for every two of them, and dies there. FOLDER/<step>/ann is what it leaves, and
FOLDER/<step>/acknowledged has a line for every row that `append` returned for.
"""

import os
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_rows import Provenance, Row

IMAGES = ("a.png", "b.png", "c.png", "d.png", "e.png")
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.listdir"}


def row(image: str) -> Row:
    return Row(image, "0" * 64, Provenance("model"), {"captions": [f"caption of {image}"]})


def write(folder: Path, step: int) -> None:
    left = step

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS and str(arguments[0]).startswith(str(folder / "ann")):
            left -= 1
            if left == 0:
                os._exit(9)

    done = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(count)
    with AnnotationWriter(folder / "ann", "describe", rows_per_part=2) as writer:
        for image in IMAGES:
            writer.append(row(image))
            os.write(done, f"{image}\n".encode())
    os._exit(0)


def main(folder: Path) -> None:
    # Imports what pyarrow uses, once for all processes that are forked.
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"a": 1}]), pyarrow.BufferOutputStream())
    step = status = 1
    while status:
        where = folder / f"{step:03d}"
        where.mkdir()
        if not (child := os.fork()):
            write(where, step)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9), status
        step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
