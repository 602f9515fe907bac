"""Where records come from, and what a data set knows of itself.

`data_source` is the one place that chooses among data sets. What follows from the choice (splits,
evaluation sets, prompts, the metric that decides on the best checkpoint) a `DataSource` tells. To
add one: implement the protocol and add it to `DATA_SOURCES`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.example_texts import ExampleTexts
from grain_jax.data.records import EvaluationSet, Source
from grain_jax.data.synthetic_birds.data_source import SyntheticBirds
from grain_jax.data.tfds_data_source import TfdsDataSource


@runtime_checkable
class DataSource(Protocol):
    """A data set as general code sees it; only `records` and `evaluation_sets` read anything."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompts of zero-shot classification by class name; "{}" takes the name."""
        ...

    @property
    def example_texts(self) -> ExampleTexts:
        """Texts such as a model of this data was trained on, for a model card."""
        ...

    @property
    def held_out_split(self) -> str:
        """The split that a run measures itself on; "" for none."""
        ...

    @property
    def shown_split(self) -> str:
        """The split that grounding sheets show; "" for none."""
        ...

    @property
    def reserved_names(self) -> tuple[str, ...]:
        """Names of its evaluation sets, which a folder of labelled images cannot have."""
        ...

    @property
    def box_groups(self) -> Callable[[str], str | None] | None:
        """What a description's box is grouped by in the constant-box baseline; None: all as one."""
        ...

    def records(self, split: str) -> Source:
        """The records of one split, random access. Raises ValueError for one that is not there."""
        ...

    def vocabulary(self) -> list[str] | None:
        """Every word of its texts, where they are known; None: take a tokenizer for any text."""
        ...

    def evaluation_sets(self, *, limit: int | None) -> Iterator[EvaluationSet]:
        """What a run is measured on: at its end all of it (None), at intervals those sets that may
        steer it, with at most `limit` images each.
        """
        ...

    def default_metric(self, config: TrainConfig) -> str:
        """The metric that decides on the best checkpoint unless the user names one; "" for none."""
        ...

    def summary(self, metrics: Mapping[str, float], alphas: Sequence[float]) -> dict[str, float]:
        """The figure to quote, chosen without looking at test sets; {} where there is none."""
        ...

    @property
    def location(self) -> str:
        """Where it is, to end "1,000 images of records/train" with."""
        ...

    def training_data(self) -> str:
        """The data set in a few words, for a report."""
        ...

    def held_out_data(self) -> str:
        """What is held out in a few words, "" for nothing."""
        ...

    def origin(self, *, num_images: str, length: str) -> str:
        """For a model card: what `num_images` the model was trained on for `length`."""
        ...

    def limits(self) -> list[str]:
        """For a model card: what a model of this data cannot do."""
        ...


# The value of `data.dataset`, and the data set behind it.
DATA_SOURCES: dict[str, Callable[[DataConfig, int], DataSource]] = {
    "synthetic_birds": SyntheticBirds,
    "tfds": TfdsDataSource,
}


def data_source(config: DataConfig, *, image_size: int) -> DataSource:
    """The data set that `config.dataset` names; `image_size`: pixels a side that a drawn one draws.

    Raises ValueError for an unknown name.
    """
    if config.dataset not in DATA_SOURCES:
        known = " or ".join(map(repr, DATA_SOURCES))
        raise ValueError(f"Unknown data.dataset {config.dataset!r}; choose {known}.")
    return DATA_SOURCES[config.dataset](config, image_size)


def open_source(config: DataConfig, split: str, *, image_size: int) -> Source:
    """The records of one split. Raises ValueError where the data set, its folder or the split does
    not exist.
    """
    return data_source(config, image_size=image_size).records(split)
