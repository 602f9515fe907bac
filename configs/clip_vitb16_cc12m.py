r"""The CLIP baseline of `grain_vitb16_cc12m.py`: same data, one loss.

    python -m grain_jax.train --config=configs/clip_vitb16_cc12m.py \
        --config.data.directory=DIR --workdir=RUN

Variants: "" (MLLM captions mixed in, as GRAIN trains), "original" (web captions only).
Hardware: sized for 16 H100 80 GB. Shape-tested, not yet run.
Expected: no figure of ours yet. LaCLIP's README gives 40.2 % on ImageNet, with another recipe.
"""

from grain_jax.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig, vision_variant


def get_config(variant: str = "") -> TrainConfig:
    config = TrainConfig(
        name="clip_vitb16_cc12m",
        batch_size=2048,
        epochs=35.0,
        model=ModelConfig(kind="clip", vision=vision_variant("B/16")),
        data=DataConfig(source="records", eval_split="validation", num_workers=16),
        evaluation=EvaluationConfig(every_steps=5_000),
    )
    match variant:
        case "":
            return config
        case "original":
            config.data.synthetic_caption_probability = 0.0
            return config
    raise ValueError(f"Unknown variant {variant!r}; choose '' or 'original'.")
