"""Images in which a model grounded phrases best, middling and worst, with all boxes."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from grain_jax.boxes import IOU_HIT
from grain_jax.data.image_files import SkippedSample, read_image_bytes
from grain_jax.data.tfds_records import RecordSource
from grain_jax.data.transforms import FULL, ImageError, center_window, decode_image
from grain_jax.evaluation.comparison import Measure
from grain_jax.evaluation.report_page.content import Gallery, ShownImage, ShownPhrase
from grain_jax.evaluation.report_page.evaluations import AnswerDetails, Evaluation
from grain_jax.evaluation.report_page.tables import named

EACH = 3  # images of each heading
MAX_PHRASES = 8  # drawn in one image
SIDE = 320  # pixels of the longer side of a thumbnail
QUALITY = 80  # of the JPEG
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FRAMED = "phrase"  # the method of phrases in the suite of `evaluate`
HEADINGS = ("Best", "Median", "Worst")


@dataclass(frozen=True)
class _Phrases:
    """Of one image: the rows of its answers, and their mean IoU."""

    image: str
    rows: tuple[int, ...]
    iou: float


def galleries(
    evaluations: Sequence[Evaluation], images: Mapping[str, Path]
) -> tuple[list[Gallery], list[str]]:
    """A gallery for each evaluation with grounding on a set of `images`, and notes.

    `images`: set -> a folder of image files named as in the predictions, or one of prepared records
    that has a split of that name. Raises ValueError where a set has no grounding in the
    predictions, or none of its images is found.
    """
    grounded = {
        measure.dataset
        for one in evaluations
        for measure, answers in one.answers.items()
        if measure.task == "grounding" and _drawable(answers)
    }
    found, notes = [], []
    for name, folder in images.items():
        if name not in grounded:
            having = f"on {', '.join(sorted(grounded))}" if grounded else "on no set"
            raise ValueError(
                f"--images names the set {name!r}, and the predictions have boxes of phrases "
                f"{having}; give --predictions of a GRAIN model on prepared records with boxes."
            )
        for one in evaluations:
            for measure, answers in one.answers.items():
                if measure.task == "grounding" and measure.dataset == name and _drawable(answers):
                    letter = named(evaluations, one)
                    title = name if measure.method == FRAMED else f"{name}, {measure.method}"
                    title += f", {letter}" if letter else ""
                    gallery, more = _gallery(title, one, measure, folder)
                    found.append(gallery)
                    notes += more
    return found, notes


def _drawable(answers: AnswerDetails) -> bool:
    return any(_is_drawn(answers, row) for row in range(len(answers.questions)))


def _is_drawn(answers: AnswerDetails, row: int) -> bool:
    iou = answers.iou[row]
    return answers.box_xyxy[row] is not None and iou is not None and 0 <= iou <= 1


def _gallery(
    title: str, one: Evaluation, measure: Measure, folder: Path
) -> tuple[Gallery, list[str]]:
    answers = one.answers[measure]
    chosen = best_median_worst(answers)
    encoded = read_images(folder, measure.dataset, [each.image for _, each in chosen])
    if not encoded:
        raise ValueError(
            f"None of the images of {measure.dataset!r} is in {str(folder)!r}, for example "
            f"{chosen[0][1].image!r}; give --images={measure.dataset}=FOLDER with files of these "
            "names, or prepared records."
        )
    # Phrases of the suite have boxes in the frame that the model sees, others in the whole image.
    framed = measure.method == FRAMED
    resize = one.entries("preprocessing").get("resize") if framed else "squash"
    shown, notes = [], []
    for heading, each in chosen:
        if each.image not in encoded:
            notes.append(f"Image {each.image!r} of {title} is not in {folder}.")
            continue
        try:
            pixels = _seen(encoded[each.image], resize == "crop")
        except ImageError as error:
            notes.append(f"Image {each.image!r} of {title} is left out: {error}")
            continue
        shown.append(_shown_image(heading, each, answers, pixels))
    meaning = (
        f"Images by the mean IoU of their phrases: the {EACH} best, {EACH} around the median, the "
        f"{EACH} worst. Solid: the box of the model, with the number of its phrase. Dashed: true "
        f"boxes. A phrase is right where IoU is at least {IOU_HIT:g}."
    )
    if all(boxes is None for boxes in answers.true_xyxy):
        meaning += " The predictions have no true boxes: another version of evaluate wrote them."
    if resize is None:
        meaning += (
            " The result file does not say how images were fitted to the model; boxes are drawn as "
            "of the whole image."
        )
    return Gallery(title, tuple(shown), meaning), notes


def best_median_worst(answers: AnswerDetails) -> list[tuple[str, "_Phrases"]]:
    """Up to `EACH` images under each heading, none twice; ties by name."""
    rows: dict[str, list[int]] = {}
    for row, (image, *_) in enumerate(answers.questions):
        if _is_drawn(answers, row):
            rows.setdefault(image, []).append(row)
    every = []
    for image, own in rows.items():
        iou = float(np.mean([answers.iou[row] or 0.0 for row in own]))
        every.append(_Phrases(image, tuple(own), iou))
    every.sort(key=lambda each: (-each.iou, each.image))
    count = len(every)
    worst = range(max(count - EACH, 0), count)
    best = range(min(EACH, count))
    start = max((count - EACH) // 2, 0)
    taken: dict[int, str] = {}
    for heading, places in zip(
        ("Best", "Worst", "Median"), (best, worst, range(start, start + EACH)), strict=True
    ):
        for place in places:
            if place < count:
                taken.setdefault(place, heading)
    return [
        (heading, every[place])
        for heading in HEADINGS
        for place in sorted(taken)
        if taken[place] == heading
    ]


def read_images(folder: Path, split: str, names: Iterable[str]) -> dict[str, bytes]:
    """Name -> encoded image, of those that are there.

    A folder with `dataset_info.json` is one of prepared records, of which the split is read. Raises
    ValueError where there is no such folder or split.
    """
    wanted = list(dict.fromkeys(names))
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r} for --images.")
    if (folder / "dataset_info.json").exists():
        return _of_records(RecordSource(folder, split), set(wanted))
    found = {}
    for name in wanted:
        if (path := _file(folder, name)) is not None:
            try:
                found[name] = read_image_bytes(path, name=name)
            except SkippedSample:
                continue
    return found


def _of_records(source: RecordSource, wanted: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for row in range(len(source)):
        record = source[row]
        if record.id in wanted and isinstance(record.image, bytes):
            found[record.id] = record.image
        if len(found) == len(wanted):
            break
    return found


def _file(folder: Path, name: str) -> Path | None:
    """The file of an image within the folder, out of which no name in a prediction leads."""
    root = folder.resolve()
    for candidate in (name, *(f"{name}{suffix}" for suffix in SUFFIXES)):
        try:
            path = (root / candidate).resolve()
            if path.is_relative_to(root) and path.is_file():
                return path
        except (OSError, ValueError):  # not a file name
            continue
    return None


def _seen(encoded: bytes, cropped: bool) -> UInt8[np.ndarray, "H W 3"]:
    """The part of the image that boxes are of: what the model saw, in its own proportions."""
    pixels = decode_image(encoded)
    height, width = pixels.shape[:2]
    window = center_window(height, width) if cropped else FULL
    top, left = round(window.top * height), round(window.left * width)
    return pixels[
        top : top + max(1, round(window.height * height)),
        left : left + max(1, round(window.width * width)),
    ]


def _shown_image(
    heading: str, each: _Phrases, answers: AnswerDetails, pixels: UInt8[np.ndarray, "H W 3"]
) -> ShownImage:
    thumbnail = Image.fromarray(np.ascontiguousarray(pixels))
    thumbnail.thumbnail((SIDE, SIDE))
    stored = io.BytesIO()
    thumbnail.save(stored, "JPEG", quality=QUALITY, optimize=True)
    phrases = []
    for number, row in enumerate(each.rows[:MAX_PHRASES], start=1):
        _, text, _ = answers.questions[row]
        phrases.append(
            ShownPhrase(
                number=number,
                text=text,
                predicted_xyxy=_inside(answers.box_xyxy[row] or []),
                true_xyxy=tuple(_inside(box) for box in answers.true_xyxy[row] or ()),
                iou=answers.iou[row] or 0.0,
                right=answers.correct[row] >= 0.5,
            )
        )
    return ShownImage(
        heading=heading,
        name=each.image,
        data_uri=f"data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode()}",
        width=thumbnail.width,
        height=thumbnail.height,
        iou=each.iou,
        phrases=tuple(phrases),
        left_out=max(0, len(each.rows) - MAX_PHRASES),
    )


def _inside(box: Sequence[float]) -> tuple[float, ...]:
    """Cut at the edges of the image; a box that is not finite becomes an empty one."""
    if not np.isfinite(box).all():
        return (0.0, 0.0, 0.0, 0.0)
    return tuple(min(max(float(value), 0.0), 1.0) for value in box)
