r"""A small GRAIN on a few thousand photographs with captions and boxes, on two CPU cores.

    python -m grain_jax.train --config=configs/photos.py --data.data_dir=DIR --workdir=RUN

Images are flipped at random: set data.flip_probability=0 where texts say left and right. Captions
are cut to 30 words or parts of words, descriptions to 8: the first lines of a run, and `--check`,
say how many of your texts are cut, and which data.caption_length, data.description_length and
model.description_capacity_factor your annotations need.

DIR is what `python -m grain_jax.prepare` wrote, with the splits `train` and `validation`.
Variants: "" (GRAIN), "clip" (the baseline: same towers, data and schedule).
Run on 5,999 photographs of Flickr8k: 63 to 70 minutes at the pace of two idle cores of an AMD
EPYC; on shared ones it took 134 (clip: 108). On 1,000 others R@1 is 2.2 % from image to text and
1.6 % back (clip: 3.4, 2.6; random 0.1), box recall at IoU 0.5 27.6 % (constant boxes: 21.2). So few
images do not make a good model of either kind: these results show that it works. All of
them: docs/experiments.md, section 3.
"""

from grain_jax.config import (
    CheckpointConfig,
    DataConfig,
    DecoderConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)


def get_config(variant: str = "") -> TrainConfig:
    config = TrainConfig(
        name="photos",
        batch_size=128,
        steps=3_000,
        model=ModelConfig(
            image_size=96,
            embed_dim=192,
            vision=VisionConfig(
                patch_size=16,
                width=192,
                depth=6,
                num_heads=3,
                position_init="sincos",
                initializer="xavier",
            ),
            text=TextConfig(width=192, depth=3, num_heads=3, token_init_std=0.1),
            decoder=DecoderConfig(
                width=192, depth=3, num_heads=3, mlp_dim=768, dropout=0.1, num_queries=6
            ),
            dtype="float32",
            init_logit_scale=10.0,
            region_logit_scale="own",
        ),
        loss=LossConfig(image_description_weight=0.5),
        data=DataConfig(
            dataset="tfds",
            resize="crop",
            crop_min_area=0.4,
            flip_probability=0.5,
            caption_length=32,
            description_length=10,
            max_regions=5,
            unique_descriptions=True,
            cache="memory",
        ),
        optim=OptimConfig(
            learning_rate=1e-3,
            warmup_steps=100,
            final_learning_rate=1e-5,
            weight_decay=0.2,
            clip_grad_norm=1.0,
        ),
        checkpoint=CheckpointConfig(save_interval_steps=200),
        evaluation=EvaluationConfig(eval_interval_steps=200),
    )
    match variant:
        case "":
            return config
        case "clip":
            config.name, config.model.type = "photos_clip", "clip"
            config.loss.image_description_weight = 0.0
            config.model.region_logit_scale = "shared"
            return config
    raise ValueError(f"Unknown variant {variant!r}; choose '' or 'clip'.")
