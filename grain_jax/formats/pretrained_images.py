"""The preprocessing of pretrained models as a `Preprocessing`; other settings are errors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grain_jax.data.transforms import RESAMPLING, Preprocessing
from grain_jax.formats.files import HUGGINGFACE_CONFIG, present, read_json

# Of the second, which transformers 5 writes, the entry "image_processor" is read.
IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP
STD = (0.26862954, 0.26130258, 0.27577711)


def huggingface_preprocessing(folder: Path, image_size: int, *, siglip: bool) -> Preprocessing:
    """The preprocessing in the first of `IMAGE_SETTINGS` that exists, else the model's default.

    Raises ValueError for steps that `Preprocessing` does not have.
    """
    path, given = _image_settings(folder)
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type"))
    if kind.startswith(("CLIP", "Siglip")):  # its defaults apply to settings that are absent
        siglip = kind.startswith("Siglip")
    for name, expected in (
        *(("do_resize", True), ("do_rescale", True), ("do_normalize", True)),
        *(("do_pad", False), ("use_square_size", False)),
    ):
        if bool(given.get(name, expected)) != expected:
            raise ValueError(f"{path}: {name} is {given[name]}, expected {expected} or absent.")
    factor = given.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or abs(factor * 255 - 1) > 1e-6:
        raise ValueError(
            f"{path}: rescale_factor is {factor!r}, expected 1/255: pixels are scaled to 0 to 1 "
            "before they are normalised."
        )
    names = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
    resample = given.get("resample", 3)
    if resample not in list(names):
        raise ValueError(
            f"{path}: resample is {resample!r}, expected 2 (bilinear), 3 (bicubic) or absent."
        )
    mean, std = ((0.5,) * 3,) * 2 if siglip else (MEAN, STD)
    return Preprocessing(
        image_size=image_size,
        resize=_resize(
            path, given, image_size, cropped=bool(given.get("do_center_crop", not siglip))
        ),
        interpolation=names[resample],
        mean=_triple(path, "image_mean", given.get("image_mean", mean)),
        std=_triple(path, "image_std", given.get("image_std", std)),
    )


def _image_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the image settings, and the settings; {} where there is no file."""
    whole, nested = (folder / name for name in IMAGE_SETTINGS)
    if whole.is_file():
        return whole, present(read_json(whole))
    given = read_json(nested).get("image_processor") if nested.is_file() else None
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{nested}: image_processor is {given!r}, expected an object.")
    return nested, present(given)


def _resize(path: Path, given: Mapping[str, Any], image_size: int, *, cropped: bool) -> str:
    """The `Preprocessing.resize` with the same effect. Raises ValueError where there is none."""
    square = {"height": image_size, "width": image_size}
    shortest = {"shortest_edge": image_size}
    size = _named_sides(given.get("size", shortest if cropped else square), ("shortest_edge",))
    crop = _named_sides(given.get("crop_size", square), ("height", "width"))
    if cropped and crop != square:
        raise ValueError(
            f"{path}: crop_size is {given['crop_size']}, expected {image_size}, the image_size of "
            f"{HUGGINGFACE_CONFIG}."
        )
    if size == square:
        return "squash"  # a crop of that size changes nothing
    if size == shortest and cropped:
        return "crop"
    raise ValueError(
        f"{path}: size is {given['size']} {'with' if cropped else 'without'} a centre crop. "
        f"Expected one of these, with the image_size of {HUGGINGFACE_CONFIG}: {shortest} with "
        f"do_center_crop, which keeps the largest centred square, or {square}, which squashes the "
        "image."
    )


def _named_sides(size: Any, of_one: Sequence[str]) -> Any:
    """A size by side: older files have one number for the sides `of_one`, or [height, width]."""
    if isinstance(size, int):
        return dict.fromkeys(of_one, size)
    if isinstance(size, list) and len(size) == 2:
        return dict(zip(("height", "width"), size, strict=True))
    return present(size) if isinstance(size, Mapping) else size


def open_clip_preprocessing(path: Path, given: Any, image_size: int) -> Preprocessing:
    """The preprocessing of `preprocess_cfg`. Its `size` is ignored: open_clip uses the model's."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{path}: preprocess_cfg is {given!r}, expected an object.")
    given = present(given)
    resizes = {"shortest": "crop", "squash": "squash"}
    mode = given.get("resize_mode", "shortest")
    if mode not in list(resizes):
        raise ValueError(
            f"{path}: resize_mode is {mode!r}, expected 'shortest' (the largest centred square) or "
            "'squash'; images are not padded here."
        )
    interpolation = given.get("interpolation", "bicubic")
    if interpolation not in list(RESAMPLING):
        raise ValueError(
            f"{path}: interpolation is {interpolation!r}, expected one of {', '.join(RESAMPLING)}."
        )
    return Preprocessing(
        image_size=image_size,
        resize=resizes[mode],
        interpolation=interpolation,
        mean=_triple(path, "mean", given.get("mean", MEAN)),
        std=_triple(path, "std", given.get("std", STD)),
    )


def _triple(path: Path, name: str, values: Any) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name} is {values!r}, expected three numbers.") from error
    return red, green, blue
