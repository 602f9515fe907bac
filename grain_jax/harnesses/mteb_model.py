"""A model as mteb expects it: its `EncoderProtocol` (mteb 2) for images and texts.

mteb.evaluate(MtebModel("runs/demo"), mteb.get_task("CIFAR10ZeroShot"))
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from grain_jax.inference.fingerprints import params_sha256
from grain_jax.inference.predictor import BATCH_SIZE
from grain_jax.loading.predictor import load

DIGITS = 12  # of the SHA-256 of the weights, which mteb tells revisions of a model by


class MtebModel:
    """Image and text embeddings of unit length, and their cosines."""

    def __init__(
        self,
        model_name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        step: int | None = None,
        best: bool = False,
        batch_size: int = BATCH_SIZE,
    ):
        """The model of a path or of the Hugging Face hub.

        Args:
            model_name: a path or name as `grain_jax.load` takes it.
            revision: mteb's; None: that of the weights, by which it keeps results apart.
            device: mteb's; JAX chooses, so anything but None is refused.
            step: of a run folder.
            best: of a run folder.
            batch_size: of images and texts, whatever mteb's loader gives at once.

        Raises ValueError.
        """
        if device is not None:
            raise ValueError(
                f"device={device!r} is PyTorch's; leave it out. JAX takes its first device, and "
                "JAX_PLATFORMS=cpu in the environment makes that the processor."
            )
        self._model = load(
            model_name, step=step, best=best, batch_size=batch_size, calibration="none"
        )
        weights = params_sha256(self._model.loaded.params)[:DIGITS]
        self.name = f"grain_jax/{Path(model_name).resolve().name or 'model'}"
        self.revision = weights if revision is None else revision

    @property
    def mteb_model_meta(self) -> Any:
        """The `ModelMeta` of mteb: what is known of the model. Needs mteb."""
        from mteb.models import ModelMeta

        loaded = self._model.loaded
        count = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
        return ModelMeta(
            loader=None,
            name=self.name,
            revision=self.revision,
            release_date=None,
            languages=None,
            n_parameters=int(count),
            memory_usage_mb=None,
            max_tokens=loaded.config.data.caption_length,
            embed_dim=loaded.config.model.embed_dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["JAX"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["image", "text"],
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings of batches {"image": [PIL image, ...]}, {"text": [text, ...]}, or both.

        Where an input has both, its embedding is their sum, as in mteb's own CLIP. What mteb says
        of the task, and its options of encoding, change nothing. Raises ValueError for batches with
        neither, and for texts that are empty.
        """
        parts = []
        for batch in inputs:
            embedded = []
            if "text" in batch:
                embedded.append(self._model.embed_texts(list(batch["text"]), kind="caption"))
            if "image" in batch:
                embedded.append(self._model.embed_images(list(batch["image"])).image)
            if not embedded:
                raise ValueError(
                    f"A batch holds {', '.join(sorted(batch)) or 'nothing'}; this model takes "
                    "images and texts. Choose a task of those."
                )
            parts.append(embedded[0] if len(embedded) == 1 else embedded[0] + embedded[1])
        if not parts:
            raise ValueError("There is nothing to encode: the task has no inputs.")
        return np.concatenate(parts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines [N, M] of two collections, as a tensor."""
        first, second = _unit(embeddings1), _unit(embeddings2)
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines [N] of pairs, as a tensor."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)


def _unit(embeddings: Any) -> Any:
    import torch

    given = torch.atleast_2d(torch.as_tensor(embeddings, dtype=torch.float32))
    return torch.nn.functional.normalize(given, dim=-1)
