"""Crops and blurs: which pixels they have, and what decides about them."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from grain_jax.data.image_variants import VARIANTS, BoxBlurs, BoxCrops, ImageVariants, RandomCrops
from grain_jax.data.records import Record, Selection
from grain_jax.data.transforms import ImageError, Preprocessing

NO_BOXES = np.zeros((0, 4), np.float32)
SQUARE = Preprocessing(8)


def numbered(height: int = 60, width: int = 90) -> np.ndarray:
    """Each pixel says where it is: (row, column, 7)."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Counted:
    """Records in a list, and which of them were read."""

    def __init__(self, *images):
        self.records = [Record(f"image {i}", image) for i, image in enumerate(images)]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Record:
        self.read.append(index)
        return self.records[index]


def test_random_crops_are_squares_of_the_given_sizes_anywhere_in_the_image():
    image = numbered()
    crops = list(RandomCrops(number=400).of_image(image, NO_BOXES))
    assert len(crops) == 400
    places = []
    for one in crops:
        side, (y, x, _) = len(one), one[0, 0]
        assert one.shape == (side, side, 3)
        np.testing.assert_array_equal(one, image[y : y + side, x : x + side])
        places.append((side / 60, y / max(60 - side, 1), x / (90 - side)))
    sides, down, right = np.array(places).T
    for found, low, high in ((sides, 0.5, 0.9), (down, 0, 1), (right, 0, 1)):  # uniform
        assert low - 0.01 <= found.min() < low + 0.03
        assert high - 0.03 < found.max() <= high + 0.01
        assert found.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


def test_random_crops_depend_on_pixels_and_seed_alone():
    one, other = noise(20, 30), noise(20, 30, seed=1)
    kind = RandomCrops(number=5)

    def of(variants, row):
        return np.stack([variants[row * 5 + number].image for number in range(5)])

    first = ImageVariants(Counted(one, other), kind, SQUARE)
    second = ImageVariants(Counted(noise(9, 9), png(other), one), kind, SQUARE)
    np.testing.assert_array_equal(of(first, 0), of(second, 2))
    np.testing.assert_array_equal(of(first, 1), of(second, 1))
    more = list(RandomCrops(number=9).of_image(one, NO_BOXES))
    for crop, same in zip(kind.of_image(one, NO_BOXES), more[:5], strict=True):
        np.testing.assert_array_equal(crop, same)
    reseeded = ImageVariants(Counted(one), RandomCrops(number=5, seed=1), SQUARE)
    assert (of(reseeded, 0) != of(first, 0)).any()
    place = [(crop.shape, crop[0, 0].tolist()) for crop in kind.of_image(numbered(), NO_BOXES)]
    changed = numbered()
    changed[0, 0] = 99
    again = [(crop.shape, crop[0, 0].tolist()) for crop in kind.of_image(changed, NO_BOXES)]
    assert place != again  # another image has crops elsewhere


def test_a_margin_moves_the_edges_of_a_box_towards_those_of_the_image():
    image = numbered(height=100, width=200)
    boxes = np.array([[0.2, 0.5, 0.6, 1.0], [0.0, 0.0, 1.0, 1.0]], np.float32)
    crops = list(BoxCrops(margins=(0.0, 0.5, 1.0)).of_image(image, boxes))
    expected = [image[50:, 40:120], image[25:, 20:160], image, image, image, image]
    assert len(crops) == BoxCrops(margins=(0.0, 0.5, 1.0)).count(2) == 6
    for found, wanted in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def gaussian_edge(width: int, deviation: float) -> np.ndarray:
    """Black left of the middle and white right of it, blurred: the normal distribution."""
    distances = (np.arange(width) + 0.5 - width / 2) / deviation
    return np.array([255 * (1 + math.erf(one / math.sqrt(2))) / 2 for one in distances])


