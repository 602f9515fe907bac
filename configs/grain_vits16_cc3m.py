r"""GRAIN ViT-S/16 on CC3M with MLLM captions and detector boxes.

    python -m grain_jax.train --config=configs/grain_vits16_cc3m.py \
        --data.data_dir=DIR --workdir=RUN

Hardware: sized for 8 GPUs of 80 GB or a v5e-16. Shape-tested, not yet run.
Expected: no result of grain_jax's yet. Users report that CC3M overfits early: keep_best on
the held-out split is on.
Published by others for CLIP ViT-B/16 on CC3M, with another recipe: ImageNet 17.1 %, CIFAR-10 49.4,
SUN397 25.9, R@1 on COCO 14.6 to text and 10.3 to image (github.com/bethgelab/
frequency_determines_performance, template ensemble); ImageNet 15.8 % (LaCLIP's README).
Web images: prepare them with `--max_image_side=256`. A core decodes 101 images/s with a short side
of 800 pixels, 488 with 256.
Text lengths are not measured: the annotations of this set were not at hand. Padding costs: captions
of 40 tokens, descriptions of 16 and model.description_capacity_factor=0.6 take GRAIN ViT-B/16 from
165.6 to 131.1 GFLOP an image. The first lines of a run, and `--check`, name the lengths and the
capacity factor that your annotations need; metrics.jsonl has what is used, as
`caption_positions_used`, `description_positions_used` and `descriptions_used`.
`model.text_tokens_per_image`, which they propose too, leaves nearly all padding out: docs/scale.md.
"""

from grain_jax.config import DataConfig, EvaluationConfig, TrainConfig, vision_variant


def get_config(variant: str = "") -> TrainConfig:
    if variant:
        raise ValueError(f"Unknown variant {variant!r}; this config has none.")
    config = TrainConfig(
        name="grain_vits16_cc3m",
        batch_size=2048,
        epochs=35.0,
        data=DataConfig(dataset="tfds", eval_split="validation", num_workers=16),
        evaluation=EvaluationConfig(eval_interval_steps=1_000),
    )
    config.model.vision = vision_variant("S/16")
    return config
