"""Synthetic birds as a `DataSource`: held-out species, evaluation sets and their methods."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from grain_jax.config import DataConfig, SyntheticBirdsConfig, TrainConfig
from grain_jax.data.example_texts import ExampleTexts
from grain_jax.data.records import (
    EvaluationSet,
    InMemory,
    LabelledSelection,
    Selection,
    Source,
    ZeroShotSet,
    evenly_spaced,
)
from grain_jax.data.synthetic_birds.language import (
    PROMPT_TEMPLATES,
    bird_vocabulary,
    part_of_description,
)
from grain_jax.data.synthetic_birds.source import SyntheticBirdSource, bird_zero_shot_sets
from grain_jax.results import HEADLINE, Result, result_key

MAX_DRAWN_BYTES = (
    1 << 30
)  # of drawn images kept in memory; above that they are drawn at each access
BY_DESCRIPTION = "unseen_by_description"  # metric of the headline
# Names of held-out species occur in no training text: by name, "unseen" is a random baseline.
METHODS_OF_SPLIT = {
    "validation": ("description",),
    "seen": ("name", "description", "name_and_regions"),
    "unseen": ("name", "description"),
}


@dataclass(frozen=True)
class SyntheticBirds:
    """The procedural data set of drawn birds; a `DataSource`.

    Validation species choose the best checkpoint of a run; seen and unseen species are evaluated
    only at its end.
    """

    config: DataConfig
    image_size: int

    templates = PROMPT_TEMPLATES
    held_out_split = "validation"
    shown_split = "unseen"
    reserved_names = ("validation", "seen", "unseen", HEADLINE)
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
        return SyntheticBirdSource(self.config.synthetic_birds, split, self.image_size)

    def training_records(self) -> Source:
        return self.records(self.config.train_split)

    def vocabulary(self) -> list[str]:
        return bird_vocabulary(self.config.synthetic_birds)

    def evaluation_sets(self, *, limit: int | None) -> Iterator[EvaluationSet]:
        for split in METHODS_OF_SPLIT if limit is None else (self.held_out_split,):
            if limit is None:
                drawn = drawn_set(self.config.synthetic_birds, split, None, self.image_size)
            else:
                settings = json.dumps(asdict(self.config.synthetic_birds))
                drawn = interval_set(settings, split, limit, self.image_size)
            yield EvaluationSet(
                name=split,
                title=f"Split {split!r} of the synthetic birds",
                source=drawn.source,
                preferred_captions="synthetic",
                zero_shot=drawn,
                methods=METHODS_OF_SPLIT[split],
            )

    def default_metric(self, config: TrainConfig) -> str:
        """Accuracy on validation species by description, at the lowest alpha the model allows."""
        regions = config.model.type == "grain" and config.loss.region_weight > 0
        alpha = min(config.evaluation.alphas) if regions else 1.0
        return result_key("validation", "description", alpha)

    def summary(self, results: Sequence[Result], alphas: Sequence[float]) -> list[Result]:
        """Accuracy on unseen species by description, at the alpha best on validation species."""
        measured = {
            (result.dataset, result.alpha): result.value
            for result in results
            if (result.method, result.metric) == ("description", "top1")
        }
        choices = [alpha for alpha in alphas if ("validation", alpha) in measured]
        if not choices:
            return []
        alpha = max(choices, key=lambda choice: measured["validation", choice])
        return [
            Result(HEADLINE, "model", None, "alpha", alpha),
            Result(HEADLINE, "model", None, BY_DESCRIPTION, measured["unseen", alpha]),
        ]

    def headline(self, results: Sequence[Result]) -> str:
        found = {
            (result.dataset, result.method, result.metric): result.value
            for result in results
            if result.alpha is None
        }
        accuracy = found.get((HEADLINE, "model", BY_DESCRIPTION))
        alpha = found.get((HEADLINE, "model", "alpha"))
        random = found.get(("unseen", "random", "top1"))
        if accuracy is None or alpha is None or random is None:
            return ""
        return (
            f"Unseen species by description: {100 * accuracy:.1f} % at alpha = {alpha:g}, the best "
            f"alpha on the validation species (random {100 * random:.1f} %). No training text "
            "contains their names."
        )

    @property
    def location(self) -> str:
        return f", {self.config.synthetic_birds.difficulty}"

    def training_data(self) -> str:
        birds = self.config.synthetic_birds
        return f"drawn birds ({birds.difficulty}, {birds.num_train_images:,} images)"

    def held_out_data(self) -> str:
        return "validation species"

    def origin(self, *, num_images: str, length: str) -> str:
        birds = self.config.synthetic_birds
        return (
            f"{num_images} images of drawn birds (difficulty {birds.difficulty}, seed "
            f"{birds.seed}), made by code and free of any photograph, {length}."
        )

    def limits(self) -> list[str]:
        return ["It knows drawn birds only, and is of no use on photographs."]


def drawn_set(
    config: SyntheticBirdsConfig, split: str, limit: int | None, image_size: int
) -> ZeroShotSet:
    """The zero-shot set of a split, of at most `limit` images (None: all).

    Images that fit into `MAX_DRAWN_BYTES` are drawn once and kept in memory.
    """
    dataset, whole = (
        bird_zero_shot_sets(config, image_size)[split],
        SyntheticBirdSource(config, split, image_size),
    )
    source = whole if limit is None else evenly_spaced(whole, limit)
    if len(source) * 3 * image_size**2 <= MAX_DRAWN_BYTES:
        drawn = InMemory(tuple(source[i] for i in range(len(source))))
        return dataclasses.replace(dataset, source=drawn)
    indices = source.indices if isinstance(source, Selection) else range(len(source))
    labels = tuple(whole.species_of(i).name for i in indices)
    return dataclasses.replace(dataset, source=LabelledSelection(whole, indices, labels))


@functools.lru_cache(maxsize=1)
def interval_set(settings: str, split: str, limit: int, image_size: int) -> ZeroShotSet:
    """`drawn_set`, cached between evaluations; `settings`: config as JSON, which is hashable."""
    return drawn_set(SyntheticBirdsConfig(**json.loads(settings)), split, limit, image_size)
