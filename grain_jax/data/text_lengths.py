"""Text lengths of a split, and settings that would save the text tower padding.

Padding costs the text tower as much as text. `metrics.jsonl` has the fraction of positions used
(`caption_positions_used` and similar) only while a run trains; this estimates it before the start.
"""

import copy
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.config.text_validation import text_room
from grain_jax.data.captions import normalize_text
from grain_jax.data.mixture import sample_indices
from grain_jax.data.records import Record, Source, read_records
from grain_jax.data.region_coverage import needs_descriptions
from grain_jax.data.tokenizer import Tokenizer
from grain_jax.data.transforms import select_regions

SAMPLE_IMAGES = 1_000
PARTS = 20  # of the sample, each evenly spaced; the time limit may end it after any of them
SECONDS = 2.0
MIN_SAVING = 0.1  # smallest fraction of the text tower's positions that a note is printed for
MIN_SETTING_SAVING = 0.03  # smallest fraction that one setting must save to be proposed
MULTIPLE = 8  # proposed lengths are rounded up to it, as a margin beyond the sample
MIN_IMAGES = 64  # fewer say little, on a machine that is busy too
DEVIATIONS = 4  # standard deviations above the mean that a proposed capacity must hold
MANY_CUT = 0.01  # fraction of truncated texts above which a note is printed

CAPACITY = "model.description_capacity_factor"
Number = int | float
NONE: Mapping[str, Number] = MappingProxyType({})


@dataclass
class TextLengths:
    """How many texts of images have how many tokens, including start and end.

    A text longer than the text tower's context counts as one token more than the context length.
    """

    images: int = 0
    captions: Counter[int] = field(default_factory=Counter)  # every one that training may choose
    descriptions: Counter[int] = field(default_factory=Counter)  # of regions training selects
    num_descriptions: Counter[int] = field(default_factory=Counter)  # of each image

    def add(self, records: Iterable[Record], config: TrainConfig, tokenizer: Tokenizer) -> None:
        """Counts the texts of more images; descriptions only where a loss uses them."""
        data, limit = config.data, config.model.text.context_length
        captions: list[str] = []
        descriptions: list[str] = []
        for record in records:
            self.images += 1
            captions += possible_captions(record, data)
            if needs_descriptions(config):
                chosen = select_regions(
                    record.regions,
                    limit=data.max_regions,
                    nms_iou=data.region_nms_iou,
                    unique_descriptions=data.unique_descriptions,
                )
                self.num_descriptions[len(chosen)] += 1
                descriptions += [region.description for region in chosen]
        self.captions.update(num_tokens(captions, tokenizer, limit))
        self.descriptions.update(num_tokens(descriptions, tokenizer, limit))


def text_lengths(source: Source, config: TrainConfig, tokenizer: Tokenizer) -> TextLengths:
    """Text lengths of `SAMPLE_IMAGES` images, or of as many as `SECONDS` allow, from `MIN_IMAGES`.

    They are evenly spaced, and of a mixture as many of each set as its weight says. Images are not
    decoded. Descriptions are counted only where a loss uses them.
    """
    spaced = sample_indices(source, SAMPLE_IMAGES)
    found, end = TextLengths(), time.monotonic() + SECONDS
    for part in range(PARTS):
        found.add(read_records(source, spaced[part::PARTS].tolist()), config, tokenizer)
        if time.monotonic() > end and found.images >= MIN_IMAGES:
            break
    return found


def text_length_notes(
    source: Source, config: TrainConfig, tokenizer: Tokenizer, *, images_per_stream: int
) -> list[str]:
    """`length_notes` and `stream_notes` of a sample of the source.

    No notes for a tower that pools at the last position, which reads padding by design, or for a
    procedural source, which would have to draw each image.
    """
    if config.model.text.pooling == "last" or not isinstance(source[0].image, bytes):
        return []
    found = text_lengths(source, config, tokenizer)
    return length_notes(found, config) + stream_notes(
        found, config, images_per_stream=images_per_stream
    )


