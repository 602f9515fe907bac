"""What the training steps of PyTorch code have in common: device, precision, batch, memory."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from grain_jax.benchmarking.compiled_step import OutOfMemoryError
from grain_jax.benchmarking.synthetic_batch import synthetic_batch
from grain_jax.config import TrainConfig
from grain_jax.extras import how_to_install

POSITIONS = 77  # of a text, as their tokenizers pad all of them


def import_torch(wanted_by: str) -> Any:
    """The module; ValueError where it is not installed, or has no GPU where JAX computes on one."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ValueError(
            f"{wanted_by} needs torch, which is not installed: {how_to_install('torch')}"
        ) from error
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            f"{wanted_by}: JAX computes on a GPU and torch {torch.__version__} finds none, so that "
            "a comparison would say nothing; install torch for CUDA, or set JAX_PLATFORMS=cpu."
        )
    return torch


@contextlib.contextmanager
def memory_named(name: str) -> Iterator[None]:
    """Raises `OutOfMemoryError` that names the code for what torch raises for a lack of memory."""
    try:
        yield
    except RuntimeError as error:
        # By name, as versions of torch have it in different modules; of a CPU it has none.
        known = type(error).__name__ == "OutOfMemoryError"
        if not known and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(None, f"{name}, by torch: {str(error).splitlines()[0]}") from error


def _jax_takes_tf32() -> bool:
    config: Any = jax.config
    return config.jax_default_matmul_precision not in ("highest", "float32")


class TorchStep:
    """Device, precision and random batch of a step in PyTorch, and how its end is waited for."""

    def __init__(self, torch: Any, config: TrainConfig) -> None:
        self._torch = torch
        self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self._dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else None
        self._loss: Any = None
        if self.device == "cuda":
            # As XLA's default on a GPU: products of float32 in TF32.
            torch.set_float32_matmul_precision("high" if _jax_takes_tf32() else "highest")
        batch = synthetic_batch(config)
        mean, std = (np.asarray(some, np.float32) for some in (config.data.mean, config.data.std))
        pixels = (batch.images.astype(np.float32) / 255 - mean) / std
        self.images = self._placed(pixels.transpose(0, 3, 1, 2))
        self.captions = self._placed(_padded(batch.captions).astype(np.int64))
        self.descriptions = self._placed(_padded(batch.descriptions).astype(np.int64))
        self.boxes = self._placed(batch.boxes)
        self.region_mask = self._placed(batch.region_mask)

    def _placed(self, array: np.ndarray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Within it, products are computed as model.dtype says."""
        if self._dtype is None:
            yield
            return
        with self._torch.autocast(self.device, dtype=self._dtype):
            yield

    def finish(self, loss: Any, optimizer: Any) -> None:
        """The backward pass and the update."""
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._loss = loss.detach()

    def wait(self) -> float:
        """Of `Peer`."""
        return float(self._loss)  # waits for the device

    def peak_bytes(self) -> int | None:
        """Of `Peer`."""
        return self._torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def _padded(tokens: np.ndarray) -> np.ndarray:
    """With zeros up to `POSITIONS`."""
    missing = POSITIONS - tokens.shape[-1]
    return np.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(0, missing)])
