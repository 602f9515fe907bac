"""What each device computes and exchanges in the compiled step: its own rows, and little else."""

import dataclasses
from typing import Literal

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny_run import TinyRun, random_batch, tiny_config

from grain_jax.benchmarking import hlo
from grain_jax.config import MeshConfig, TrainConfig
from grain_jax.parallel.sharding import batch_sharding, use_mesh

# Numbers that nothing else is a multiple of: a dimension tells what it counts.
BATCH, EMBED, REGIONS, QUERIES = 304, 13, 3, 5


def config_of(
    *,
    grad_cache_chunks: int = 1,
    scan_layers: bool = False,
    num_heads: int = 2,
    logits: Literal["dense", "tiled"] = "dense",
) -> TrainConfig:
    config = tiny_config()
    config.loss.logits = logits
    config.batch_size, config.optim.grad_cache_chunks = BATCH, grad_cache_chunks
    config.model.scan_layers = scan_layers
    config.loss.auxiliary_box_weight = 1.0  # the boxes of every layer, batch first
    config.model.embed_dim, config.model.image_size = EMBED, 24
    config.data.caption_length, config.data.description_length = 7, 5
    config.model.vision = dataclasses.replace(config.model.vision, num_heads=num_heads)
    config.model.text = dataclasses.replace(config.model.text, num_heads=num_heads, width=48)
    config.model.decoder = dataclasses.replace(
        config.model.decoder,
        depth=2,
        num_heads=num_heads,
        width=32,
        mlp_dim=64,
        num_queries=QUERIES,
    )
    return config


def abstract_batch(mesh: Mesh) -> object:
    """Of `config_of`: its numbers times the rows of a device are no multiples of `BATCH`."""
    batch = random_batch()
    batch = batch.replace(
        images=np.zeros((1, 24, 24, 3), np.uint8),
        captions=batch.captions[:, :7],
        descriptions=batch.descriptions[:, :, :5],
    )
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((BATCH, *leaf.shape[1:]), leaf.dtype, sharding=sharding),
        batch,
    )


def compiled(shape: tuple[int, int, int], config: TrainConfig) -> list[hlo.Instruction]:
    run = TinyRun(config, mesh=MeshConfig(*shape), devices=8, start=None)
    with use_mesh(run.mesh), jax.numpy_dtype_promotion("standard"):
        lowered = run.step.lower(run.abstract, abstract_batch(run.mesh))
        return hlo.instructions(lowered.compile().as_text())


def per_row(shape: tuple[int, ...], *, shards: int) -> int | None:
    """Numbers of the array beside rows of the whole batch; None where it has no such dimension.

    Pairs of own rows with all rows are logits, split by rows: they count as one number.
    """
    if not any(size and size % BATCH == 0 for size in shape):
        return None
    own, total = BATCH // shards, 1
    for size in shape:
        if size in (BATCH, BATCH * REGIONS):
            total *= size // BATCH
        elif size in (own, own * REGIONS):
            continue
        else:
            total *= size
    return total


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((4, 2, 1), config_of()),
        pytest.param((1, 8, 1), config_of(scan_layers=True), marks=pytest.mark.slow),
        pytest.param((4, 1, 2), config_of(scan_layers=True), marks=pytest.mark.slow),
        pytest.param((2, 4, 1), config_of(scan_layers=True), marks=pytest.mark.slow),
        pytest.param((1, 4, 2), config_of(scan_layers=True), marks=pytest.mark.slow),
        # Where data x fsdp is 2 a device has 152 rows; micro-batches keep their multiples apart
        # from `BATCH`. (1, 1, 8) splits no batch.
        pytest.param(
            (2, 1, 4), config_of(grad_cache_chunks=2, num_heads=4), marks=pytest.mark.slow
        ),
        pytest.param(
            (1, 2, 4), config_of(grad_cache_chunks=2, num_heads=4), marks=pytest.mark.slow
        ),
    ],
)
def test_no_device_has_more_of_the_whole_batch_than_embeddings_keys_and_masks(shape, config):
    assert_own_rows(compiled(shape, config), shards=shape[0] * shape[1])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_with_logits_in_tiles_no_device_has_anything_of_the_whole_batch(shape):
    """But numbers of rows, which are made and not exchanged."""
    for instruction in compiled(shape, config_of(logits="tiled")):
        for _, dimensions in instruction.shapes:
            found = per_row(dimensions, shards=shape[0] * shape[1])
            assert found is None or (found <= REGIONS and not instruction.collective), (
                instruction.text[:300]
            )


def assert_own_rows(instructions: list[hlo.Instruction], *, shards: int) -> None:
    for instruction in instructions:
        for _, dimensions in instruction.shapes:
            found = per_row(dimensions, shards=shards)
            assert found is None or found <= EMBED * REGIONS, instruction.text[:300]
            whole = [size for size in dimensions if size in (BATCH, BATCH * REGIONS)]
            assert len(whole) < 2, instruction.text[:300]  # logits of all with all


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_micro_batches_exchange_nothing_over_data_until_they_are_done(shape):
    """Groups of the collectives in a loop are of "fsdp" and "tensor": 8 / data devices at most."""
    instructions = compiled(shape, config_of(grad_cache_chunks=2))
    assert_own_rows(instructions, shards=shape[0] * shape[1])
    found = [each for each in instructions if each.collective and each.in_loop]
    if shape[0] == 8:
        assert found == []
    for instruction in found:
        for group in hlo.groups(instruction):
            assert len({device // (8 // shape[0]) for device in group}) == 1, instruction.text[:300]


def test_the_guard_sees_what_it_is_about():
    assert per_row((2 * BATCH * QUERIES, 32), shards=8) == 2 * BATCH * QUERIES * 32
    assert per_row((2, BATCH, QUERIES, 32), shards=8) == 2 * QUERIES * 32
    assert per_row((BATCH // 8 * REGIONS, BATCH * REGIONS), shards=8) == REGIONS
    assert per_row((BATCH // 8, 16), shards=8) is None
