"""The official tensors in tests/golden (layout and how they came about: tests/golden/README.md)."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from places import GOLDEN
from safetensors.numpy import load_file

from grain_jax.config import (
    DecoderConfig,
    ModelConfig,
    TextConfig,
    VisionConfig,
    official_loss,
)
from grain_jax.formats.grain_reference import from_official
from grain_jax.models.image_text import build_model
from grain_jax.training.objective import total_loss

NUM_CLASSES = 3  # of the unused class head

CONFIG = ModelConfig(
    image_size=32,
    embed_dim=512,
    vision=VisionConfig(patch_size=8, width=64, depth=2, num_heads=4),
    text=TextConfig(vocab_size=100, context_length=16, width=48, depth=2, num_heads=4),
    decoder=DecoderConfig(width=32, depth=3, num_heads=4, mlp_dim=64, num_queries=5),
    dtype="float32",
)


@cache
def tensors() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "official_tiny.safetensors")


def state_dict() -> dict[str, np.ndarray]:
    """Parameters, under the official names."""
    return {k: v for k, v in tensors().items() if k.startswith(("backbone.", "decoder."))}


def gradients() -> dict[str, np.ndarray]:
    """Gradient of the total loss for each parameter, under its official name."""
    return {k.removeprefix("grad."): v for k, v in tensors().items() if k.startswith("grad.")}


def boxes() -> np.ndarray:
    """Region boxes as our batches have them: clipped to the image, cxcywh in [0, 1]."""
    xyxy = np.clip(tensors()["in.boxes_xyxy_224"], 0, 224) / 224
    low, high = xyxy[..., :2], xyxy[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=-1).astype(np.float32)


def region_mask() -> np.ndarray:
    return tensors()["in.region_mask"].astype(bool)


def loss_inputs() -> dict[str, jnp.ndarray]:
    """What the loss takes beside the model's output; all texts count as different."""
    batch, regions = region_mask().shape
    keys = np.arange(batch * regions, dtype=np.uint32).reshape(batch, regions)
    return {
        "caption_key": jnp.arange(batch, dtype=jnp.uint32),
        "description_key": jnp.asarray(keys),
        "boxes": jnp.asarray(boxes()),
        "region_mask": jnp.asarray(region_mask()),
    }


def apply(params, *, train=False, rngs=None, **changes):
    """The model, with fields of its config changed, on the golden inputs."""
    golden = tensors()
    return build_model(dataclasses.replace(CONFIG, **changes)).apply(
        {"params": params},
        jnp.asarray(golden["in.images"].transpose(0, 2, 3, 1)),
        jnp.asarray(golden["in.text"]),
        jnp.asarray(golden["in.descriptions"]),
        train=train,
        auxiliary_boxes=True,
        rngs=rngs,
    )


def loss_and_gradient(params, **changes):
    """((loss, (metrics, output)), gradient) of the faithful loss, with fields of CONFIG changed."""

    def loss(params):
        output = apply(params, **changes)
        total, metrics = total_loss(output, **loss_inputs(), config=official_loss())
        return total, (metrics, output)

    return jax.value_and_grad(loss, has_aux=True)(params)


@cache
def params():
    return from_official(state_dict(), CONFIG)


@cache
def evaluated():
    """`loss_and_gradient` of CONFIG itself; compiled once for all tests."""
    return jax.jit(loss_and_gradient)(params())
