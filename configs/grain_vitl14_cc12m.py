r"""GRAIN ViT-L/14 on CC12M: the largest published size, scanned layers, sharded parameters.

    python -m grain_jax.train --config=configs/grain_vitl14_cc12m.py \
        --data.data_dir=DIR --workdir=RUN

Hardware: sized for a v5p-64 or 32 GPUs of 80 GB. Shape-tested, compiled for TPUs, not yet run.
Expected: no result of grain_jax's yet.
Published by others for CLIP ViT-B/16 on CC12M, with other recipes: ImageNet 37.4 %, CIFAR-10 67.9,
SUN397 41.8, R@1 on COCO 32.8 to text and 22.5 to image (github.com/bethgelab/
frequency_determines_performance, template ensemble); ImageNet 40.2 % (LaCLIP's README).
Web images: prepare them with `--max_image_side=256`. A core decodes 101 images/s with a short side
of 800 pixels, 488 with 256.
Text lengths are not measured: the annotations of this set were not at hand. Padding costs: captions
of 40 tokens, descriptions of 16 and model.description_capacity_factor=0.6 take GRAIN ViT-B/16 from
165.6 to 131.1 GFLOP an image. The first lines of a run, and `--check`, name the lengths and the
capacity factor that your annotations need; metrics.jsonl has what is used, as
`caption_positions_used`, `description_positions_used` and `descriptions_used`.
`model.text_tokens_per_image`, which they propose too, leaves nearly all padding out: docs/scale.md.
"""

from grain_jax.config import DataConfig, EvaluationConfig, MeshConfig, TrainConfig, vision_variant


def get_config(variant: str = "") -> TrainConfig:
    if variant:
        raise ValueError(f"Unknown variant {variant!r}; this config has none.")
    config = TrainConfig(
        name="grain_vitl14_cc12m",
        batch_size=2048,
        epochs=35.0,
        data=DataConfig(dataset="tfds", eval_split="validation", num_workers=16),
        mesh=MeshConfig(fsdp=8),
        evaluation=EvaluationConfig(eval_interval_steps=5_000),
    )
    config.model.vision = vision_variant("L/14")
    config.model.scan_layers, config.model.remat = True, "full"
    return config
