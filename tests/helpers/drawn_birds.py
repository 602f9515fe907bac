"""A small model and its batches of drawn birds, for benchmarks that train a little."""

from grain_jax.config import TrainConfig
from grain_jax.data.batch import Batch
from grain_jax.data.loader import training_batches
from grain_jax.data.source import data_source, open_training_source
from grain_jax.data.synthetic_birds import demo
from grain_jax.data.tokenizer import WordTokenizer


def small_config(*, batch_size: int, num_images: int) -> TrainConfig:
    """GRAIN of 0.1 M parameters on images of 32 pixels."""
    config = demo.get_config()
    config.batch_size = batch_size
    model = config.model
    model.image_size, model.embed_dim = 32, 32
    model.vision.width, model.vision.depth = 32, 2
    model.text.width, model.decoder.width = 32, 32
    model.decoder.depth, model.decoder.mlp_dim = 1, 128
    config.data.synthetic_birds.num_train_images = num_images
    return config


def drawn_batches(config: TrainConfig, count: int, *, seed: int) -> list[Batch]:
    """The first batches of a run."""
    source = open_training_source(config.data, image_size=config.model.image_size)
    words = data_source(config.data, image_size=config.model.image_size).vocabulary()
    assert words is not None
    with training_batches(
        source,
        config.data,
        WordTokenizer(words),
        image_size=config.model.image_size,
        batch_size=config.batch_size,
        seed=seed,
    ) as batches:
        return [next(batches) for _ in range(count)]