@pytest.mark.parametrize(("kind", "deviation"), [(BoxBlurs(), 100), (BoxBlurs(4 / 640), 4)])
def test_a_box_is_sharp_and_the_rest_is_a_gaussian_blur(kind, deviation):
    """The published blur is of 100 pixels in an image of 640."""
    image = np.zeros((48, 640, 3), np.uint8)
    image[:, 320:] = 255
    boxes = np.array([[0.25, 0.25, 0.625, 1.0], [0.0, 0.0, 1.0, 1.0]], np.float32)
    found, unchanged = kind.of_image(image, boxes)
    inside = np.zeros((48, 640), bool)
    inside[12:48, 160:400] = True
    np.testing.assert_array_equal(found[inside], image[inside])
    blurred = np.broadcast_to(gaussian_edge(640, deviation)[None, :, None], image.shape)
    assert np.abs(found[~inside] - blurred[~inside]).max() < 5  # of 255
    np.testing.assert_array_equal(unchanged, image)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_variants_are_preprocessed_as_any_image_and_boxes_are_those_the_model_saw(resize):
    """With "crop" the model sees columns 40 to 140 of 200, so its box is in these."""
    image, preprocessing = noise(100, 200), Preprocessing(8, resize=resize)
    boxes = np.array([[[0.25, 0.5, 0.5, 1.0]]], np.float32)  # its left half
    source = ImageVariants(Counted(image), BoxCrops(margins=(0.0,)), preprocessing, boxes)
    left = image[:, :100] if resize == "squash" else image[:, 50:100]
    np.testing.assert_array_equal(source[0].image, preprocessing(left))
    assert source[0].image.shape == (8, 8, 3)
    np.testing.assert_array_equal(preprocessing(source[0].image), source[0].image)


def test_an_image_is_read_and_decoded_once_for_variants_that_follow_each_other():
    images = Counted(png(noise(20, 20)), png(noise(20, 20, 1)), png(noise(20, 20, 2)))
    source = ImageVariants(Selection(images, [2, 0, 1]), RandomCrops(number=4), SQUARE)
    assert len(source) == 12
    found = source.__getitems__([3, 4, 5, 6, 7])
    assert images.read == [2, 0]
    for index, record in zip([3, 4, 5, 6, 7], found, strict=True):
        np.testing.assert_array_equal(record.image, source[index].image)
    assert [record.id for record in found[:2]] == ["image 2 #3", "image 0 #0"]


def test_what_variants_depend_on_is_described():
    images, boxes = Counted(noise(9, 9)), np.full((1, 2, 4), 0.5, np.float32)
    sources = [
        ImageVariants(images, RandomCrops(), SQUARE),
        ImageVariants(images, RandomCrops(seed=1), SQUARE),
        ImageVariants(images, BoxCrops(), SQUARE, boxes),
        ImageVariants(images, BoxBlurs(), SQUARE, boxes),
        ImageVariants(images, BoxBlurs(), SQUARE, boxes / 2),
        ImageVariants(images, BoxBlurs(deviation=0.1), SQUARE, boxes),
    ]
    assert len({repr(one.described) for one in sources}) == len(sources)
    same = ImageVariants(images, BoxBlurs(), SQUARE, boxes.copy())
    assert same.described == sources[3].described
    beside = ImageVariants(images, RandomCrops(), SQUARE, boxes)
    assert beside.described == sources[0].described  # crops at random know nothing of boxes


@pytest.mark.parametrize("kind", VARIANTS.values())
def test_every_kind_makes_as_many_of_the_smallest_image_as_it_says(kind):
    boxes = np.array([[[0.5, 0.5, 0.0, 0.0], [0.9, 0.9, 1.0, 1.0]]], np.float32)  # one is empty
    source = ImageVariants(Counted(noise(1, 1)), kind, SQUARE, boxes)
    found = source.__getitems__(range(len(source)))
    assert len(found) == kind.count(2)
    assert all(record.image.shape == (8, 8, 3) for record in found)


def test_what_cannot_be_made_says_why():
    with pytest.raises(ValueError, match="BoxCrops are made at boxes, and none are given"):
        ImageVariants(Counted(noise(9, 9)), BoxCrops(), SQUARE)
    with pytest.raises(ValueError, match="boxes of 2 images for 1 images"):
        ImageVariants(Counted(noise(9, 9)), BoxCrops(), SQUARE, np.zeros((2, 1, 4), np.float32))
    for numbers in ({"number": 0}, {"smallest": 0.0}, {"smallest": 0.95}, {"largest": 1.5}):
        with pytest.raises(ValueError, match="makes no crops; number must be 1 or more"):
            RandomCrops(**numbers)
    broken = ImageVariants(Counted(noise(9, 9), b"not an image"), RandomCrops(number=2), SQUARE)
    with pytest.raises(ImageError, match="Image 'image 1' cannot be evaluated on: 12 bytes are"):
        broken[2]
