"""An inspection in words and tables, with what it advises; printed and written alike."""

import math
from collections import Counter
from dataclasses import dataclass

from grain_jax.config import TrainConfig
from grain_jax.data.inspection.inspect_split import Inspection, example_text
from grain_jax.data.inspection.measurements import MAX_TOKENS, PATCH_SIDE, WHOLE
from grain_jax.data.inspection.near_duplicates import NearDuplicates
from grain_jax.data.inspection.repeated_texts import RepeatedTexts
from grain_jax.data.inspection.worst import KINDS
from grain_jax.data.region_coverage import RegionCoverage, check_regions
from grain_jax.data.text_lengths import (
    TextLengths,
    length_notes,
    percentile,
    stream_notes,
    text_positions,
)
from grain_jax.data.tfds_records import RecordSource
from grain_jax.extras import how_to_install

LENGTHS = {  # setting -> lengths to compare
    "caption": (16, 24, 32, 48, 64, 77, 128, 248),
    "description": (8, 12, 16, 24, 32, 48, 64),
}
MIN_KEPT = 0.95  # fraction of boxes that the advised number of queries must hold
IMAGES_PER_STREAM = 64  # of a device, which nothing here knows; fewer need more room for each
QUERIES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 50, 100)
NUM_GROUPS = 8  # of images that look alike, listed
NUM_IDS = 4  # of a group, listed
MAX_SHOWN = 120  # characters of a text


@dataclass(frozen=True)
class Table:
    """Cells as text; columns after the first are numbers where `numeric`."""

    header: tuple[str, ...]  # empty: a list of names and values
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True


@dataclass(frozen=True)
class Section:
    """One part of the report."""

    key: str  # by which its figure is called
    title: str
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()  # what is worth knowing or changing


def inspection_sections(inspection: Inspection) -> list[Section]:
    """The sections of the report, in order. Reads a few records again for their texts."""
    source = RecordSource(inspection.spec.directory, inspection.spec.split)
    return [
        _counts(inspection),
        _texts(inspection),
        *([_boxes(inspection), _geometry(inspection)] if inspection.measured.regions else []),
        _sizes(inspection),
        _repeated(inspection.captions, source, "captions"),
        _repeated(inspection.descriptions, source, "descriptions"),
        _near(inspection.near, source, inspection),
        _worst(inspection),
    ]


def advised_queries(boxes: Counter[int]) -> int:
    """The smallest number of queries that holds `MIN_KEPT` of the boxes; at least 1."""
    total = sum(number * images for number, images in boxes.items())
    queries = 1
    while kept_boxes(boxes, queries) < MIN_KEPT * total:
        queries += 1
    return queries


def kept_boxes(boxes: Counter[int], queries: int) -> int:
    """Boxes that are left where an image keeps at most `queries`."""
    return sum(min(number, queries) * images for number, images in boxes.items())


def _counts(inspection: Inspection) -> Section:
    found = inspection.measured
    rows = [("records of the split", f"{inspection.total:,}")]
    if not inspection.is_whole:
        rows.append(("records read, evenly spaced", f"{found.images:,}"))
    rows.append(("captions", _per_image(found.captions, found.images)))
    if len(found.caption_sources) > 1:
        rows += [(f"captions, {s}", f"{n:,}") for s, n in sorted(found.caption_sources.items())]
    rows += [
        ("boxes", _per_image(found.regions, found.images)),
        ("images with boxes", _of(found.images_with_regions, found.images)),
        ("images with a label", _of(found.labelled, found.images)),
        ("bytes of images", f"{found.image_bytes:,} ({_mean(found.image_bytes, found.images)})"),
    ]
    if found.unreadable:
        rows.append(("images that cannot be read", f"{found.unreadable:,}"))
    config = _config(inspection)
    any_regions = bool(found.regions)
    coverage = RegionCoverage(
        found.images_with_regions, found.images, inspection.total, any_regions
    )
    notes = (f"regions: {coverage.sentence()}", *check_regions(config, coverage))
    return Section("counts", "Counts", (Table((), tuple(rows)),), notes)


def _mean(total: int, count: int) -> str:
    return f"{total / max(count, 1):,.0f} an image"


def _per_image(total: int, images: int) -> str:
    return f"{total:,} ({total / images:.2f} an image)"


def _of(count: int, total: int) -> str:
    return f"{count:,} ({_percent(count, total)})"


def _percent(count: int, total: int) -> str:
    """Rounded, but 0 % and 100 % only where they are exact."""
    if count in (0, total):
        return "0 %" if not count else "100 %"
    percent = min(max(100 * count / total, 0.1), 99.9)
    return f"{percent:.1f} %"


def _config(inspection: Inspection) -> TrainConfig:
    """Settings of a GRAIN run on the split that has no regions to be refused for."""
    config = TrainConfig()
    config.data.dataset, config.data.data_dir = "tfds", str(inspection.spec.directory)
    config.data.train_split = inspection.spec.split
    config.data.allow_no_regions = True
    return config


