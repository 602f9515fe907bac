r"""GRAIN ViT-L/14 on CC12M: the largest published size, scanned layers, sharded parameters.

    python -m grain_jax.train --config=configs/grain_vitl14_cc12m.py \
        --config.data.directory=DIR --workdir=RUN

Hardware: sized for a v5p-64 or 32 GPUs of 80 GB. Shape-tested, not yet run.
Expected: no figure of ours yet.
"""

from grain_jax.config import DataConfig, EvaluationConfig, MeshConfig, TrainConfig, vision_variant


def get_config(variant: str = "") -> TrainConfig:
    if variant:
        raise ValueError(f"Unknown variant {variant!r}; this config has none.")
    config = TrainConfig(
        name="grain_vitl14_cc12m",
        batch_size=2048,
        epochs=35.0,
        data=DataConfig(source="records", eval_split="validation", num_workers=16),
        mesh=MeshConfig(fsdp=8),
        evaluation=EvaluationConfig(every_steps=5_000),
    )
    config.model.vision = vision_variant("L/14")
    config.model.scan_layers, config.model.remat = True, "dots"
    return config
