"""TFDS data sets written by `python -m grain_jax.prepare`, as a `DataSource`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.example_texts import ExampleTexts
from grain_jax.data.records import DEFAULT_TEMPLATES, EvaluationSet, Source, evenly_spaced
from grain_jax.results import Result, result_key


@dataclass(frozen=True)
class TfdsDataSource:
    """A prepared TFDS data set; a `DataSource`. One split may be held out (`data.eval_split`)."""

    config: DataConfig
    image_size: int

    templates = DEFAULT_TEMPLATES
    example_texts = ExampleTexts()
    box_groups: Callable[[str], str | None] | None = None

    @property
    def held_out_split(self) -> str:
        return self.config.eval_split

    @property
    def shown_split(self) -> str:
        return self.config.eval_split

    @property
    def reserved_names(self) -> tuple[str, ...]:
        return (self.config.eval_split,)

    def records(self, split: str) -> Source:
        from grain_jax.data.tfds_records import RecordSource

        return RecordSource(self.config.data_dir, split)

    def vocabulary(self) -> list[str] | None:
        return None

    def evaluation_sets(self, *, limit: int | None) -> Iterator[EvaluationSet]:
        if split := self.config.eval_split:
            source = self.records(split)
            source = source if limit is None else evenly_spaced(source, limit)
            yield EvaluationSet(split, f"Split {split!r}", source)

    def default_metric(self, config: TrainConfig) -> str:
        if not self.config.eval_split:
            return ""
        return result_key(self.config.eval_split, "retrieval", None, "mean_R@1")

    def summary(self, results: Sequence[Result], alphas: Sequence[float]) -> list[Result]:
        return []

    def headline(self, results: Sequence[Result]) -> str:
        return ""

    @property
    def location(self) -> str:
        return f" in {self.config.data_dir}"

    def training_data(self) -> str:
        return f"`{self.config.data_dir}`"

    def held_out_data(self) -> str:
        return self.config.eval_split

    def origin(self, *, num_images: str, length: str) -> str:
        return (
            f"{num_images} images of the split `{self.config.train_split}` of the data set "
            f"`{Path(self.config.data_dir).name}`, {length}. Nothing else is recorded about "
            "their origin: before you publish this model, state where they come from and under "
            "which terms they may be used."
        )

    def limits(self) -> list[str]:
        return []
