"""TFDS data sets written by `python -m grain_jax.prepare`, as a `DataSource`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.config.mixture import MixedSet, fractions, parse_mixture
from grain_jax.data.example_texts import ExampleTexts
from grain_jax.data.records import DEFAULT_TEMPLATES, EvaluationSet, Source, evenly_spaced
from grain_jax.results import Result, result_key


@dataclass(frozen=True)
class TfdsDataSource:
    """Prepared TFDS data sets; a `DataSource`.

    One split of `data.data_dir` may be held out (`data.eval_split`). Trained on is a split of the
    same folder, or of each folder of `data.mixture`.
    """

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

    def training_records(self) -> Source:
        from grain_jax.data.mixture import Mixture
        from grain_jax.data.tfds_records import RecordSource

        if not self._sets:
            return self.records(self.config.train_split)
        sources = [RecordSource(each.data_dir, self.config.train_split) for each in self._sets]
        weights, names = zip(*((each.weight, each.data_dir) for each in self._sets), strict=True)
        return Mixture(sources, weights, names)

    @property
    def _sets(self) -> tuple[MixedSet, ...]:
        return parse_mixture(self.config.mixture)

    def _mixed(self, name: Callable[[str], str]) -> str:
        """The sets of the mixture with their fractions of the samples, in words."""
        shares = zip(self._sets, fractions(self._sets), strict=True)
        return ", ".join(f"`{name(each.data_dir)}` ({share:.3g})" for each, share in shares)

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
        if self._sets:
            return f" in {len(self._sets)} folder{'s' * (len(self._sets) > 1)}"
        return f" in {self.config.data_dir}"

    def training_data(self) -> str:
        if self._sets:
            return f"a mixture of {self._mixed(str)}"
        return f"`{self.config.data_dir}`"

    def held_out_data(self) -> str:
        return self.config.eval_split

    def origin(self, *, num_images: str, length: str) -> str:
        where = f"the data set `{_name(self.config.data_dir)}`"
        if self._sets:
            where = f"each of the data sets {self._mixed(_name)} (fraction of the samples)"
        return (
            f"{num_images} images of the split `{self.config.train_split}` of {where}, {length}. "
            "Nothing else is recorded about "
            "their origin: before you publish this model, state where they come from and under "
            "which terms they may be used."
        )

    def limits(self) -> list[str]:
        return []


def _name(data_dir: str) -> str:
    return Path(data_dir).name
