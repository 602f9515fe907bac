"""Which settings may change when a run goes on."""

import json
from pathlib import Path
from typing import Any

from grain_jax.config import TrainConfig
from grain_jax.config_files import config_from_json, differences

FIXED = (
    "seed",
    "init",
    "batch_size",
    "model.",
    "data.",
)  # they decide on the weights or the batches
FREE = (  # of the above: the same model and batches, computed or loaded in another way
    *("model.dtype", "model.remat", "model.attention"),
    *("data.directory", "data.num_workers", "data.num_threads", "data.prefetch_batches"),
    *("data.cache", "data.eval_split", "data.world.num_eval_images"),
)


def check_same_data(saved: dict[str, Any], num_images: int, workdir: Path) -> None:
    """Raises ValueError where the data set has changed its size: its order would be another."""
    if saved["num_images"] != num_images:
        raise ValueError(
            f"{workdir} was trained on {saved['num_images']} images and the data set now has "
            f"{num_images}, which changes the order of all of them. Give the same data, or start a "
            "new run with another --workdir."
        )


def changed_settings(saved: dict[str, object], config: TrainConfig, workdir: Path) -> list[str]:
    """What differs from the configuration stored with a checkpoint, as sentences to show.

    Raises ValueError for a change that the saved weights or the order of the data do not survive.
    """
    changed = differences(config_from_json(json.dumps(saved)), config)
    averaging = bool(config.optim.ema_decay)
    forbidden = [path for path in changed if path.startswith(FIXED) and path not in FREE]
    if "optim.ema_decay" in changed and averaging != bool(changed["optim.ema_decay"][0]):
        forbidden.append("optim.ema_decay")
    if forbidden:
        listed = "; ".join(
            f"{path}: {changed[path][0]} -> {changed[path][1]}" for path in forbidden
        )
        raise ValueError(
            f"{workdir} holds a run with other settings ({listed}), whose checkpoint does not fit "
            "these. Set them back to go on with it, or start a new run with another --workdir."
        )
    return [f"{path}: {old} -> {new}" for path, (old, new) in changed.items()]
