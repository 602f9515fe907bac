"""What an export says of the run it came from, so that the very model is read back from it."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from grain_jax.config import TrainConfig
from grain_jax.models.bundle import ModelBundle, from_metadata


def portable_metadata(loaded: ModelBundle) -> dict[str, Any]:
    """A checkpoint's metadata without the folders of the machine it was trained on."""
    config = copy.deepcopy(loaded.config)
    config.data.data_dir, config.pretrained, config.evaluation.zero_shot = "", "", ()
    config.evaluation.zero_shot_during_training = ()
    if config.data.tokenizer not in ("clip", "synthetic_birds"):
        config.data.tokenizer = ""  # that of the export
    config.logging.compilation_cache = "auto"
    return dataclasses.replace(loaded, config=config).metadata() | {"step": loaded.step}


def exported_model(
    metadata: Mapping[str, Any],
    read_params: Callable[[TrainConfig], Any],
    *,
    export: str,
    where: str,
) -> ModelBundle:
    """The model that `portable_metadata` spoke of, with its tokenizer named after the `export`.

    Raises ValueError, with `where` it was read, for metadata that is not whole.
    """
    try:
        loaded = from_metadata(dict(metadata), read_params, step=int(metadata["step"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is not whole: {error!r}.") from error
    loaded.config.data.tokenizer = loaded.config.data.tokenizer or export
    return loaded
