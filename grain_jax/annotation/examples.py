"""Example images as queries: a folder with a subfolder for each thing, or a file for each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from grain_jax.annotation.backends.detector import ImageGuidedDetector
from grain_jax.annotation.images import list_images, load_image
from grain_jax.data.annotation_rows import texts_hash
from grain_jax.data.image_files import SkippedSample

MAX_EXAMPLES = 10_000


@dataclass(frozen=True)
class ExampleQueries:
    """What the examples show, by name."""

    names: tuple[str, ...]
    embeddings: Float[np.ndarray, "T E"]  # of norm 1
    hash: str  # of names and files


def read_examples(folder: Path, detector: ImageGuidedDetector) -> ExampleQueries:
    """The queries of a folder: `red_ball/1.jpg`, `red_ball/2.jpg` or `red_ball.jpg`.

    Of several examples of a thing the embeddings are averaged, as in the few-shot evaluation of
    OWL-ViT. Raises ValueError where an example cannot be read.
    """
    files = list_images(folder).images
    if len(files) > MAX_EXAMPLES:
        raise ValueError(
            f"--example_images={folder} has {len(files)} images; expected a few of each thing, "
            f"{MAX_EXAMPLES} at most in all."
        )
    found: dict[str, list[np.ndarray]] = {}
    hashes = []
    for file in files:
        try:
            loaded = load_image(file, folder)
        except SkippedSample as error:
            raise ValueError(f"--example_images={folder}: {error}") from None
        (embedding,) = detector.embed_examples([detector.prepare(loaded.pixels)])
        found.setdefault(_name(file), []).append(embedding)
        hashes += [_name(file), loaded.image_hash]
    means = np.stack([np.mean(each, axis=0) for each in found.values()])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return ExampleQueries(
        tuple(found), (means / np.maximum(norms, 1e-12)).astype(np.float32), texts_hash(hashes)
    )


def _name(file: str) -> str:
    first, _, rest = file.partition("/")
    return " ".join((first if rest else Path(first).stem).replace("_", " ").split())
