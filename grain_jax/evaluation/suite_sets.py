"""The sets of a `Suite`: opened and checked before a model is loaded, measured, averaged."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grain_jax.config import TrainConfig
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.records import EvaluationSet, Source, ZeroShotSet
from grain_jax.data.source import open_source
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.left_out import LeftOut, check_any_left, note_left_out
from grain_jax.evaluation.suite import TrainingBoxes, evaluate_set, score_zero_shot
from grain_jax.evaluation.suite_file import ImageSet, RecordSet, Suite
from grain_jax.evaluation.unknown_words import unknown_words_note
from grain_jax.inference.encoder import Encoder
from grain_jax.results import Result
from grain_jax.zero_shot.methods import DEFAULT_METHODS

AVERAGE, EXPECTED = "average", "average_expected_sets"  # metrics of the suite as a whole
RECORDS_INFO = "dataset_info.json"  # which a folder of prepared records has


@dataclass(frozen=True)
class OpenedSuite:
    """A suite with its sets of labelled images loaded; of records, the folders are known."""

    suite: Suite
    images: tuple[tuple[ImageSet, ZeroShotSet], ...]
    records: tuple[tuple[RecordSet, Path, Source], ...]
    missing: tuple[str, ...]  # sets that are not there
    # folders of the sets that are there; of records with their split
    places: tuple[tuple[Path, str | None], ...] = ()

    @property
    def metrics(self) -> dict[str, str]:
        """Set -> the metric that is shown of it, and averaged."""
        present = [one for one, _ in self.images] + [one for one, *_ in self.records]
        return {one.name: one.metric for one in present}

    def described(self) -> dict[str, Any]:
        """For the file of results."""
        suite = self.suite
        return {"name": suite.name, "sha256": suite.sha256, "missing": list(self.missing)}


def open_suite(
    suite: Suite,
    *,
    suite_data: Path | None = None,
    allow_missing: bool = False,
    note: Callable[[str], None] = print,
) -> OpenedSuite:
    """Finds and loads the sets; no image is read.

    Args:
        suite_data: a folder that holds one folder a set, for sets whose `data` is not given.
        allow_missing: leave out sets that are not there.
        note: called with sentences that a reader of the metrics should know.

    Raises ValueError where sets are missing, all of them named at once; where one has another
    number of classes or images than expected; and as `load_zero_shot` does.
    """
    places = {one.name: suite.place(one, suite_data) for one in suite.sets}
    missing = tuple(name for name, place in places.items() if not place.is_dir())
    if missing and (not allow_missing or len(missing) == len(places)):
        listed = "".join(f"\n  {name}: no folder {str(places[name])!r}" for name in missing)
        raise ValueError(
            f"{len(missing)} of the {len(places)} sets of suite {suite.name!r} are missing:{listed}"
            f"\nGive another --suite_data{'' if allow_missing else ', or --allow_missing'}; its "
            "folders are named after the sets."
        )
    if missing:
        note(
            f"{len(missing)} of the {len(places)} sets of suite {suite.name!r} are missing and "
            f"left out: {', '.join(missing)}."
        )
    images, records = [], []
    for one in suite.images:
        if one.name not in missing:
            images.append((one, _open_images(suite, one, places[one.name], note)))
    for each in suite.records:
        if each.name not in missing:
            records.append((each, places[each.name], _open_records(suite, each, places[each.name])))
    known: list[tuple[Path, str | None]] = [(places[one.name], None) for one, _ in images]
    known += [(place, each.split) for each, place, _ in records]
    return OpenedSuite(suite, tuple(images), tuple(records), missing, tuple(known))


def _open_images(
    suite: Suite, one: ImageSet, place: Path, note: Callable[[str], None]
) -> ZeroShotSet:
    if (place / RECORDS_INFO).exists():
        raise ValueError(
            f"Set {one.name!r} of suite {suite.name!r}: {str(place)!r} holds prepared records, not "
            "labelled images; list it under [[records]]."
        )
    dataset = load_zero_shot(
        place,
        name=one.name,
        classes=suite.text(one.classes),
        templates=suite.text(one.templates),
        descriptions=suite.text(one.descriptions),
        counts=suite.text(one.counts),
        description_template=one.description_template,
        keep_names=one.keep_names,
        classes_by=one.classes_by,
        allow_equal_names=one.allow_equal_names,
        note=note,
    )
    _expect(suite, one.name, "classes", one.num_classes, len(dataset.class_names))
    _expect(suite, one.name, "images", one.num_images, len(dataset.source))
    return dataset


def _open_records(suite: Suite, one: RecordSet, place: Path) -> Source:
    from grain_jax.data.tfds_records import RecordSource

    try:
        source = RecordSource(place, one.split)
    except ValueError as error:
        raise ValueError(f"Set {one.name!r} of suite {suite.name!r}: {error}") from error
    _expect(suite, one.name, "images", one.num_images, len(source))
    return source


def _expect(suite: Suite, name: str, what: str, expected: int | None, found: int) -> None:
    if expected not in (None, found):
        raise ValueError(
            f"Set {name!r} of suite {suite.name!r} has {found:,} {what}, and {expected:,} were "
            f"expected: another split or version of it is another measurement. Change the folder, "
            f"or num_{what} in a suite file of your own."
        )


def evaluate_suite(
    encoder: Encoder,
    opened: OpenedSuite,
    config: TrainConfig,
    *,
    templates: Sequence[str],
    note: Callable[[str], None] = print,
    details: ResultDetails | None = None,
    methods: Sequence[str] | None = None,
) -> list[Result]:
    """The results of every set, and their averages.

    `config` has the alphas and the settings of scores; `templates` are the model's, for sets
    without any of their own. `note` is called as by `open_suite`. `methods`: None, those of the
    suite. Raises ValueError where none of them can be measured.
    """
    results: list[Result] = []
    has_regions = config.model.type == "grain" and encoder.learned.regions
    left_out = LeftOut() if details is None else details.left_out
    for one, dataset in opened.images:
        if asked := methods or one.methods or opened.suite.methods:
            note_left_out(asked, dataset, has_regions=has_regions, note=note, left_out=left_out)
    if methods:
        check_any_left(methods, left_out)  # before anything is encoded
    for one, loaded in opened.images:
        own = "templates" in loaded.text_files
        dataset = loaded if own else dataclasses.replace(loaded, templates=tuple(templates))
        if unknown := unknown_words_note(encoder.tokenizer, dataset):
            note(f"{one.name}: {unknown}")
        asked = methods or one.methods or opened.suite.methods
        results += score_zero_shot(
            encoder,
            dataset,
            config,
            final=True,
            details=details,
            methods=asked or DEFAULT_METHODS,
        )
    for each, place, source in opened.records:
        results += evaluate_set(
            encoder,
            EvaluationSet(each.name, f"Set {each.name!r}", source),
            config,
            final=True,
            tasks=each.tasks,
            training=_training_boxes(encoder, config, place),
            details=details,
        )
    return [*results, *averages(opened, results)]


def _training_boxes(encoder: Encoder, config: TrainConfig, place: Path) -> TrainingBoxes | None:
    """None for a folder of test data only: no boxes to fit the baseline to."""
    data = dataclasses.replace(config.data, dataset="tfds", data_dir=str(place))
    size = encoder.preprocessing.image_size
    try:
        training = open_source(data, data.train_split, image_size=size)
    except ValueError:
        return None
    return TrainingBoxes(lambda: training, encoder)


def averages(opened: OpenedSuite, results: Sequence[Result]) -> list[Result]:
    """Of each method and alpha, the mean over the sets of the suite that it was measured on, each
    by its own metric; `n` is their number. Beside it stands how many the suite has.

    None where a suite has fewer than two sets of a kind.
    """
    found: list[Result] = []
    for sets in (opened.suite.images, opened.suite.records):
        averaged = {one.name: one.metric for one in sets if one.in_average}
        if len(averaged) < 2:
            continue
        values: dict[tuple[str, float | None], list[float]] = defaultdict(list)
        for result in results:
            if averaged.get(result.dataset) == result.metric and result.method != "random":
                values[result.method, result.alpha].append(result.value)
        for key, each in values.items():
            mean = sum(each) / len(each)
            found.append(Result(opened.suite.name, *key, AVERAGE, mean, n=len(each)))
            found.append(Result(opened.suite.name, *key, EXPECTED, float(len(averaged))))
    return found