def _texts(inspection: Inspection) -> Section:
    found, config = inspection.measured, _config(inspection)
    kinds = (("caption", found.caption_tokens), ("description", found.description_tokens))
    rows = tuple(_tokens_row(kind, tokens) for kind, tokens in kinds if tokens)
    tables = [Table(("tokens", "mean", "median", "95 %", "99 %", "most"), rows)]
    tables += [_lengths_table(kind, tokens, config) for kind, tokens in kinds if tokens]
    notes = [_positions_note(inspection, config)]
    counted = "images, all of the split" if inspection.is_whole else "images read"
    lengths = _text_lengths(inspection, config)
    notes += length_notes(lengths, config, counted=counted)
    notes += stream_notes(lengths, config, images_per_stream=IMAGES_PER_STREAM)
    wide = _config(inspection)
    wide.data.max_regions = wide.model.decoder.num_queries = advised_queries(found.boxes)
    if wide.data.max_regions > config.data.max_regions:
        settings = f"with --data.max_regions={wide.data.max_regions}"
        more = length_notes(_text_lengths(inspection, wide), wide, counted=counted)
        notes += [f"{settings}: {note}" for note in more if note not in notes]
    return Section("texts", "Text lengths", tuple(tables), tuple(notes))


def _tokens_row(kind: str, tokens: Counter[int]) -> tuple[str, ...]:
    longest = max(tokens)
    most = f"more than {MAX_TOKENS}" if longest > MAX_TOKENS else str(longest)
    mean = sum(length * count for length, count in tokens.items()) / tokens.total()
    percentiles = (str(percentile(tokens, fraction)) for fraction in (0.5, 0.95, 0.99))
    return (f"of a {kind}", f"{mean:.1f}", *percentiles, most)


def _lengths_table(kind: str, tokens: Counter[int], config: TrainConfig) -> Table:
    """What lengths would truncate, and how much of them would be padding."""
    setting = f"data.{kind}_length"
    chosen = getattr(config.data, f"{kind}_length")
    rows = []
    for length in LENGTHS[kind]:
        cut = sum(count for tokens_of, count in tokens.items() if tokens_of > length)
        used = sum(min(tokens_of, length) * count for tokens_of, count in tokens.items())
        padding = 1 - used / (length * tokens.total())
        name = f"{length} (default)" if length == chosen else str(length)
        rows.append((name, _percent(cut, tokens.total()), f"{100 * padding:.0f} %"))
        if not cut and length >= chosen:
            break
    return Table((setting, "truncated", "padding"), tuple(rows))


def _text_lengths(inspection: Inspection, config: TrainConfig) -> TextLengths:
    """Of all texts; those over the context count as one token more than the context."""
    found, most = inspection.measured, config.model.text.context_length + 1
    lengths = TextLengths(images=found.images)
    for counted, given in (
        (lengths.captions, found.caption_tokens),
        (lengths.descriptions, found.description_tokens),
    ):
        for tokens, count in given.items():
            counted[min(tokens, most)] += count
    for boxes, images in found.boxes.items():
        lengths.num_descriptions[min(boxes, config.data.max_regions)] += images
    return lengths


def _positions_note(inspection: Inspection, config: TrainConfig) -> str:
    found, data = inspection.measured, config.data
    used = sum(min(t, data.caption_length) * n for t, n in found.caption_tokens.items())
    caption = used / max(found.captions, 1)
    used = sum(min(t, data.description_length) * n for t, n in found.description_tokens.items())
    description = used / max(found.regions, 1)
    kept = kept_boxes(found.boxes, data.max_regions) / found.images
    needed, paid = caption + kept * description, text_positions(config)
    return (
        f"cost: with the default lengths the text tower computes {paid:g} positions an image "
        f"({data.caption_length} + {data.max_regions} x {data.description_length}), of which about "
        f"{needed:.0f} ({100 * needed / paid:.0f} %) hold text"
    )


def _boxes(inspection: Inspection) -> Section:
    found, config = inspection.measured, _config(inspection)
    boxes, advised = found.boxes, advised_queries(found.boxes)
    rows = []
    for queries in sorted({*QUERIES, advised}):
        kept = kept_boxes(boxes, queries)
        whole = sum(images for number, images in boxes.items() if number <= queries)
        name = f"{queries} (advised)" if queries == advised else str(queries)
        name += " (default)" if queries == config.data.max_regions else ""
        rows.append((name, _percent(kept, found.regions), _percent(whole, found.images)))
        if queries >= max(boxes):
            break
    summary = (
        ("mean", f"{found.regions / found.images:.2f}"),
        ("fewest", str(min(boxes))),
        ("median", str(percentile(boxes, 0.5))),
        ("most", str(max(boxes))),
    )
    share = _percent(kept_boxes(boxes, config.data.max_regions), found.regions)
    notes = [f"the default of {config.data.max_regions} boxes an image keeps {share} of them"]
    if advised != config.data.max_regions:
        share = _percent(kept_boxes(boxes, advised), found.regions)
        notes.append(
            f"--model.decoder.num_queries={advised} --data.max_regions={advised} keeps {share}; "
            f"fewer keep less than {100 * MIN_KEPT:.0f} %"
        )
    header = ("queries", "boxes kept", "images with all their boxes")
    tables = (Table(("boxes of an image", ""), summary), Table(header, tuple(rows)))
    return Section("boxes", "Boxes an image", tables, tuple(notes))


