r"""The CLIP baseline of `grain_vitb16_cc12m.py`: same data, one loss.

    python -m grain_jax.train --config=configs/clip_vitb16_cc12m.py \
        --data.data_dir=DIR --workdir=RUN

Variants: "" (MLLM captions mixed in, as GRAIN trains), "original" (web captions only), "sigmoid"
(as "", with SigLIP's loss).
Hardware: sized for 16 H100 80 GB. Shape-tested, not yet run.
Expected: not yet measured.
Published by others for CLIP ViT-B/16 on CC12M, with other recipes: ImageNet 37.4 %, CIFAR-10 67.9,
SUN397 41.8, R@1 on COCO 32.8 to text and 22.5 to image (github.com/bethgelab/
frequency_determines_performance, template ensemble); ImageNet 40.2 % (LaCLIP's README).
Web images: prepare them with `--max_image_side=256`. A core decodes 101 images/s with a short side
of 800 pixels, 488 with 256.
Text lengths are not measured: the annotations of this set were not at hand. The first lines of a
run, and `--check`, name the length that your captions need.
"""

from grain_jax.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig, vision_variant


def get_config(variant: str = "") -> TrainConfig:
    config = TrainConfig(
        name="clip_vitb16_cc12m",
        batch_size=2048,
        epochs=35.0,
        model=ModelConfig(type="clip", vision=vision_variant("B/16")),
        data=DataConfig(dataset="tfds", eval_split="validation", num_workers=16),
        evaluation=EvaluationConfig(eval_interval_steps=5_000),
    )
    match variant:
        case "":
            return config
        case "original":
            config.data.synthetic_caption_probability = 0.0
            return config
        case "sigmoid":
            config.loss.image_caption = "sigmoid"
            return config
    raise ValueError(f"Unknown variant {variant!r}; choose '', 'original' or 'sigmoid'.")
