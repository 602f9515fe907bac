"""How many images of a split have a region. GRAIN's decoder learns from these alone."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from grain_jax.config import TrainConfig
from grain_jax.config.mixture import parse_mixture
from grain_jax.data.mixture import Mixture
from grain_jax.data.records import Source

SAMPLE_IMAGES = 1_000  # read where the source has no count
FEW = 0.05  # fraction of images with regions below which a run prints a note


@runtime_checkable
class CountsRegions(Protocol):
    """A source that may know the number of records with regions without reading them."""

    @property
    def num_with_regions(self) -> int | None: ...


@dataclass(frozen=True)
class RegionCoverage:
    """The number of images with at least one region (a box with its description)."""

    with_regions: int
    counted: int  # images counted, evenly spaced
    total: int  # images of the split
    any_regions: bool  # exact, also where a sample has none
    # Of a mixture: the fraction of samples with a region, by the weights of its sources.
    drawn_fraction: float | None = None

    @property
    def fraction(self) -> float:
        """The fraction of samples with a region, from 0 to 1: of counted images, if unweighted."""
        if self.drawn_fraction is not None:
            return self.drawn_fraction
        return self.with_regions / max(self.counted, 1)

    def sentence(self) -> str:
        """The coverage in words, such as "12 % of images"."""
        if not self.any_regions:
            return "no image has one"
        if not self.with_regions:
            return f"fewer than 1 in {self.counted:,} images"
        exact = self.counted == self.total
        percent = f"{100 * self.fraction:.2g}" if self.fraction < 0.995 else "100"
        if exact and self.with_regions < self.total and percent == "100":
            percent = "99.9"
        of = "images" if self.drawn_fraction is None else "images as they are drawn"
        return f"{percent} % of {of}" + ("" if exact else f" (of {self.counted:,} sampled)")


def region_coverage(source: Source) -> RegionCoverage:
    """The coverage of a source: the count it knows, else that of `SAMPLE_IMAGES` even samples.

    Where the sample has no region, the other records are read up to the first one with a region, so
    that `any_regions` is exact. The sources of a mixture are counted one by one.
    """
    if isinstance(source, Mixture):
        return _of_mixture(source)
    total = len(source)
    if isinstance(source, CountsRegions) and (known := source.num_with_regions) is not None:
        return RegionCoverage(known, total, total, known > 0)
    spaced = np.linspace(0, total - 1, min(total, SAMPLE_IMAGES)).round().astype(int).tolist()
    found = sum(bool(source[index].regions) for index in spaced)
    rest = sorted(set(range(total)).difference(spaced)) if not found else []
    anywhere = found > 0 or any(source[index].regions for index in rest)
    return RegionCoverage(found, len(spaced), total, anywhere)


def _of_mixture(mixture: Mixture) -> RegionCoverage:
    parts = [region_coverage(source) for source in mixture.sources]
    return RegionCoverage(
        with_regions=sum(part.with_regions for part in parts),
        counted=sum(part.counted for part in parts),
        total=len(mixture),
        any_regions=any(part.any_regions for part in parts),
        drawn_fraction=sum(mixture.fraction(i) * part.fraction for i, part in enumerate(parts)),
    )


def needs_regions(config: TrainConfig) -> bool:
    """Whether a setting of the run uses regions, so that they have to be counted."""
    return (
        config.model.type == "grain"
        or config.loss.image_description_weight > 0
        or config.data.region_caption_probability > 0
    )


def needs_descriptions(config: TrainConfig) -> bool:
    """Whether a loss uses the descriptions of regions, so that the text tower encodes them."""
    regions_learn = config.model.type == "grain" and config.loss.region_weight > 0
    return regions_learn or config.loss.image_description_weight > 0


def check_regions(config: TrainConfig, coverage: RegionCoverage) -> list[str]:
    """Notes on a split where few images have regions.

    Raises ValueError where no image has a region and `data.allow_no_regions` is off, or the
    official loss would be NaN.
    """
    data, loss, grain = config.data, config.loss, config.model.type == "grain"
    if not coverage.any_regions:
        folders = [each.data_dir for each in parse_mixture(data.mixture)] or [data.data_dir]
        where = f"split {data.train_split!r}" + (f" of {', '.join(folders)}" if folders[0] else "")
        missing = f"None of the {coverage.total:,} images of {where} has a region"
        if loss.variant == "official" and (grain or loss.image_description_weight):
            raise ValueError(
                f'{missing}, and loss.variant = "official" makes every loss NaN; set '
                'loss.variant="corrected".'
            )
        if not data.allow_no_regions:
            raise ValueError(f"{missing} {_wasted(config)}")
        return [_without_regions(config)]
    notes = []
    if grain and coverage.fraction < FEW:
        images = coverage.fraction * config.batch_size
        found = f"about {images:.1g}" if coverage.with_regions else "almost none"
        notes.append(
            f"few images have regions: of a batch of {config.batch_size:,}, {found} train boxes "
            "and region embeddings"
        )
    return notes


def _wasted(config: TrainConfig) -> str:
    """The end of an error: which part would learn nothing, and what to change."""
    if config.model.type == "grain":
        return (
            "(a box with a description), so GRAIN's boxes and region embeddings would learn "
            "nothing. Give the data regions (docs/data-format.md), train the baseline without "
            "regions (--model.type=clip), or, to train GRAIN's image embedding alone, set "
            "--data.allow_no_regions=true."
        )
    setting = (
        "loss.image_description_weight"
        if config.loss.image_description_weight
        else "data.region_caption_probability"
    )
    return (
        f"(a box with a description), so {setting} would do nothing. Set it to 0, give the data "
        "regions (docs/data-format.md), or set --data.allow_no_regions=true."
    )


def _without_regions(config: TrainConfig) -> str:
    if config.model.type != "grain":
        return "no image has a region, so the settings on descriptions of regions do nothing"
    return (
        "no image has a region: only the image embedding learns, the checkpoint says so, and "
        "alpha is 1 wherever the model is used"
    )
