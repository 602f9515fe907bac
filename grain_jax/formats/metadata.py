"""Metadata of an export, from which exactly the same model is read back."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from grain_jax.config import TrainConfig
from grain_jax.models.bundle import ModelBundle, from_metadata


def portable_metadata(loaded: ModelBundle) -> dict[str, Any]:
    """The metadata of a checkpoint without paths of the machine it was trained on."""
    config = copy.deepcopy(loaded.config)
    config.data.data_dir, config.data.mixture, config.pretrained = "", (), ""
    config.evaluation.zero_shot = ()
    config.evaluation.zero_shot_during_training = ()
    if config.data.tokenizer not in ("clip", "synthetic_birds"):
        config.data.tokenizer = ""  # the tokenizer of the export
    config.logging.compilation_cache = "auto"
    return dataclasses.replace(loaded, config=config).metadata() | {"step": loaded.step}


def exported_model(
    metadata: Mapping[str, Any],
    read_params: Callable[[TrainConfig], Any],
    *,
    export: str,
    where: str,
) -> ModelBundle:
    """The model of `portable_metadata`.

    Args:
        read_params: called with the config for the parameters.
        export: path of the export, which becomes the name of the tokenizer where it has none.
        where: the place the metadata was read from, for errors.

    Raises ValueError for incomplete metadata.
    """
    try:
        loaded = from_metadata(dict(metadata), read_params, step=int(metadata["step"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is incomplete or damaged: {error!r}.") from error
    loaded.config.data.tokenizer = loaded.config.data.tokenizer or export
    return loaded
