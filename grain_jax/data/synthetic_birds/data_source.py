"""The drawn birds as a data set of a run: what is held out, and how it is asked about."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from grain_jax.config import DataConfig, SyntheticBirdsConfig, TrainConfig
from grain_jax.data.records import (
    EvaluationSet,
    InMemory,
    LabelledSelection,
    Selection,
    Source,
    ZeroShotSet,
    evenly_spaced,
)
from grain_jax.data.source_words import ExampleTexts
from grain_jax.data.synthetic_birds.language import (
    PROMPT_TEMPLATES,
    part_of_description,
    world_vocabulary,
)
from grain_jax.data.synthetic_birds.source import WorldSource, world_zero_shot_sets

MAX_DRAWN_BYTES = 1 << 30  # of drawn images that are kept; more of them are drawn when needed
# Held-out names were never heard: those of "unseen" show what chance looks like.
METHODS_OF_SPLIT = {
    "validation": ("description",),
    "seen": ("name", "description", "name_and_regions"),
    "unseen": ("name", "description"),
}


@dataclass(frozen=True)
class SyntheticBirds:
    """The procedural world; a `DataSource`.

    Validation species steer a run; seen and unseen species are looked at only at its end.
    """

    config: DataConfig
    image_size: int

    templates = PROMPT_TEMPLATES
    held_out_split = "validation"
    shown_split = "unseen"
    reserved_names = ("validation", "seen", "unseen", "headline")
    example_texts = ExampleTexts(
        labels=("bird with a red crest", "bird with yellow legs"),
        descriptions=("a red crest", "yellow legs"),
        caption="a bird with a red crest",
    )

    @property
    def box_groups(self) -> Callable[[str], str | None]:
        return part_of_description

    def records(self, split: str) -> Source:
        """Splits "train", "validation", "seen", "unseen"."""
        return WorldSource(self.config.synthetic_birds, split, self.image_size)

    def vocabulary(self) -> list[str]:
        return world_vocabulary(self.config.synthetic_birds)

    def evaluation_sets(self, *, limit: int | None) -> Iterator[EvaluationSet]:
        for split in METHODS_OF_SPLIT if limit is None else (self.held_out_split,):
            if limit is None:
                drawn = drawn_set(self.config.synthetic_birds, split, None, self.image_size)
            else:
                world = json.dumps(asdict(self.config.synthetic_birds))
                drawn = interval_set(world, split, limit, self.image_size)
            yield EvaluationSet(
                name=split,
                title=f"Split {split!r} of the world",
                source=drawn.source,
                preferred_captions="synthetic",
                zero_shot=drawn,
                methods=METHODS_OF_SPLIT[split],
            )

    def default_metric(self, config: TrainConfig) -> str:
        """Validation species by description, by regions as far as the model has them."""
        regions = config.model.type == "grain" and config.loss.region_weight > 0
        alpha = min(config.evaluation.alphas) if regions else 1.0
        return f"validation/description/alpha{alpha:g}"

    def summary(self, metrics: Mapping[str, float], alphas: Sequence[float]) -> dict[str, float]:
        """Unseen species by description at the alpha that is best on the validation species."""
        on_validation = {
            alpha: metrics[f"validation/description/alpha{alpha:g}"]
            for alpha in alphas
            if f"validation/description/alpha{alpha:g}" in metrics
        }
        if not on_validation:
            return {}
        alpha = max(on_validation, key=lambda a: on_validation[a])
        chosen = metrics[f"unseen/description/alpha{alpha:g}"]
        return {"headline/alpha": alpha, "headline/unseen_by_description": chosen}

    @property
    def location(self) -> str:
        return f", {self.config.synthetic_birds.difficulty}"

    def training_data(self) -> str:
        world = self.config.synthetic_birds
        return f"drawn birds ({world.difficulty}, {world.num_train_images:,} images)"

    def held_out_data(self) -> str:
        return "validation species"

    def origin(self, *, num_images: str, length: str) -> str:
        world = self.config.synthetic_birds
        return (
            f"{num_images} images of drawn birds (difficulty {world.difficulty}, seed "
            f"{world.seed}), made by code and free of any photograph, {length}."
        )

    def limits(self) -> list[str]:
        return ["It knows drawn birds only, and is of no use on photographs."]


def drawn_set(
    world: SyntheticBirdsConfig, split: str, limit: int | None, image_size: int
) -> ZeroShotSet:
    """A set of the world, at most `limit` of its images, each drawn once if memory allows."""
    dataset, whole = (
        world_zero_shot_sets(world, image_size)[split],
        WorldSource(world, split, image_size),
    )
    source = whole if limit is None else evenly_spaced(whole, limit)
    if len(source) * 3 * image_size**2 <= MAX_DRAWN_BYTES:
        drawn = InMemory(tuple(source[i] for i in range(len(source))))
        return dataclasses.replace(dataset, source=drawn)
    indices = source.indices if isinstance(source, Selection) else range(len(source))
    labels = tuple(whole.species_of(i).name for i in indices)
    return dataclasses.replace(dataset, source=LabelledSelection(whole, indices, labels))


@functools.lru_cache(maxsize=1)
def interval_set(world: str, split: str, limit: int, image_size: int) -> ZeroShotSet:
    """Kept, so that an interval of training draws nothing again; `world` is JSON, which hashes."""
    return drawn_set(SyntheticBirdsConfig(**json.loads(world)), split, limit, image_size)
