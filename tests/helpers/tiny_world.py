"""A config file for tests: the demo's smoke variant with the smallest towers that still train."""

from grain_jax.config import TrainConfig
from grain_jax.data.synthetic_birds import demo


def get_config(variant: str = "") -> TrainConfig:
    """Variants: "" (GRAIN), "clip"."""
    config = demo.get_config("smoke")
    config.name = "tiny"
    model = config.model
    model.type = variant or "grain"
    if model.type == "clip":
        model.region_logit_scale = "shared"
    model.image_size, model.embed_dim = 32, 16
    model.vision.width, model.vision.depth, model.vision.num_heads = 16, 1, 2
    model.text.width, model.text.depth, model.text.num_heads = 16, 1, 2
    model.decoder.width, model.decoder.depth, model.decoder.mlp_dim = 16, 1, 32
    config.data.synthetic_birds.num_train_images = 48
    config.data.synthetic_birds.num_eval_images = 25
    config.optim.learning_rate, config.optim.warmup_steps = 1.5e-3, 2
    config.evaluation.eval_interval_steps = 0
    config.evaluation.num_visualized = 2
    config.logging.tensorboard = False
    config.mesh.cpu_devices = 2
    return config
