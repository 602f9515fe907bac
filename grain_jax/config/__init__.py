"""The settings of a run: `schema`, `validation`, and `cli` with files and command line."""

from grain_jax.config.schema import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CheckpointConfig,
    DataConfig,
    DecoderConfig,
    EvaluationConfig,
    LoggingConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SyntheticBirdsConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
    official_loss,
    vision_variant,
)
from grain_jax.config.validation import validate

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CheckpointConfig",
    "DataConfig",
    "DecoderConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "SyntheticBirdsConfig",
    "TextConfig",
    "TrainConfig",
    "VisionConfig",
    "official_loss",
    "validate",
    "vision_variant",
]
