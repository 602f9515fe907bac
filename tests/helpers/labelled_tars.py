"""Labelled images in tars, written by `tarfile` alone, and encoded images of one colour."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def coloured(value: int, kind: str = "PNG") -> bytes:
    """An encoded image of 6 x 6 grey pixels."""
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def write_webdataset(root: Path, shards: list[Mapping[str, bytes]], names: list[str]) -> Path:
    """CLIP_benchmark's layout with a split "test"."""
    for number, members in enumerate(shards):
        write_tar(root / "test" / f"{number}.tar", members)
    (root / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    (root / "classnames.txt").write_text("\n".join(names) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}\na {c}\n")
    return root
