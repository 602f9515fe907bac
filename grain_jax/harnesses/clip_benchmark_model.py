"""A model as CLIP_benchmark expects it: `encode_image`, `encode_text`, a transform, a tokenizer.

model, transform, tokenizer = load_model("runs/demo")
zeroshot_classification.evaluate(model, dataloader, tokenizer, names, templates, "cpu", amp=False)

CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark, 1.6) asks no more of them than calls of these
names whose results have `to(device)`. Texts stay texts until they are encoded, so that the
tokenizer, the length and the batches are those of our own evaluation.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from grain_jax.data.transforms import Preprocessing, upright_rgb
from grain_jax.extras import how_to_install
from grain_jax.inference.predictor import BATCH_SIZE, Model
from grain_jax.loading.predictor import load

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "grain_jax"  # what CLIP_benchmark's --model_type calls our models


@dataclass(frozen=True)
class TextBatch:
    """Texts on their way from the tokenizer to `encode_text`, which puts embeddings on `device`."""

    texts: tuple[str, ...]
    device: Any = "cpu"

    def to(self, device: Any) -> "TextBatch":
        """The same texts, for another device."""
        return TextBatch(self.texts, device)

    def __len__(self) -> int:
        return len(self.texts)


def tokenize(texts: Sequence[str] | str) -> TextBatch:
    """What CLIP_benchmark takes as the tokenizer."""
    return TextBatch((texts,) if isinstance(texts, str) else tuple(texts))


@dataclass(frozen=True)
class SquareTransform:
    """An image as the square of pixels that the model sees; workers may pickle it."""

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> "torch.Tensor":
        """uint8 [S, S, 3]. Raises `ImageError` where the image cannot be decoded."""
        import torch

        return torch.from_numpy(np.array(self.preprocessing(np.asarray(upright_rgb(image)))))


class ClipBenchmarkModel:
    """Image and text embeddings of unit length as tensors."""

    def __init__(self, model: Model):
        self._model = model

    def eval(self) -> "ClipBenchmarkModel":
        """The model itself, which has no other mode."""
        return self

    def encode_image(self, images: "torch.Tensor") -> "torch.Tensor":
        """Embeddings [B, E] of squares from the transform, uint8 [B, S, S, 3], on their device.

        Raises ValueError for other tensors.
        """
        import torch

        size = self._model.loaded.preprocessing.image_size
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (size, size, 3):
            raise ValueError(
                f"Images were given as {images.dtype} {list(images.shape)}; expected what the "
                f"transform of `load_model` makes, torch.uint8 [B, {size}, {size}, 3]."
            )
        embedded = self._model.embed_images(list(images.cpu().numpy()))
        return torch.from_numpy(embedded.image.copy()).to(images.device)

    def encode_text(self, batch: TextBatch) -> "torch.Tensor":
        """Embeddings [T, E] of texts about whole images. Raises ValueError for an empty text."""
        import torch

        embedded = self._model.embed_texts(batch.texts, kind="caption")
        return torch.from_numpy(embedded.copy()).to(batch.device)


def load_model(
    path: str | Path, *, step: int | None = None, best: bool = False, batch_size: int = BATCH_SIZE
) -> tuple[ClipBenchmarkModel, SquareTransform, Any]:
    """The model, its transform and its tokenizer, as `clip_benchmark.models.load_clip` gives them.

    `path`, `step` and `best` as in `grain_jax.load`. Raises ValueError where there is no such
    model, or torch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"CLIP_benchmark takes tensors; install torch: {how_to_install('torch')}"
        ) from error
    model = load(path, step=step, best=best, batch_size=batch_size, calibration="none")
    return ClipBenchmarkModel(model), SquareTransform(model.loaded.preprocessing), tokenize


def import_harness(module: str) -> Any:
    """A module of CLIP_benchmark. Raises ValueError where it, or what it needs, is not installed.

    Its command line and its loaders need torchvision and open_clip; its metrics do not.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision of another torch is a RuntimeError
        raise ValueError(
            f"CLIP_benchmark cannot be imported ({error}); install it, with a torchvision that "
            'fits torch, in this environment: pip install clip-benchmark "numpy<2.4"'
        ) from error


def check_accuracy() -> None:
    """Raises ValueError where CLIP_benchmark's accuracy fails with the numpy that is installed.

    Version 1.6.2 makes a number of an array with one element, which numpy 2.4 and later refuse.
    """
    import torch

    metrics = import_harness("clip_benchmark.metrics.zeroshot_classification")
    try:
        metrics.accuracy(torch.eye(2), torch.arange(2))
    except TypeError as error:
        raise ValueError(
            f"CLIP_benchmark's accuracy fails with numpy {np.__version__} ({error}); in this "
            'environment: pip install "numpy<2.4"'
        ) from error


def register(*, step: int | None = None, best: bool = False) -> None:
    """Makes `--model_type=grain_jax --pretrained=MODEL` known to CLIP_benchmark in this process.

    `step` and `best`: of the run folders that it loads. Raises ValueError where CLIP_benchmark is
    not installed.
    """
    models = import_harness("clip_benchmark.models")

    def load_for_clip_benchmark(
        model_name: str, pretrained: str, cache_dir: str | None = None, device: Any = "cpu"
    ) -> tuple[ClipBenchmarkModel, SquareTransform, Any]:
        """Those arguments are CLIP_benchmark's; JAX chooses its device itself."""
        return load_model(pretrained, step=step, best=best)

    models.TYPE2FUNC[MODEL_TYPE] = load_for_clip_benchmark
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)
