"""The built-in demo: GRAIN on synthetic birds, minutes on two CPU cores.

python -m grain_jax.train
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
    """Variants: "" (GRAIN), "clip" (the baseline), "smoke" (seconds; for tests)."""
    config = TrainConfig(
        name="demo",
        batch_size=32,
        steps=2_500,
        model=ModelConfig(
            image_size=64,
            embed_dim=64,
            vision=VisionConfig(
                patch_size=8,
                width=64,
                depth=3,
                num_heads=2,
                qk_norm=False,
                activation="quick_gelu",
                position_init="sincos",
                initializer="xavier",
            ),
            text=TextConfig(
                vocab_size=512,
                context_length=32,
                width=64,
                depth=1,
                num_heads=2,
                token_init_std=0.05,
            ),
            decoder=DecoderConfig(
                width=64, depth=2, num_heads=2, mlp_dim=256, dropout=0.0, num_queries=6
            ),
            dtype="float32",
            init_logit_scale=10.0,
            # Caption accuracy stays at the random baseline for hundreds of steps, which would keep
            # a shared scale low.
            region_logit_scale="own",
        ),
        # Without it the image embedding learns little about descriptions: docs/experiments.md.
        loss=LossConfig(image_description_weight=0.5),
        data=DataConfig(
            dataset="synthetic_birds",
            tokenizer="synthetic_birds",
            caption_length=32,
            description_length=16,
            cache="memory",
        ),
        optim=OptimConfig(
            learning_rate=8e-4,
            warmup_steps=60,
            final_learning_rate=1e-5,
            weight_decay=0.05,
            clip_grad_norm=1.0,
        ),
        checkpoint=CheckpointConfig(save_interval_steps=500),
        evaluation=EvaluationConfig(eval_interval_steps=500, max_images=500),
    )
    match variant:
        case "":
            return config
        case "clip":
            config.name, config.model.type = "demo_clip", "clip"
            config.model.region_logit_scale = "shared"
            config.loss.image_description_weight = 0.0
            return config
        case "smoke":
            config.name, config.steps, config.batch_size = "smoke", 8, 16
            (
                config.data.synthetic_birds.num_train_images,
                config.data.synthetic_birds.num_eval_images,
            ) = 64, 32
            config.checkpoint.save_interval_steps = config.evaluation.eval_interval_steps = 4
            config.logging.log_interval_steps = 2
            return config
    raise ValueError(f"Unknown variant {variant!r} of the demo; choose '', 'clip' or 'smoke'.")
