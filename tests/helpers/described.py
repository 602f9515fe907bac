"""`annotate describe` against `chat_server`: images, the command, and what its rows have to be."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chat_server import caption_of, features_of
from PIL import Image
from places import REPOSITORY

from grain_jax import annotate
from grain_jax.annotation.images import as_jpeg, load_image
from grain_jax.data.annotation_files import StageFiles, read_annotations

QUICK = ("--retries=1", "--timeout=5", "--concurrency=4")


def write_images(folder: Path, count: int = 12) -> Path:
    """Images, the last of them in a subfolder, and a file that is not one."""
    (folder / "inner").mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
        name = f"inner/{number:02d}.png" if number == count - 1 else f"{number:02d}.png"
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def command(images: Path, output: Path, *servers) -> list[str]:
    """The command and its places; several servers are endpoints of one model."""
    urls = ",".join(server.url for server in servers)
    places = [f"--images={images}", f"--output={output}", f"--endpoint={urls}"]
    return ["describe", *places, "--model=tiny"]


def describe(images: Path, output: Path, server, *options: str, quick=QUICK) -> int:
    """Its exit status."""
    return annotate.main([*command(images, output, server), *quick, *options])


def start(images: Path, output: Path, *servers, options=("--concurrency=3",)):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "grain_jax.annotate", *command(images, output, *servers), *options],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "400"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until a process that runs the command has written as many rows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if (output / "annotations.json").exists() and len(StageFiles(output, "describe")) >= count:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no {count} rows: {process.communicate()}")


def sent(images: Path, name: str) -> bytes:
    """The JPEG that the endpoint gets of a small image."""
    return as_jpeg(load_image(name, images), 768)


def names(images: Path) -> list[str]:
    return sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))


def check(images: Path, output: Path, *, failed: tuple[str, ...] = ()) -> None:
    """Every image is described as the endpoint describes it, but for those that failed."""
    found = {each.image: each for each in read_annotations(output)}
    assert sorted(found) == names(images)
    for name, each in found.items():
        if name in failed:
            assert set(each.errors) == {"describe"}
            continue
        assert not each.errors, name
        assert each.captions == (caption_of(sent(images, name)),)
        assert each.primary_subject == "mark"
        assert each.descriptions == tuple(features_of(sent(images, name)))
