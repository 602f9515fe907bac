"""How large `prepare --decoded_cache` makes a data set, said before it is built."""

import shutil
from pathlib import Path

import numpy as np

from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.checks import read_image
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers import Importer, InvalidRecordError
from grain_jax.data.loader_plan import size
from grain_jax.data.transforms import ImageError, image_shape

SAMPLE_IMAGES = 100  # of which only the headers are read


def decoded_size_note(spec: DatasetBuildSpec, importer: Importer) -> str:
    """A sentence with the bytes of an image, of all, and those that are free; "" without a cache.

    Images that keep their aspect are measured on `SAMPLE_IMAGES` of them, evenly spaced.
    """
    cache = spec.decoded_cache
    if cache is None:
        return ""
    count, sampled = len(importer), ""
    if cache.square:
        each = cache.num_bytes(cache.side, cache.side)
    else:
        shapes = _shapes(spec, importer)
        if not shapes:
            return ""  # none can be read, which the report of the build says
        each = round(sum(cache.num_bytes(*shape) for shape in shapes) / len(shapes))
        sampled = f" in the mean of {len(shapes)}"
    total, free = each * count, shutil.disk_usage(_existing(spec.out)).free
    enough = "" if free >= total else ", which is not enough"
    return (
        f"Images are stored decoded, {cache.sentence}: {each:,} bytes each{sampled}, "
        f"{size(total)} for {count:,} records. {spec.out} has {size(free)} free{enough}."
    )


def _shapes(spec: DatasetBuildSpec, importer: Importer) -> list[tuple[int, int]]:
    """(height, width) of the images of the sample that can be read."""
    count, found = len(importer), []
    for index in np.linspace(0, count - 1, min(count, SAMPLE_IMAGES)).round().astype(int).tolist():
        try:
            found.append(image_shape(read_image(importer[index], spec.images_folder)))
        except (InvalidRecordError, SkippedSample, ImageError):
            continue
    return found


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
