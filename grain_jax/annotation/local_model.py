"""A multimodal model of Hugging Face that runs in this process: `describe` without an endpoint."""

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from grain_jax.annotation.chat import Answer, Cancelled, RequestFailed
from grain_jax.extras import how_to_install

# Fields of requests and what `generate` calls them.
_GENERATE = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p"}


class LocalModel:
    """A `ChatModel` that `transformers` loads, on a GPU where there is one, in its own precision.

    Weights are read from safetensors, and no code of the repository is run. Answers one request
    after the other. Raises ValueError for a model that cannot be loaded or a setting that it does
    not have, and ImportError, with a remedy, without torch or transformers.
    """

    def __init__(self, model: str, sampling: Mapping[str, Any]) -> None:
        self.name = model
        self._options = _generate_options(sampling)
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ImportError(
                f"--backend=transformers: {error}. Install it: {how_to_install('torch')}"
            ) from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
            loaded = AutoModelForImageTextToText.from_pretrained(
                model, dtype="auto", use_safetensors=True, trust_remote_code=False
            )
        except Exception as error:  # the hub's client and damaged files have types of their own
            raise ValueError(
                f"--model={model!r} cannot be loaded: {error} Give a folder or a name on the "
                "Hugging Face hub whose architecture transformers has, with safetensors weights; "
                "a model with code of its own can be served by an endpoint."
            ) from error
        self._model = loaded.to(device).eval()
        self._lock = threading.Lock()
        self._cancelled = False

    @staticmethod
    def check(sampling: Mapping[str, Any]) -> None:
        """Raises ValueError for a setting that it does not have; loads nothing."""
        _generate_options(sampling)

    def cancel(self) -> None:
        """See `ChatModel.cancel`; an answer that has begun is not broken off."""
        self._cancelled = True

    def close(self) -> None:
        """Nothing is held beyond the model itself."""

    def ask(
        self, messages: Sequence[dict[str, Any]], *, schema: dict[str, Any], schema_name: str
    ) -> Answer:
        """See `ChatModel.ask`. The schema is not enforced: the prompt asks for JSON."""
        with self._lock:
            if self._cancelled:
                raise Cancelled
            return self._generate(messages)

    def _generate(self, messages: Sequence[dict[str, Any]]) -> Answer:
        import torch

        try:
            inputs = self._processor.apply_chat_template(
                [_with_images(message) for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            read = inputs["input_ids"].shape[1]
            with torch.inference_mode():
                tokens = self._model.generate(
                    **inputs.to(self._model.device, dtype=self._model.dtype), **self._options
                )[0, read:]
        except (RuntimeError, ValueError) as error:  # of one image: memory, an unusual size
            raise RequestFailed("model error", str(error)) from None
        text = self._processor.decode(tokens, skip_special_tokens=True)
        finished = len(tokens) < self._options.get("max_new_tokens", len(tokens) + 1)
        return Answer(text, finished, prompt_tokens=read, completion_tokens=len(tokens))


def _generate_options(sampling: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in sampling.items() if value is not None}
    if unknown := sorted(set(given) - set(_GENERATE)):
        raise ValueError(
            f"--extra_body has {unknown[0]!r}, which --backend=transformers does not use; it has "
            f"{', '.join(_GENERATE)}."
        )
    options = {_GENERATE[name]: value for name, value in given.items()}
    if options.get("temperature"):
        return options | {"do_sample": True}
    kept = {name: value for name, value in options.items() if name == "max_new_tokens"}
    return kept | {"do_sample": False}


def _with_images(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its data URLs as images, and texts as parts, as processors take them."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": message["role"], "content": [_part(part) for part in parts]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image_url":
        return part
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return {"type": "image", "image": Image.open(io.BytesIO(data), formats=["JPEG"])}
