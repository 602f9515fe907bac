r"""GRAIN ViT-B/16 on CC3M with MLLM captions and detector boxes.

    python -m grain_jax.train --config=configs/grain_vitb16_cc3m.py \
        --config.data.directory=DIR --workdir=RUN

Hardware: sized for 8 GPUs of 80 GB or a v5e-16. Shape-tested, not yet run.
Expected: no figure of ours yet. Users report that CC3M overfits early: keep-best on
the held-out split is on.
"""

from grain_jax.config import DataConfig, EvaluationConfig, TrainConfig, vision_variant


def get_config(variant: str = "") -> TrainConfig:
    if variant:
        raise ValueError(f"Unknown variant {variant!r}; this config has none.")
    config = TrainConfig(
        name="grain_vitb16_cc3m",
        batch_size=2048,
        epochs=35.0,
        data=DataConfig(source="records", eval_split="validation", num_workers=16),
        evaluation=EvaluationConfig(every_steps=1_000),
    )
    config.model.vision = vision_variant("B/16")
    return config
