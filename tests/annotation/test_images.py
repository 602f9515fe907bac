"""Images as a model gets them: upright, in RGB, not too large."""

import io

import numpy as np
import pytest
from PIL import Image

from grain_jax.annotation.images import as_jpeg, list_images, load_image
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.transforms import decode_image

PIXELS = np.zeros((20, 40, 3), np.uint8)
PIXELS[:, :20] = (250, 20, 20)  # the left half is red


def save(folder, name, *, mode="RGB", **options):
    Image.fromarray(PIXELS).convert(mode).save(folder / name, **options)


def test_a_jpeg_that_fits_is_sent_as_it_is(tmp_path):
    save(tmp_path, "a.jpg", quality=70)
    loaded = load_image("a.jpg", tmp_path)
    assert as_jpeg(loaded, 40) == as_jpeg(loaded, 0) == (tmp_path / "a.jpg").read_bytes()


@pytest.mark.parametrize("kind", ["turned", "CMYK", "PNG", "wrongly named"])
def test_any_other_file_becomes_an_upright_jpeg_in_rgb(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    match kind:
        case "turned":
            save(tmp_path, "a.jpg", exif=exif, quality=95)
        case "CMYK":
            save(tmp_path, "a.jpg", mode="CMYK", quality=95)
        case "PNG":
            save(tmp_path, "a.jpg", format="PNG")
        case _:
            save(tmp_path, "a.jpg", format="GIF")
    sent = as_jpeg(load_image("a.jpg", tmp_path), 0)
    plain = np.asarray(Image.open(io.BytesIO(sent), formats=["JPEG"])).astype(int)
    assert plain.shape == (20, 40, 3)
    red_is_left = plain[:, :18, 0].mean() > 200 and plain[:, 22:, 0].mean() < 50
    assert red_is_left == (kind != "turned")


@pytest.mark.parametrize(("side", "shape"), [(10, (5, 10)), (39, (20, 39)), (1, (1, 1))])
def test_large_images_are_shrunk_with_their_aspect(tmp_path, side, shape):
    save(tmp_path, "a.jpg")
    assert decode_image(as_jpeg(load_image("a.jpg", tmp_path), side)).shape == (*shape, 3)


def test_images_are_listed_in_one_order_and_others_are_counted(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/1.png", "a.png", "C.JPG"):
        save(tmp_path, name, format="PNG")
    (tmp_path / "x.heic").write_bytes(b"")
    (tmp_path / "y.png").symlink_to("nowhere")
    with open(bytes(tmp_path) + b"/\xff.png", "wb"):
        pass
    listed = list_images(tmp_path)
    assert listed.images == ["C.JPG", "a.png", "b/1.png"]
    assert listed.skipped == {
        "name is not UTF-8": 1,
        "image format is not supported": 1,
        "link that leads nowhere": 1,
    }


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "x.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no JPEG.*1 image format is not supported"):
        list_images(tmp_path)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "missing.png"])
def test_a_path_that_leads_elsewhere_is_skipped(tmp_path, name):
    with pytest.raises(SkippedSample, match=name):
        load_image(name, tmp_path)
