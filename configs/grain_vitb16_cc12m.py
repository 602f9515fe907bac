r"""GRAIN ViT-B/16 on CC12M with MLLM captions and detector boxes: the published recipe.

    python -m grain_jax.train --config=configs/grain_vitb16_cc12m.py \
        --config.data.directory=DIR --workdir=RUN

Variants: "" (fixed losses), "faithful" (the official code's effective loss and decay groups).
Hardware: the official README names 16 H100 80 GB. Shape-tested, not yet run.
Expected: no figure of ours yet. LaCLIP's README gives 40.2 % on ImageNet
for CLIP ViT-B/16 on CC12M, with another recipe.
"""

from grain_jax.config import (
    DataConfig,
    EvaluationConfig,
    TrainConfig,
    faithful_loss,
    vision_variant,
)


def get_config(variant: str = "") -> TrainConfig:
    config = TrainConfig(
        name="grain_vitb16_cc12m",
        batch_size=2048,
        epochs=35.0,
        data=DataConfig(source="records", eval_split="validation", num_workers=16),
        evaluation=EvaluationConfig(every_steps=5_000),
    )
    config.model.vision = vision_variant("B/16")
    match variant:
        case "":
            return config
        case "faithful":
            config.loss, config.optim.decay = faithful_loss(), "official"
            config.data.description_length = 77
            return config
    raise ValueError(f"Unknown variant {variant!r}; choose '' or 'faithful'.")
