"""Temporary memory of the contrastive losses, compiled for a number of devices.

python ring_memory.py COUNT [COUNT ...]   (prints each count, then the bytes of a device: of the
three softmax losses, and of the sigmoid loss)
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grain_jax.losses.contrastive import contrastive_loss
from grain_jax.losses.log_sum_exp import LogitsForm
from grain_jax.losses.regions import image_description_loss, region_loss
from grain_jax.losses.sigmoid import sigmoid_loss

Losses = Callable[[LogitsForm, Sequence[Any], Sequence[Any]], list[Any]]


class Shapes(NamedTuple):
    """Of the arrays of one device."""

    rows: int
    regions: int
    embed: int


def losses(form: LogitsForm, embeddings: Sequence[Any], targets: Sequence[Any]) -> list[Any]:
    """The three contrastive losses by softmax.

    embeddings: of images, captions, regions and descriptions, the scale, and the bias of the
    sigmoid loss. targets: keys of captions and descriptions, which regions are matched and
    described, and their labels.
    """
    image, caption, region, description, scale, _ = embeddings
    caption_key, description_key, matched, described, label = targets
    shared: Any = {"described": described, "key": description_key, "form": form}
    return [
        contrastive_loss(image, caption, scale, key=caption_key, form=form)[0],
        region_loss(region, description, scale, matched=matched, label=label, **shared)[0],
        image_description_loss(image, description, scale, **shared)[0],
    ]


def sigmoid(form: LogitsForm, embeddings: Sequence[Any], targets: Sequence[Any]) -> list[Any]:
    """The sigmoid loss, of the same arguments."""
    image, caption, _, _, scale, bias = embeddings
    return [sigmoid_loss(image, caption, scale, bias, key=targets[0], form=form)[0]]


def compiled(form: LogitsForm, shapes: Shapes, devices: Sequence[Any], of: Losses = losses) -> Any:
    """Their gradient with `shapes` on each device, `form` around all of them; nothing is run."""
    mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
    batch, regions, embed = shapes.rows * len(devices), shapes.regions, shapes.embed
    split = NamedSharding(mesh, PartitionSpec("data"))

    def rows(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=split)

    embeddings = (
        *(rows(jnp.float32, embed) for _ in range(2)),
        *(rows(jnp.float32, regions, embed) for _ in range(2)),
        *(
            jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
            for _ in range(2)
        ),
    )
    targets = (
        rows(jnp.uint32),
        rows(jnp.uint32, regions),
        *(rows(bool, regions) for _ in range(2)),
        rows(jnp.int32, regions),
    )

    def total(embeddings: Any, targets: Any) -> Any:
        return sum(of(replace(form, axes=("data",)), embeddings, targets))

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(total)).lower(embeddings, targets).compile()


def temporary_bytes(
    form: LogitsForm, shapes: Shapes, devices: Sequence[Any], of: Losses = losses
) -> int:
    """Of one device."""
    return int(compiled(form, shapes, devices, of).memory_analysis().temp_size_in_bytes)


if __name__ == "__main__":
    counts = [int(text) for text in sys.argv[1:]]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(counts))
    for count in counts:
        form, shapes, devices = LogitsForm(True), Shapes(32, 5, 64), jax.devices()[:count]
        found = (temporary_bytes(form, shapes, devices, of) for of in (losses, sigmoid))
        print(count, *found, flush=True)
