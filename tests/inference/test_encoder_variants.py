"""Embeddings of crops and blurred images: the same however they are batched, and kept on disk."""

import dataclasses

import jax
import numpy as np
import pytest
from toy_encoder import ToySource, toy_encoder

from grain_jax.config import MeshConfig
from grain_jax.data.image_variants import BoxBlurs, BoxCrops, ImageVariants, RandomCrops
from grain_jax.data.records import Record
from grain_jax.inference.array_store import ArrayStore
from grain_jax.inference.cached_encoder import CachedEncoder
from grain_jax.parallel.sharding import make_mesh


def noisy(count: int = 3, *, seed: int = 0) -> ToySource:
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, size=(count, 12, 16, 3), dtype=np.uint8)
    return ToySource(*(Record(f"{seed}-{i}", image) for i, image in enumerate(images)))


def variants(kind, *, images: ToySource | None = None, boxes: float = 0.5) -> ImageVariants:
    images = noisy() if images is None else images
    given = np.full((len(images), 2, 4), boxes, np.float32)
    return ImageVariants(images, kind, toy_encoder().preprocessing, given)


def expected(source: ImageVariants) -> np.ndarray:
    """The toy says of an image what its first pixel is."""
    pixels = np.array([source[i].image[0, 0] for i in range(len(source))], np.float64)
    embed = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    return embed.reshape(len(source.images), source.of_each, 3)


@pytest.mark.parametrize("kind", [RandomCrops(number=5), BoxCrops(), BoxBlurs()])
@pytest.mark.parametrize("batch_size", [4, 64])
def test_every_variant_is_encoded_as_an_image_of_its_own(kind, batch_size):
    source = variants(kind)
    found = toy_encoder(batch_size=batch_size).variants(source)
    np.testing.assert_allclose(found, expected(source), atol=1e-6)
    assert found.dtype == np.float32


def test_a_mesh_changes_no_variant():
    mesh = make_mesh(MeshConfig(4, 2, 1), jax.devices()[:8])
    source = variants(RandomCrops(number=5))
    spread = toy_encoder(batch_size=8, mesh=mesh).variants(source)
    np.testing.assert_allclose(spread, expected(source), atol=1e-6)


def test_no_images_have_no_variants():
    with pytest.raises(ValueError, match="There are no images to make variants of"):
        toy_encoder().variants(variants(RandomCrops(), images=noisy(0)))


def over(folder, **options) -> CachedEncoder:
    """As a process of its own would open it."""
    return CachedEncoder.of(toy_encoder(batch_size=64), ArrayStore(folder, **options), note=print)


def test_variants_are_kept_by_images_kind_numbers_and_boxes(tmp_path):
    crops = RandomCrops(number=4)
    embed = over(tmp_path).variants(variants(crops))
    again = over(tmp_path)
    assert again.variants(variants(crops)).tobytes() == embed.tobytes()
    assert (again.read_variants, again.encoded_variants) == (12, 0)
    assert again.summary().endswith("Of variants of images 12 were read and 0 encoded.")
    others = [
        variants(dataclasses.replace(crops, seed=1)),
        variants(dataclasses.replace(crops, largest=0.8)),
        variants(crops, images=noisy(seed=1)),
        variants(crops, images=noisy(2)),
        variants(BoxBlurs()),
        variants(BoxBlurs(), boxes=0.4),
        variants(BoxCrops()),
    ]
    for other in others:
        reader = over(tmp_path)
        np.testing.assert_allclose(reader.variants(other), expected(other), atol=1e-6)
        assert (reader.read_variants, reader.encoded_variants) == (0, len(other))


class Reads(ToySource):
    """Counts them."""

    count = 0

    def __getitem__(self, index: int, /) -> Record:
        self.count += 1
        return super().__getitem__(index)


def test_images_are_read_once_to_find_all_kinds_of_their_variants(tmp_path):
    kinds = (RandomCrops(number=2), BoxBlurs(), BoxCrops())
    for kind in kinds:
        over(tmp_path).variants(variants(kind))
    images, reader = Reads(*noisy().records), over(tmp_path)
    for kind in kinds:
        reader.variants(variants(kind, images=images))
    assert reader.encoded_variants == 0
    assert images.count == 3


def test_variants_take_at_most_half_of_the_store(tmp_path, capsys):
    """A block of 3 images x 4 crops x 3 numbers is 144 bytes, and 400 are half of the store."""
    writer = over(tmp_path, max_bytes=800)
    blocks = [variants(RandomCrops(number=4), images=noisy(seed=seed)) for seed in range(5)]
    for block in blocks:
        np.testing.assert_allclose(writer.variants(block), expected(block), atol=1e-6)
    assert capsys.readouterr().out.count("half of the cache") == 1
    reader = over(tmp_path, max_bytes=800)
    for block in blocks:
        np.testing.assert_allclose(reader.variants(block), expected(block), atol=1e-6)
    assert (reader.read_variants, reader.encoded_variants) == (24, 36)
