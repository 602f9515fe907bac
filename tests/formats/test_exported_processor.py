"""The processor of an exported folder: pixels, boxes and texts are those of JAX."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from image_modes import make_image
from PIL import Image

from grain_jax.data import transforms
from grain_jax.data.transforms import Preprocessing
from grain_jax.models.image_text import normalize_images

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
torch.set_num_threads(1)  # of models so small, threads would only wait for each other


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "turned"])
def test_pixels_are_exactly_those_of_jax(resize, interpolation, mode):
    from grain_jax.formats.torch_grain.processing_grain import GrainImageProcessor

    data = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6 if mode == "turned" else 1
    make_image("RGB" if mode == "turned" else mode).save(data, "PNG", exif=exif)
    spec = Preprocessing(image_size=24, resize=resize, interpolation=interpolation)
    processor = GrainImageProcessor(24, resize, interpolation, spec.mean, spec.std)
    found = processor(Image.open(data), return_tensors="np")["pixel_values"]
    assert found.dtype == np.float32
    pixels = (found[0].transpose(1, 2, 0) * spec.std + spec.mean) * 255
    np.testing.assert_allclose(pixels, spec(data.getvalue()), atol=1e-3)
    square = jnp.asarray(spec(data.getvalue()))[None]
    normalised = normalize_images(square, spec.mean, spec.std)
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), normalised, atol=1e-6)


def test_a_palette_may_be_transparent():
    """As `Image.quantize` leaves it; no file is like that, so an image of the caller's alone."""
    from grain_jax.formats.torch_grain.processing_grain import upright_rgb

    image = make_image("RGBA").quantize(16)
    assert image.has_transparency_data
    assert "transparency" not in image.info
    whites = np.asarray(transforms.upright_rgb(image))
    np.testing.assert_array_equal(whites, np.asarray(upright_rgb(image)))
    opaque = np.asarray(image.convert("RGBA"))[..., 3] == 255
    assert not opaque.all()
    assert (whites[~opaque] > np.asarray(image.convert("RGB"))[~opaque]).any()


def test_arrays_and_batches_are_images_too(auto):
    process = auto[1].image_processor
    arrays = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    one = process([Image.fromarray(array) for array in arrays])["pixel_values"]
    np.testing.assert_array_equal(process(arrays)["pixel_values"], one)
    np.testing.assert_array_equal(process(list(arrays))["pixel_values"], one)
    np.testing.assert_array_equal(process(arrays[0])["pixel_values"], one[:1])
    with pytest.raises(ValueError, match=r"uint8.*got float64"):
        process(arrays[0] / 255)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_boxes_come_back_to_the_image(auto, resize):
    """The inverse of what evaluation does to a box."""
    processor = auto[1]
    spec = Preprocessing(image_size=24, resize=resize)
    window = spec.window(np.zeros((40, 100, 3), np.uint8))
    inside = window.box((0.4, 0.25, 0.5, 0.75))
    assert inside is not None
    left, top, right, bottom = inside
    boxes = torch.tensor([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
    kept, processor.image_processor.resize = processor.image_processor.resize, resize
    found = processor.boxes_in_pixels(boxes[None], [(40, 100)])
    processor.image_processor.resize = kept
    np.testing.assert_allclose(found[0], [[40, 10, 50, 30]], atol=1e-4)


def test_boxes_of_a_turned_image_are_those_of_the_upright_one(auto, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image("RGB").save(tmp_path / "turned.png", exif=exif)
    turned, boxes = Image.open(tmp_path / "turned.png"), torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    turned.load()
    height, width = make_image("RGB").width, make_image("RGB").height
    expected = auto[1].boxes_in_pixels(boxes, [(height, width)])[0]
    array = np.zeros((height, width, 3), np.uint8)
    sizes = [height, width], torch.tensor([height, width]), np.array([height, width])
    for given in (turned, tmp_path / "turned.png", array, *sizes):
        np.testing.assert_array_equal(auto[1].boxes_in_pixels(boxes, [given])[0], expected)
    with pytest.raises(ValueError, match="Boxes of 1 images, and 2 images"):
        auto[1].boxes_in_pixels(boxes, [turned, turned])


def test_a_processor_call_without_inputs_is_refused(auto):
    with pytest.raises(ValueError, match="no images; give at least one"):
        auto[1](images=[])
    with pytest.raises(ValueError, match="no text; give at least one"):
        auto[1](text=[])
    with pytest.raises(ValueError, match="pixel_values, input_ids or"):
        auto[0]()
    with pytest.raises(ValueError, match="images, text or descriptions"):
        auto[1]()


def test_usual_arguments_of_processors_work(auto):
    """What model cards of CLIP write: padding=True; and what would not fit the model is said."""
    processor, texts = auto[1], ["red", "a long tail of a bird"]
    plain = processor(text=texts, return_tensors="pt")
    same = processor(text=texts, return_tensors="pt", padding=True, truncation=True)
    assert torch.equal(plain["input_ids"], same["input_ids"])
    cut = processor(text=texts, descriptions="red", max_length=4, padding="max_length")
    assert [len(row) for row in (*cut["input_ids"], *cut["description_ids"])] == [4, 4, 4]
    with pytest.raises(ValueError, match="max_length=77; this model takes at most 10"):
        processor(text=texts, padding="max_length", max_length=77)


def test_the_embeddings_of_words_are_found(auto):
    model = auto[0]
    assert model.get_input_embeddings() is model.backbone.token_embedding
