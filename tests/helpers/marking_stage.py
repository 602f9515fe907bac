"""A stage whose rows are a function of the image's name, and which dies of some images."""

import os
import signal
import time
from collections.abc import Callable, Generator, Iterator

from grain_jax.annotation.run import StageStopped
from grain_jax.data.annotation_rows import Provenance, Row


class Marking:
    """An `Annotator` of the stage `describe`."""

    stage = "describe"
    settings = ("marking", "", "{}")
    images_ahead = 6

    def __init__(self, *, fatal: frozenset[str], stops: frozenset[str]) -> None:
        self._fatal, self._stops, self._made = fatal, stops, 0

    def input_hash(self, image: str) -> str | None:
        return None

    def rows(self, images: Iterator[str], /) -> Generator[Row, None, None]:
        for image in images:
            if image in self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            if image in self._stops:
                raise StageStopped(f"stopped at {image}")
            time.sleep(0.005)
            self._made += 1
            yield Row(image, "0" * 64, Provenance("marking"), {"captions": [caption_of(image)]})

    def measured(self) -> dict[str, float]:
        return {"rows made": float(self._made)}


def caption_of(image: str) -> str:
    return f"an image called {image}"


def open_marking(
    fatal: frozenset[str], stops: frozenset[str], note: Callable[[str], None]
) -> Marking:
    note(f"is open, with the GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}")
    return Marking(fatal=fatal, stops=stops)
