r"""GRAIN on top of OpenAI's CLIP ViT-B/16: pretrained towers, a region decoder from scratch.

    python -m grain_jax.train --config=configs/posttrain_clip_vitb16.py \
        --data.data_dir=DIR --workdir=RUN

The weights come from the Hugging Face hub (`pretrained`, 600 MB); --pretrained=NAME_OR_FOLDER takes
any other CLIP or SigLIP, with its own towers, tokenizer and normalisation. The towers learn at a
tenth of the decoder's rate; --optim.trained_vision_layers=0 --optim.trained_text_layers=0
freezes them.
Shape-tested, not yet run at this size. In small, 800 steps on 5,999 photographs on top of a CLIP of
ours: R@10 15.7 % to text and 14.0 % to image, level with that CLIP going on (15.2 and 13.5), where
GRAIN from scratch has 9.4 and 9.6; by description CIFAR-10 is 1.5 points higher than with that CLIP
(three seeds, from scratch two; docs/experiments.md, section 3).
Prepare web images with `--max_image_side=256`: a core makes 101 images/s of a short side of 800
pixels, 488 with 256. Text lengths are not measured, as the annotations of this set were not at
hand: the first lines of a run, and `--check`, name the lengths and the
model.description_capacity_factor that yours need.
"""

from grain_jax.config import DataConfig, EvaluationConfig, OptimConfig, TrainConfig


def get_config(variant: str = "") -> TrainConfig:
    if variant:
        raise ValueError(f"Unknown variant {variant!r}; there is only ''.")
    config = TrainConfig(
        name="posttrain_clip_vitb16",
        pretrained="openai/clip-vit-base-patch16",
        batch_size=1024,
        epochs=5.0,
        data=DataConfig(dataset="tfds", eval_split="validation", num_workers=16),
        optim=OptimConfig(
            learning_rate=3e-4,
            warmup_steps=1_000,
            clip_grad_norm=1.0,
            lr_multipliers=("vision/*=0.1", "text/*=0.1"),
        ),
        evaluation=EvaluationConfig(eval_interval_steps=2_000),
    )
    config.loss.image_description_weight = 0.5
    config.model.region_logit_scale = "own"
    return config