def length_notes(
    found: TextLengths, config: TrainConfig, *, counted: str = "images sampled"
) -> list[str]:
    """Notes on truncated texts, and on settings that would save `MIN_SAVING` of the positions.

    The proposed settings truncate no further text of those counted, and the descriptions of a batch
    fit the capacity with a margin.
    """
    notes = [*_cut(found, config)]
    if config.model.text_tokens_per_image:
        return notes
    proposed, reasons = _proposal(found, config)
    before, after = text_positions(config), text_positions(config, proposed)
    if proposed and after < (1 - MIN_SAVING) * before:
        settings = " ".join(f"--{path}={value:g}" for path, value in proposed.items())
        notes.append(
            f"{' and '.join(reasons)}: {settings} would save {_percent(1 - after / before)} of the "
            f"text tower's positions ({found.images:,} {counted})"
        )
    return notes


def stream_notes(found: TextLengths, config: TrainConfig, *, images_per_stream: int) -> list[str]:
    """A note on `model.text_tokens_per_image`, where texts have little room or it would save much.

    `images_per_stream`: of each device and micro-batch, whose texts lie in one stream. The proposed
    room holds their texts with a margin, and is one that validation accepts, also together with the
    proposals of `length_notes`.
    """
    text = config.model.text
    if not found.captions or not text.causal or text.pooling != "end":
        return []
    given = config.model.text_tokens_per_image
    captions = _truncated(found.captions, config.data.caption_length)
    mean, variance = _mean(captions), _variance(captions)
    if found.descriptions:
        descriptions = _truncated(found.descriptions, config.data.description_length)
        # Of a sum of as many descriptions as an image has, each independent of the others.
        number, length = _mean(found.num_descriptions), _mean(descriptions)
        mean += number * length
        variance += number * _variance(descriptions)
        variance += length**2 * _variance(found.num_descriptions)
    spread = math.sqrt(variance * (1 / images_per_stream + 1 / found.images))
    proposed, _ = _proposal(found, config)
    least, _ = text_room(config)
    most = _longest_texts(config, proposed)
    room = min(max(math.ceil(mean + DEVIATIONS * spread), least), most)
    setting = f"--model.text_tokens_per_image={room}"
    if config.model.description_capacity_factor != 1 or CAPACITY in proposed:
        setting += f" --{CAPACITY}=1"  # it leaves out padding, of which a stream has none
    texts = f"the texts of an image have {mean:.1f} tokens on average"
    if given:
        if given >= min(mean + spread, most):
            return []
        lost = "the longest will be cut"
        if given < mean:
            lost = f"{_percent(1 - given / mean)} of their tokens will be cut"
        return [
            f"{texts} and model.text_tokens_per_image = {given:g}, so that {lost};"
            f" {setting} holds those of {images_per_stream} images"
        ]
    before = text_positions(config)
    if room >= (1 - MIN_SAVING) * before:
        return []
    instead = "in place of other lengths, " if proposed else ""
    return [
        f"{texts}, and padded they take {before:g} positions: {instead}{setting}, which lays those "
        f"of {images_per_stream} images of a device end to end, would save "
        f"{_percent(1 - room / before)} of the text tower's positions"
    ]


def possible_captions(record: Record, data: DataConfig) -> Iterator[str]:
    """Every text that `choose_caption` may return, with joined descriptions in one order."""
    joined = data.region_caption_probability
    if record.regions and joined > 0:
        texts = {normalize_text(r.description): r.description for r in record.regions}
        yield ", ".join(texts.values())
        if joined == 1:
            return
    kinds = {caption.source == "synthetic" for caption in record.captions}
    never = {0.0: True, 1.0: False}.get(data.synthetic_caption_probability)
    for caption in record.captions:
        if len(kinds) == 1 or (caption.source == "synthetic") != never:
            yield caption.text


def num_tokens(texts: Sequence[str], tokenizer: Tokenizer, limit: int) -> list[int]:
    """Tokens of each text, including start and end; `limit` + 1 where there are more."""
    if not texts:
        return []
    ids, cut = tokenizer.encode(texts, limit)
    # The last token that is not padding: a word may have the id of padding, end-of-text does not.
    columns = np.arange(1, limit + 1)
    lengths = np.where(ids != tokenizer.pad_id, columns, 0).max(axis=1)
    return (lengths + cut).tolist()


