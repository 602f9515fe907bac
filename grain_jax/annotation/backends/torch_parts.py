"""What the detectors of `transformers` share: loading, devices, number formats, pixels."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grain_jax.annotation.backends.placement import PreparedImage
from grain_jax.extras import how_to_install

DTYPES = ("float32", "bfloat16", "float16")
# As preprocessors store them, numbers of Pillow, or as they hold them where torchvision is there.
INTERPOLATIONS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}


@dataclass
class TorchParts:
    """A model on its device, and how it is fed."""

    model: Any
    tokenizer: Any  # called by `tokens`
    preprocessor: Any  # only its settings are used: how large, normalised by what
    device: Any
    dtype: str
    revision: str
    _tokenizing: Any = field(default_factory=threading.Lock)

    def tokens(self, texts: str | list[str], **options: Any) -> Any:
        """What the tokenizer returns; safe in threads.

        The tokenizer keeps padding and truncation of a call in itself, and would use those of
        another thread.
        """
        with self._tokenizing:
            return self.tokenizer(texts, **options)

    @property
    def interpolation(self) -> str:
        """How images are resized. Raises ValueError for a way that is not supported."""
        found = getattr(self.preprocessor.resample, "value", self.preprocessor.resample)
        if found not in INTERPOLATIONS:
            raise ValueError(f"The preprocessor has resample {found!r}; known: 2 and 3.")
        return INTERPOLATIONS[found]

    def pixel_values(self, images: Sequence[PreparedImage]) -> Any:
        """Normalised float32 [B, 3, H, W] on the device; images of one size."""
        import torch

        pixels = torch.from_numpy(np.stack([image.pixels for image in images])).to(self.device)
        mean, std = (
            torch.tensor(values, device=self.device)
            for values in (self.preprocessor.image_mean, self.preprocessor.image_std)
        )
        return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """In which the model computes in `dtype` and keeps nothing for gradients."""
        import torch

        stack = contextlib.ExitStack()
        stack.enter_context(torch.inference_mode())
        if self.dtype != "float32":
            stack.enter_context(torch.autocast(self.device.type, getattr(torch, self.dtype)))
        return stack


def import_torch() -> None:
    """Raises ValueError that says how to install torch and transformers where one is missing."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"Detectors need torch and transformers ({error}). Install them: "
            f"{how_to_install('torch')}"
        ) from error


def model_type(name: str) -> str:
    """The `model_type` of a folder or of a name on the hub ("owner/name", "owner/name@revision").

    Raises ValueError where there is no such model, or it is none of `transformers`.
    """
    import_torch()
    import transformers

    where, options = _place(name)
    try:
        config = transformers.AutoConfig.from_pretrained(where, **options)
    except Exception as error:  # the hub's client has error types of its own
        raise ValueError(_not_found(name, error)) from error
    return config.model_type


def load_parts(name: str, *, device: str, dtype: str) -> TorchParts:
    """A detector of `transformers`, from safetensors; no code of the repository is run.

    Args:
        name: folder, or name on the hub ("owner/name", "owner/name@revision").
        device: "auto" (a GPU where there is one), or as torch writes it: "cpu", "cuda:1".
        dtype: one of `DTYPES`, or "auto": bfloat16 on a GPU, else float32.

    Raises ValueError where a part is missing, or the device or the number format does not exist.
    """
    import_torch()
    import torch
    import transformers

    place = _device(device)
    if dtype == "auto":
        dtype = "float32" if place.type == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}; choose auto or one of {', '.join(DTYPES)}.")
    where, options = _place(name)
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        with _without_advice():
            preprocessor = transformers.AutoImageProcessor.from_pretrained(where, **options)
        model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
            where, dtype=torch.float32, use_safetensors=True, **options
        )
    except Exception as error:
        raise ValueError(_not_found(name, error)) from error
    found = getattr(model.config, "_commit_hash", None) or ""
    return TorchParts(model.eval().to(place), tokenizer, preprocessor, place, dtype, found)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Without the advice to install torchvision: images are placed by Pillow."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _place(name: str) -> tuple[str, dict[str, Any]]:
    """Folder or repository, and the options with which each part of it is loaded."""
    options: dict[str, Any] = {"trust_remote_code": False}
    if Path(name).is_dir():
        return name, options
    repository, _, revision = name.partition("@")
    return repository, options | ({"revision": revision} if revision else {})


def _not_found(name: str, error: Exception) -> str:
    return (
        f"{name!r} cannot be opened as a detector: {error} Give a folder or a name on the Hugging "
        "Face hub with config.json, preprocessor_config.json, tokenizer and safetensors weights, "
        "for example google/owlv2-base-patch16-ensemble."
    )


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device={name} cannot be used: {reason}") from error
    return device
