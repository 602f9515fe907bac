"""An inspection as a folder: report.md, plots, and sheets of images with their boxes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from grain_jax.data.inspection.inspect_split import Inspection
from grain_jax.data.inspection.markdown import markdown
from grain_jax.data.inspection.measurements import MAX_OCTAVES, PER_OCTAVE, SIDE_BINS
from grain_jax.data.inspection.sections import Section, advised_queries, kept_boxes
from grain_jax.data.inspection.worst import KINDS, LOWEST
from grain_jax.data.records import Record, read_records
from grain_jax.data.text_lengths import percentile
from grain_jax.data.tfds_records import RecordSource
from grain_jax.data.transforms import ImageError, decode_image
from grain_jax.disk import whole_file, write_whole
from grain_jax.visualize.contact_sheet import SheetImage, draw_contact_sheet
from grain_jax.visualize.distributions import Bars, binned, draw_distributions

SHEET_IMAGES = 12  # evenly spaced over the split
GROUPS, OF_A_GROUP = 6, 3  # images that look alike, drawn
OF_A_KIND = 3  # records to look at, drawn
DRAWN_SIDE = 600  # pixels of the longer side of an image that is drawn


def write_report(inspection: Inspection, sections: Sequence[Section], folder: Path) -> list[Path]:
    """Writes the report and its images into the folder; returns the files, the report first.

    Files of an earlier report are replaced. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    figures: dict[str, list[str]] = {}
    for key, panels in _panels(inspection).items():
        files.append(folder / f"{key}.png")
        with whole_file(files[-1]) as partial:
            draw_distributions(panels, partial)
        figures[key] = [files[-1].name]
    source = RecordSource(inspection.spec.directory, inspection.spec.split)
    for key, name, images in _sheets(inspection, source):
        files.append(folder / name)
        with whole_file(files[-1]) as partial:
            draw_contact_sheet(images, partial)
        figures.setdefault(key, []).append(name)
    sections = [*sections, Section("sheet", "Some images of the split")]
    report = folder / "report.md"
    write_whole(report, markdown(_title(inspection), sections, figures))
    return [report, *files]


def _title(inspection: Inspection) -> str:
    return f"Split {inspection.spec.split} of {inspection.spec.directory.name}"


def _panels(inspection: Inspection) -> dict[str, list[Bars]]:
    """The plots of each section that has some."""
    found = inspection.measured
    panels = {
        "texts": [
            *_tokens("captions", found.caption_tokens),
            *_tokens("descriptions", found.description_tokens),
        ],
        "boxes": _boxes(found.boxes) if found.regions else [],
        "geometry": _geometry(found.box_sides, found.box_aspects) if found.regions else [],
        "sizes": _sizes(found.short_sides, found.image_aspects),
    }
    return {key: bars for key, bars in panels.items() if bars}


def _tokens(kind: str, counts: Counter[int]) -> Iterator[Bars]:
    if counts:
        heights, width = binned(counts)
        longest = percentile(counts, 0.99)
        marks = {float(longest): f"99 %: at most {longest}"}
        yield Bars(f"Tokens of {kind}", "tokens", heights, width, marks=marks)


def _boxes(boxes: Counter[int]) -> list[Bars]:
    heights, width = binned(boxes)
    total = sum(number * images for number, images in boxes.items())
    most = max(min(max(boxes), 2 * advised_queries(boxes)), 5)
    kept = {float(q): 100 * kept_boxes(boxes, q) / total for q in range(1, most + 1)}
    advised = {float(advised_queries(boxes)): f"advised: {advised_queries(boxes)}"}
    return [
        Bars("Images by their number of boxes", "boxes of an image", heights, width),
        Bars("Boxes kept", "model.decoder.num_queries", kept, marks=advised),
    ]


