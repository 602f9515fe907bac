"""Configurations with a few settings changed."""

from grain_jax.config import DataConfig, TrainConfig


def records_config() -> TrainConfig:
    return TrainConfig(data=DataConfig(dataset="tfds", data_dir="somewhere"))


def changed(config: TrainConfig, **changes: object) -> TrainConfig:
    """`config` with settings by path, dots written "__"."""
    for path, value in changes.items():
        *sections, name = path.split("__")
        owner: object = config
        for section in sections:
            owner = getattr(owner, section)
        assert hasattr(owner, name)
        setattr(owner, name, value)
    return config
