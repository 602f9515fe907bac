"""How many tokens it takes to describe images: as measured so far, or by rule of thumb."""

from dataclasses import dataclass
from pathlib import Path

from grain_jax.annotation.describe import DescribeSettings
from grain_jax.annotation.images import jpeg_size
from grain_jax.data.annotation_files import StageFiles
from grain_jax.data.annotation_layout import MARKER
from grain_jax.data.checks import read_image_file
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.transforms import ImageError, image_shape

SAMPLED = 64  # images whose size is looked at
CHARACTERS = 4  # a token of text; English
PIXELS = 28 * 28  # a token of an image; as of Qwen2-VL and its successors, others differ
COMPLETION = 150  # tokens of both answers


@dataclass(frozen=True)
class Tokens:
    """Tokens that a model reads and writes."""

    prompt: int
    completion: int
    measured: bool  # on rows of the same folder, rather than estimated


def estimate_tokens(
    folder: Path, images: list[str], settings: DescribeSettings, output: Path
) -> Tokens:
    """Tokens of describing the images: the mean of the rows in `output`, where there are any."""
    count = len(images)
    if (measured := _measured(output)) is not None:
        return Tokens(round(measured[0] * count), round(measured[1] * count), True)
    return Tokens(
        round(_prompt_tokens(folder, images, settings) * count), COMPLETION * count, False
    )


def _measured(output: Path) -> tuple[float, float] | None:
    """Mean tokens read and written of the rows that count them; None without any."""
    if not (output / MARKER).exists():
        return None
    import pyarrow.compute as pc

    table = StageFiles(output, "describe").columns(("prompt_tokens", "completion_tokens"))
    means = [pc.mean(table[name]).as_py() for name in table.column_names]
    return None if means[0] is None else (means[0], means[1] or 0.0)


def _prompt_tokens(folder: Path, images: list[str], settings: DescribeSettings) -> float:
    """Estimated tokens of the two requests of an image; the second repeats the first."""
    prompts = settings.prompts
    first = len(prompts.system) + len(prompts.subject)
    text = (2 * first + len(prompts.features)) / CHARACTERS + COMPLETION / 3
    areas = []
    for name in images[:: max(1, len(images) // SAMPLED)][:SAMPLED]:
        try:
            height, width = image_shape(read_image_file(name, folder))
        except (ImageError, SkippedSample):
            continue
        small = jpeg_size((width, height), settings.max_image_side)
        areas.append(small[0] * small[1])
    return text + 2 * sum(areas) / max(1, len(areas)) / PIXELS