def _geometry(sides: Counter[int], aspects: Counter[int]) -> list[Bars]:
    total = sides.total()
    heights = {(bin_ + 0.5) / SIDE_BINS: 100 * n / total for bin_, n in sorted(sides.items())}
    size = Bars(
        "Boxes by size",
        "square root of the area, fraction of the image",
        heights,
        1 / SIDE_BINS,
        ticks={value / 4: f"{value / 4:g}" for value in range(5)},
    )
    return [size, *_aspects("Boxes by shape", aspects)]


def _aspects(title: str, aspects: Counter[int]) -> Iterator[Bars]:
    if not aspects:
        return
    total = aspects.total()
    heights = {bin_ / PER_OCTAVE: 100 * n / total for bin_, n in sorted(aspects.items())}
    furthest = max(1, *(int(np.ceil(abs(value))) for value in heights))
    octaves = range(-min(furthest, MAX_OCTAVES), min(furthest, MAX_OCTAVES) + 1)
    ticks = {float(k): f"1:{2**-k}" if k < 0 else f"{2**k}:1" for k in octaves}
    yield Bars(title, "width : height, in pixels", heights, 1 / PER_OCTAVE, ticks=ticks)


def _sizes(sides: Counter[int], aspects: Counter[int]) -> list[Bars]:
    if not sides:
        return []
    most = percentile(sides, 0.99)
    heights, width = binned(sides, most=most)
    label = "pixels" if most == max(sides) else "pixels (the last bar: and more)"
    short = Bars("Images by their short side", label, heights, width)
    return [short, *_aspects("Images by shape", aspects)]


def _sheets(
    inspection: Inspection, source: RecordSource
) -> Iterator[tuple[str, str, list[SheetImage]]]:
    """Key of the section, file and images of each sheet."""
    if images := [*_of_records(source, _to_look_at(inspection))]:
        yield "worst", "worst.png", images
    if inspection.near is not None and inspection.near.groups:
        groups = inspection.near.groups[:GROUPS]
        titled = [
            (index, f"{len(group):,} images" if not place else "", None)
            for group in groups
            for place, index in enumerate(group[:OF_A_GROUP])
        ]
        if images := [*_of_records(source, titled)]:
            yield "near", "near_duplicates.png", images
    spaced = np.linspace(0, len(source) - 1, min(len(source), SHEET_IMAGES)).round().astype(int)
    if images := [*_of_records(source, [(index, "", None) for index in spaced.tolist()])]:
        yield "sheet", "images.png", images


def _to_look_at(inspection: Inspection) -> Iterator[tuple[int, str, int | None]]:
    """Position, heading and box of each record that is drawn because it is at an end."""
    for kind in KINDS:
        if kind == LOWEST and not inspection.measured.scored_boxes:
            continue
        records = inspection.measured.worst.records.get(kind, [])
        for place, each in enumerate(records[:OF_A_KIND]):
            yield each.index, "" if place else kind.capitalize(), each.region


def _of_records(
    source: RecordSource, chosen: Iterator[tuple[int, str, int | None]] | Sequence
) -> Iterator[SheetImage]:
    """Images with their boxes, or with the one in question; those that do not decode left out."""
    heading = ""
    for index, begins, region in chosen:
        heading = begins or heading
        (record,) = read_records(source, [index])
        try:
            image = _small(decode_image(record.image))
        except ImageError:
            continue
        yield _sheet_image(record, image, region, heading)
        heading = ""


def _sheet_image(
    record: Record, image: UInt8[np.ndarray, "H W 3"], region: int | None, heading: str
) -> SheetImage:
    regions = sorted(record.regions, key=lambda each: -each.score)
    if region is not None:
        regions = [record.regions[region]]
    longest = max((caption.text for caption in record.captions), key=len, default="")
    boxes = tuple((np.asarray(each.box_xyxy, np.float32), each.description) for each in regions)
    return SheetImage(image, record.id, longest if region is None else "", boxes, heading)


def _small(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    small = Image.fromarray(image)
    small.thumbnail((DRAWN_SIDE, DRAWN_SIDE))
    return np.asarray(small)
