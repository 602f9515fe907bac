"""How long the texts of a split are, and which lengths would spare the text tower padding.

Padding costs the text tower as much as text. What it costs a run is in `metrics.jsonl`
(`caption_positions_used` and its like) only once the run is under way; this is before its start.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.captions import normalize_text
from grain_jax.data.records import Record, Source, read_records
from grain_jax.data.region_coverage import needs_descriptions
from grain_jax.data.tokenizer import Tokenizer
from grain_jax.data.transforms import select_regions

SAMPLE_IMAGES = 1_000
PARTS = 20  # of the sample, each evenly spaced by itself: time may end it after any
SECONDS = 2.0
WORTH = 0.1  # fraction of the text tower's positions from which on a run says so
CHANGE_WORTH = 0.03  # and from which on one setting is named among them
MULTIPLE = 8  # of the lengths proposed: a margin for what the sample lacks
DEVIATIONS = 4  # of a batch's descriptions, beyond their mean, that a capacity has to hold
MANY_CUT = 0.01  # fraction of texts cut from which on a run says so

Number = int | float
NONE: Mapping[str, Number] = MappingProxyType({})


@dataclass
class TextLengths:
    """Tokens, start and end included, of the texts of the images looked at.

    A text longer than the text tower's positions counts as one position more than it has.
    """

    images: int = 0
    captions: list[int] = field(default_factory=list)  # of all that training may choose
    descriptions: list[int] = field(default_factory=list)  # of the regions that it takes
    num_descriptions: list[int] = field(default_factory=list)  # of each image


def text_lengths(source: Source, config: TrainConfig, tokenizer: Tokenizer) -> TextLengths:
    """Lengths of an evenly spaced sample: `SAMPLE_IMAGES`, fewer where `SECONDS` are over before.

    Images are not decoded. Where no loss reads descriptions, none are looked at.
    """
    data, limit = config.data, config.model.text.context_length
    spaced = np.linspace(0, len(source) - 1, min(len(source), SAMPLE_IMAGES)).round().astype(int)
    found, end = TextLengths(), time.monotonic() + SECONDS
    described = needs_descriptions(config)
    for part in range(PARTS):
        captions: list[str] = []
        descriptions: list[str] = []
        for record in read_records(source, spaced[part::PARTS].tolist()):
            found.images += 1
            captions += _possible_captions(record, data)
            if described:
                chosen = select_regions(
                    record.regions,
                    limit=data.max_regions,
                    nms_iou=data.region_nms_iou,
                    unique_descriptions=data.unique_descriptions,
                )
                found.num_descriptions.append(len(chosen))
                descriptions += [region.description for region in chosen]
        found.captions += _num_tokens(captions, tokenizer, limit)
        found.descriptions += _num_tokens(descriptions, tokenizer, limit)
        if time.monotonic() > end:
            break
    return found


def text_length_notes(source: Source, config: TrainConfig, tokenizer: Tokenizer) -> list[str]:
    """For the screen: texts that are cut, and settings that would save `WORTH` of the positions.

    With the settings proposed no text of the sample is cut that was not, and a batch's descriptions
    fit the capacity with a margin. Nothing for a tower that pools at the last position, which reads
    padding by design, nor for a procedural source, which would draw an image for each of its texts.
    """
    if config.model.text.pooling == "last" or not isinstance(source[0].image, bytes):
        return []
    found = text_lengths(source, config, tokenizer)
    notes = [*_cut(found, config)]
    proposed, told = _proposal(found, config)
    before, after = _positions(config), _positions(config, proposed)
    if proposed and after < (1 - WORTH) * before:
        settings = " ".join(f"--{path}={value:g}" for path, value in proposed.items())
        notes.append(
            f"{' and '.join(told)}: {settings} would save {_percent(1 - after / before)} of the "
            f"text tower's positions ({found.images:,} images looked at)"
        )
    return notes


def _possible_captions(record: Record, data: DataConfig) -> Iterator[str]:
    """Every text that `choose_caption` may return; of joined descriptions, one order."""
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


def _num_tokens(texts: Sequence[str], tokenizer: Tokenizer, limit: int) -> list[int]:
    if not texts:
        return []
    ids, cut = tokenizer.encode(texts, limit)
    # The last that is no padding: a word may have padding's id, end-of-text never has.
    columns = np.arange(1, limit + 1)
    lengths = np.where(ids != tokenizer.pad_id, columns, 0).max(axis=1)
    return (lengths + cut).tolist()


def _cut(found: TextLengths, config: TrainConfig) -> Iterator[str]:
    limit = config.model.text.context_length
    for kind, lengths in (("caption", found.captions), ("description", found.descriptions)):
        length = getattr(config.data, f"{kind}_length")
        cut = sum(tokens > length for tokens in lengths)
        if cut > MANY_CUT * len(lengths):
            longest = max(lengths)
            most = f"more than {limit}" if longest > limit else f"up to {longest}"
            yield (
                f"{_percent(cut / len(lengths))} of {kind}s have more tokens than "
                f"data.{kind}_length = {length} ({most}) and are cut"
            )


def _proposal(found: TextLengths, config: TrainConfig) -> tuple[dict[str, Number], list[str]]:
    """Settings by path with the values that texts need, and what was found, for each."""
    proposed: dict[str, Number] = {}
    told = []
    total = _positions(config)
    for kind, lengths in (("caption", found.captions), ("description", found.descriptions)):
        if not lengths:
            continue
        path, length = f"data.{kind}_length", getattr(config.data, f"{kind}_length")
        longest, most = max(lengths), math.ceil(np.percentile(lengths, 99))
        rounded = MULTIPLE * math.ceil(longest / MULTIPLE)
        if total - _positions(config, {path: rounded}) > CHANGE_WORTH * total:
            proposed[path] = rounded
            told.append(
                f"{kind}s have at most {longest} tokens (99 %: {most}) of {path} = {length}"
            )
    capacity = _capacity(found, config)
    if total - _positions(config, {"model.description_capacity_factor": capacity}) > (
        CHANGE_WORTH * total
    ):
        proposed["model.description_capacity_factor"] = capacity
        mean = np.mean(found.num_descriptions)
        told.append(f"images have {mean:.1f} of {config.data.max_regions} descriptions")
    return proposed, told


def _capacity(found: TextLengths, config: TrainConfig) -> float:
    """The fraction of a batch's descriptions that its real ones need, with a margin; at most 1."""
    if not found.num_descriptions:
        return 1.0
    counts = np.asarray(found.num_descriptions, np.float64)
    # Of a batch's mean around that of all images, and of the sample's around it.
    spread = counts.std() * math.sqrt(1 / config.batch_size + 1 / len(counts))
    share = (counts.mean() + DEVIATIONS * spread) / config.data.max_regions
    return min(max(math.ceil(100 * share) / 100, 0.01), 1.0)


def _positions(config: TrainConfig, changes: Mapping[str, Number] = NONE) -> Number:
    """Positions that the text tower computes for an image, with settings by path changed."""
    data, model = config.data, config.model
    captions = changes.get("data.caption_length", data.caption_length)
    if not needs_descriptions(config):
        return captions
    length = changes.get("data.description_length", data.description_length)
    capacity = changes.get("model.description_capacity_factor", model.description_capacity_factor)
    return captions + capacity * data.max_regions * length


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"
