"""Every file of `configs/` and the demo: valid, and its model and loss have the shapes promised."""

import jax
import jax.numpy as jnp
import pytest
from places import REPOSITORY

from grain_jax.config import TrainConfig, validate
from grain_jax.config.cli import load_config
from grain_jax.formats.pretrained import huggingface_model
from grain_jax.loading.initialize import inherit_settings
from grain_jax.models.image_text import model_of_run
from grain_jax.training.objective import total_loss

VARIANTS = {
    "configs/grain_vitb16_cc12m.py": ("", "faithful"),
    "configs/clip_vitb16_cc12m.py": ("", "original", "sigmoid"),
    "configs/photos.py": ("", "clip"),
    "configs/posttrain_own_data.py": ("", "decoder"),
    "grain_jax/data/synthetic_birds/demo.py": ("", "clip", "smoke"),
}
PRETRAINED = {
    "openai/clip-vit-base-patch16": {
        "model_type": "clip",
        "projection_dim": 512,
        "vision_config": {"patch_size": 16},
    }
}
FILES = sorted(
    [str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "configs").glob("*.py")]
    + ["grain_jax/data/synthetic_birds/demo.py"]
)
RECIPES = [(file, variant) for file in FILES for variant in VARIANTS.get(file, ("",))]
QUICK = (("configs/photos.py", ""), ("configs/photos.py", "clip"))  # to trace
BATCH = 8


def load(file: str, variant: str) -> TrainConfig:
    config = load_config(f"{REPOSITORY / file}:{variant}")
    if config.data.dataset == "tfds":
        config.data.data_dir = "somewhere"
    if config.pretrained:  # what comes with the weights, without the weights
        trained = TrainConfig(model=huggingface_model(PRETRAINED[config.pretrained]))
        config, _ = inherit_settings(config, trained)
    return config


@pytest.mark.parametrize(("file", "variant"), RECIPES)
def test_recipe_is_valid(file, variant):
    validate(load(file, variant))


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        recipe if recipe in QUICK else pytest.param(*recipe, marks=pytest.mark.slow)
        for recipe in RECIPES
    ],
)
def test_its_step_has_the_promised_shapes(file, variant):
    config = load(file, variant)
    model, data = config.model, config.data
    abstract = jax.ShapeDtypeStruct
    images = abstract((BATCH, model.image_size, model.image_size, 3), jnp.float32)
    captions = abstract((BATCH, data.caption_length), jnp.int32)
    descriptions = abstract((BATCH, data.max_regions, data.description_length), jnp.int32)
    module = model_of_run(config)

    def step(images, captions, descriptions, boxes):
        output, _ = module.init_with_output(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            images,
            captions,
            descriptions,
            train=True,
        )
        loss, metrics = total_loss(
            output,
            caption_key=jnp.arange(BATCH),
            description_key=jnp.arange(BATCH * data.max_regions).reshape(BATCH, -1),
            boxes=boxes,
            region_mask=boxes[..., 2] > 0,
            config=config.loss,
        )
        return output.image.image_embed, output.image.boxes, loss, metrics

    boxes = abstract((BATCH, data.max_regions, 4), jnp.float32)
    embed, predicted, loss, metrics = jax.eval_shape(step, images, captions, descriptions, boxes)
    assert embed.shape == (BATCH, model.embed_dim)
    assert loss.shape == ()
    if model.type == "grain":
        assert predicted.shape == (BATCH, model.decoder.num_queries, 4)
        assert {"contrastive", "box_l1", "box_giou", "region"} <= set(metrics)
    else:
        assert predicted is None
        assert "region" not in metrics


@pytest.mark.parametrize("file", FILES)
def test_recipe_refuses_an_unknown_variant(file):
    with pytest.raises(ValueError, match="variant"):
        load(file, "no_such_variant")