def _cut(found: TextLengths, config: TrainConfig) -> Iterator[str]:
    limit = config.model.text.context_length
    for kind, lengths in (("caption", found.captions), ("description", found.descriptions)):
        length = getattr(config.data, f"{kind}_length")
        cut = sum(count for tokens, count in lengths.items() if tokens > length)
        if cut > MANY_CUT * lengths.total():
            longest = max(lengths)
            most = f"more than {limit}" if longest > limit else f"up to {longest}"
            yield (
                f"{_percent(cut / lengths.total())} of {kind}s have more tokens than "
                f"data.{kind}_length = {length} ({most}) and are truncated"
            )


def _proposal(found: TextLengths, config: TrainConfig) -> tuple[dict[str, Number], list[str]]:
    """Proposed settings {path: value}, and the reason for each."""
    proposed: dict[str, Number] = {}
    reasons = []
    total = text_positions(config)
    for kind, lengths in (("caption", found.captions), ("description", found.descriptions)):
        if not lengths:
            continue
        path, length = f"data.{kind}_length", getattr(config.data, f"{kind}_length")
        longest, most = max(lengths), percentile(lengths, 0.99)
        rounded = MULTIPLE * math.ceil(longest / MULTIPLE)
        if total - text_positions(config, {path: rounded}) > MIN_SETTING_SAVING * total:
            proposed[path] = rounded
            reasons.append(
                f"{kind}s have at most {longest} tokens (99 %: {most}) of {path} = {length}"
            )
    capacity = _capacity(found, config)
    if total - text_positions(config, {CAPACITY: capacity}) > MIN_SETTING_SAVING * total:
        proposed[CAPACITY] = capacity
        mean = _mean(found.num_descriptions)
        reasons.append(f"images have {mean:.1f} of {config.data.max_regions} descriptions")
    return proposed, reasons


def _capacity(found: TextLengths, config: TrainConfig) -> float:
    """Fraction of a batch's description slots that are used, with a margin; at most 1."""
    if not found.num_descriptions:
        return 1.0
    counts, mean = found.num_descriptions, _mean(found.num_descriptions)
    variance = _variance(counts)
    # Standard deviation of a batch's mean minus the sample's mean.
    spread = math.sqrt(variance * (1 / config.batch_size + 1 / counts.total()))
    fraction = (mean + DEVIATIONS * spread) / config.data.max_regions
    return min(max(math.ceil(100 * fraction) / 100, 0.01), 1.0)


def text_positions(config: TrainConfig, changes: Mapping[str, Number] = NONE) -> Number:
    """Positions that the text tower computes per image, with `changes` {path: value} applied."""
    data, model = config.data, config.model
    if model.text_tokens_per_image:
        return model.text_tokens_per_image
    captions = changes.get("data.caption_length", data.caption_length)
    if not needs_descriptions(config):
        return captions
    length = changes.get("data.description_length", data.description_length)
    capacity = changes.get(CAPACITY, model.description_capacity_factor)
    return captions + capacity * data.max_regions * length


def _longest_texts(config: TrainConfig, changes: Mapping[str, Number]) -> int:
    """The most tokens that the texts of an image have, with `changes` {path: value} applied."""
    data = copy.copy(config.data)
    for name in ("caption_length", "description_length"):
        setattr(data, name, changes.get(f"data.{name}", getattr(data, name)))
    return text_room(dataclasses.replace(config, data=data))[1]


def _truncated(lengths: Counter[int], longest: int) -> Counter[int]:
    found: Counter[int] = Counter()
    for tokens, count in lengths.items():
        found[min(tokens, longest)] += count
    return found


def percentile(counts: Counter[int], fraction: float) -> int:
    """The smallest number that at least `fraction` of those counted do not exceed."""
    reached = 0
    for number in sorted(counts):
        reached += counts[number]
        if reached >= fraction * counts.total():
            return number
    raise ValueError("Nothing was counted.")


def _mean(counts: Counter[int]) -> float:
    return sum(number * count for number, count in counts.items()) / counts.total()


def _variance(counts: Counter[int]) -> float:
    mean = _mean(counts)
    return sum(n * (k - mean) ** 2 for k, n in counts.items()) / counts.total()


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"
