"""The protocol of data sets, and the choice among them.

`data_source` is the one place that chooses a data set. Everything that depends on the choice
(splits, evaluation sets, prompts, the metric that selects the best checkpoint) is a method of
`DataSource`. To add a data set, implement the protocol and add it to `DATA_SOURCES`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.example_texts import ExampleTexts
from grain_jax.data.records import EvaluationSet, Source
from grain_jax.data.synthetic_birds.data_source import SyntheticBirds
from grain_jax.data.tfds_data_source import TfdsDataSource
from grain_jax.results import Result


@runtime_checkable
class DataSource(Protocol):
    """A data set as general code sees it.

    Only `records`, `training_records` and `evaluation_sets` open files.
    """

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompts of zero-shot classification by class name; "{}" takes the name."""
        ...

    @property
    def example_texts(self) -> ExampleTexts:
        """Example texts like those of the training data, for a model card."""
        ...

    @property
    def held_out_split(self) -> str:
        """The split that a run is evaluated on; "" for none."""
        ...

    @property
    def shown_split(self) -> str:
        """The split whose images grounding sheets show; "" for none."""
        ...

    @property
    def reserved_names(self) -> tuple[str, ...]:
        """Names of its evaluation sets, which no folder of labelled images may have."""
        ...

    @property
    def box_groups(self) -> Callable[[str], str | None] | None:
        """Group of a description for the constant-box baseline of each group; None: no groups."""
        ...

    def records(self, split: str) -> Source:
        """The records of one split. Raises ValueError where the split does not exist."""
        ...

    def training_records(self) -> Source:
        """The records a run trains on: of `data.train_split`, or of several data sets by weight.

        Raises ValueError where one does not exist or is empty.
        """
        ...

    def vocabulary(self) -> list[str] | None:
        """Every word of its texts; None where unknown, which requires a general tokenizer."""
        ...

    def evaluation_sets(self, *, limit: int | None) -> Iterator[EvaluationSet]:
        """The sets that a run is evaluated on.

        `limit` None: all sets, for the end of a run. Otherwise the sets that may select the best
        checkpoint, with at most `limit` images each, for evaluation at intervals.
        """
        ...

    def default_metric(self, config: TrainConfig) -> str:
        """The metric that selects the best checkpoint unless the user names one; "" for none."""
        ...

    def summary(self, results: Sequence[Result], alphas: Sequence[float]) -> list[Result]:
        """Results of the data set `HEADLINE`, chosen without test sets; [] where there are none."""
        ...

    def headline(self, results: Sequence[Result]) -> str:
        """One sentence that says the summary among the results; "" without one."""
        ...

    @property
    def location(self) -> str:
        """The location in words, to end "1,000 images of tfds/train" with."""
        ...

    def training_data(self) -> str:
        """A short description of the training data, for a report."""
        ...

    def held_out_data(self) -> str:
        """A short description of the held-out data; "" for none."""
        ...

    def origin(self, *, num_images: str, length: str) -> str:
        """Sentence of a model card on the training data: `num_images` images, for `length`."""
        ...

    def limits(self) -> list[str]:
        """Sentences of a model card on the limits of a model trained on this data."""
        ...


# Value of `data.dataset` -> data set.
DATA_SOURCES: dict[str, Callable[[DataConfig, int], DataSource]] = {
    "synthetic_birds": SyntheticBirds,
    "tfds": TfdsDataSource,
}


def data_source(config: DataConfig, *, image_size: int) -> DataSource:
    """The data set that `config.dataset` names. Raises ValueError for an unknown name.

    `image_size`: pixels a side of images that are drawn.
    """
    if config.dataset not in DATA_SOURCES:
        known = " or ".join(map(repr, DATA_SOURCES))
        raise ValueError(f"Unknown data.dataset {config.dataset!r}; choose {known}.")
    return DATA_SOURCES[config.dataset](config, image_size)


def open_source(config: DataConfig, split: str, *, image_size: int) -> Source:
    """The records of one split.

    Raises ValueError where the data set, its folder or the split does not exist.
    """
    return data_source(config, image_size=image_size).records(split)


def open_training_source(config: DataConfig, *, image_size: int) -> Source:
    """The records that a run trains on.

    Raises ValueError where a data set, its folder or the split does not exist.
    """
    return data_source(config, image_size=image_size).training_records()
