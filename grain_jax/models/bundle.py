"""A model with all that it takes to use it: what every format is read into and written from."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import grain_jax
from grain_jax.config import TrainConfig
from grain_jax.config.cli import config_from_json, config_to_json
from grain_jax.data.tokenizer import Tokenizer, tokenizer_from_spec
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.image_text import model_of_run
from grain_jax.models.learned import EVERYTHING, Learned, learned_before
from grain_jax.runtime import source_commit


@dataclass(frozen=True)
class ModelBundle:
    """A trained model with everything needed to use it on new images and texts."""

    model: nn.Module
    params: Any  # float32; the average of the weights where the run kept one
    config: TrainConfig
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    templates: tuple[str, ...]  # prompts of zero-shot recognition by name, "{}" takes the name
    step: int
    learned: Learned = EVERYTHING

    @property
    def has_regions(self) -> bool:
        """Whether its region embeddings can be compared with descriptions."""
        return self.config.model.type == "grain" and self.learned.regions

    @property
    def has_boxes(self) -> bool:
        """Whether its boxes were trained."""
        return self.config.model.type == "grain" and self.learned.boxes

    @property
    def logit_scale(self) -> float:
        """What cosines were multiplied by in training."""
        limit = self.config.model.max_logit_scale
        scale = float(np.exp(np.asarray(self.params["logit_scale"]).item()))
        return min(max(scale, 1.0), limit)

    def metadata(self) -> dict[str, Any]:
        """`make_metadata` of this model, without the data that it was trained on."""
        return make_metadata(
            self.config,
            tokenizer=self.tokenizer,
            preprocessing=self.preprocessing,
            templates=self.templates,
            num_images=0,
            learned=self.learned,
        )


def make_metadata(
    config: TrainConfig,
    *,
    tokenizer: Tokenizer,
    preprocessing: Preprocessing,
    templates: Sequence[str],
    num_images: int,
    learned: Learned = EVERYTHING,
) -> dict[str, Any]:
    """What `from_metadata` needs beside the weights; the size of the data and the code, as JSON."""
    return {
        "config": json.loads(config_to_json(config)),
        "preprocessing": preprocessing.spec(),
        "num_images": num_images,
        **learned.metadata(),
        "tokenizer": tokenizer.spec(),
        "templates": list(templates),
        "grain_jax": grain_jax.__version__,
        "commit": source_commit(),
        "jax": jax.__version__,
    }


def from_metadata(
    metadata: dict[str, Any], read_params: Callable[[TrainConfig], Any], *, step: int
) -> ModelBundle:
    """The model that `make_metadata` describes, with the parameters that `read_params` gives."""
    config = config_from_json(json.dumps(metadata["config"]))
    config.model.attention = "auto"  # the weights are the same, and this may be another machine
    return ModelBundle(
        model=model_of_run(config),
        params=read_params(config),
        config=config,
        tokenizer=tokenizer_from_spec(metadata["tokenizer"]),
        preprocessing=Preprocessing.from_spec(metadata["preprocessing"]),
        templates=tuple(metadata["templates"]),
        step=step,
        learned=learned_before(metadata),
    )