def _geometry(inspection: Inspection) -> Section:
    found = inspection.measured
    patch = f"{100 * PATCH_SIDE**2:.1f} % of the image"
    rows = (
        (f"smaller than a patch of 16 pixels at 224 ({patch})", found.tiny_boxes),
        (f"at least {100 * WHOLE:.0f} % of the image", found.whole_boxes),
        ("with a score other than 1", found.scored_boxes),
    )
    table = Table((), tuple((name, _of(count, found.regions)) for name, count in rows))
    notes = []
    if found.tiny_boxes > found.regions / 10:
        notes.append(
            "many boxes are smaller than a patch: consider a larger model.image_size or a smaller "
            "model.vision.patch_size"
        )
    if found.whole_boxes > found.regions / 4:
        notes.append("many boxes are the whole image and say nothing about where things are")
    return Section("geometry", "Size and shape of boxes", (table,), tuple(notes))


def _sizes(inspection: Inspection) -> Section:
    found = inspection.measured
    rows = []
    for name, sides in (("short side", found.short_sides), ("long side", found.long_sides)):
        if sides:
            median = percentile(sides, 0.5)
            rows.append((name, f"{min(sides):,}", f"{median:,}", f"{max(sides):,}"))
    small = sum(count for side, count in found.short_sides.items() if side < 224)
    notes = []
    if small:
        notes.append(
            f"{_of(small, found.images)} images are less than 224 pixels wide or high: training at "
            "224 enlarges them"
        )
    if found.short_sides and percentile(found.short_sides, 0.5) >= 768:
        notes.append(
            "most images are far larger than 224 pixels: `prepare --max_image_side=512` makes "
            "loading faster"
        )
    header = ("pixels", "least", "median", "most")
    return Section("sizes", "Image sizes", (Table(header, tuple(rows)),), tuple(notes))


def _repeated(texts: RepeatedTexts, source: RecordSource, kind: str) -> Section:
    title = f"Repeated {kind}"
    if not texts.total:
        return Section(kind, title, notes=(f"there are no {kind}",))
    summary = (
        ("different", _of(texts.distinct, texts.total)),
        ("that more than one image has", _of(texts.in_several_images, texts.total)),
    )
    rows = tuple(
        (_shown(example_text(source, each, kind)), f"{each.num_images:,}", f"{each.count:,}")
        for each in texts.examples
    )
    tables = [Table((kind, ""), (("all", f"{texts.total:,}"), *summary))]
    notes = []
    if rows:
        tables.append(Table(("text", "images", "times"), rows))
        notes.append(
            "compared without regard to case and white space; equal texts are not negatives of "
            f"each other in training (loss.mask_duplicate_{kind})"
        )
    return Section(kind, title, tuple(tables), tuple(notes))


def _near(near: NearDuplicates | None, source: RecordSource, inspection: Inspection) -> Section:
    title = "Images that look alike"
    if near is None:
        note = f"not looked for: this needs ImageHash, {how_to_install('inspect')}"
        return Section("near", title, notes=(note,))
    images = inspection.measured.images
    rows = tuple(
        (f"{len(group):,}", ", ".join(_shown(source[i].id, 40) for i in group[:NUM_IDS]))
        for group in near.groups[:NUM_GROUPS]
    )
    tables = [
        Table(
            (),
            (
                ("groups of images that look alike", f"{len(near.groups):,}"),
                ("images in them", _of(near.images, images)),
            ),
        )
    ]
    if rows:
        tables.append(Table(("images", f"ids of the first {NUM_IDS}"), rows, numeric=False))
    bits = inspection.spec.near_distance
    notes = (f"perceptual hashes of 64 bits that differ in at most {bits}; groups may be chains",)
    return Section("near", title, tuple(tables), notes)


def _worst(inspection: Inspection) -> Section:
    tables = []
    for kind, unit in KINDS.items():
        records = inspection.measured.worst.records.get(kind, [])
        if kind == "lowest scores" and not inspection.measured.scored_boxes:
            continue
        if records:
            rows = tuple(
                (_shown(each.id, 40), _value(each.value), _shown(each.text)) for each in records
            )
            tables.append(Table((kind, unit, "text"), rows, numeric=False))
    return Section("worst", "Records to look at", tuple(tables))


def _value(value: float) -> str:
    if not math.isfinite(value) or value == int(value):
        return f"{value:g}"
    return f"{value:.2g}"


def _shown(text: str, length: int = MAX_SHOWN) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
