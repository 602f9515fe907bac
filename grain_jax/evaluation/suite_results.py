"""The results of a suite's sets, and their averages."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grain_jax.config import TrainConfig
from grain_jax.data.image_variants import VariantKind, with_crops
from grain_jax.data.records import EvaluationSet, ZeroShotSet
from grain_jax.data.source import open_source
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.given_images import (
    FULFILS,
    Banks,
    GivenImages,
    of_option,
    read_given_images,
    takers,
)
from grain_jax.evaluation.grounding_benchmark import CONSTANT, WHOLE
from grain_jax.evaluation.left_out import check_any_left, note_left_out
from grain_jax.evaluation.shared_images import IN_SUITE
from grain_jax.evaluation.suite import TrainingBoxes, evaluate_set, score_zero_shot
from grain_jax.evaluation.suite_file import ImageSet, Suite, shown_metric
from grain_jax.evaluation.suite_sets import OpenedSuite, title_of
from grain_jax.evaluation.suite_tests import (
    Trained,
    measure_compositional_test,
    measure_grounding_test,
)
from grain_jax.evaluation.unknown_words import unknown_words_note
from grain_jax.evaluation.variants import predicted_boxes
from grain_jax.inference.encoder import Encoder, errors_about
from grain_jax.results import Result
from grain_jax.zero_shot.method import CaptionBank
from grain_jax.zero_shot.methods import DEFAULT_METHODS, METHODS, crop_methods

AVERAGE, EXPECTED = "average", "average_expected_sets"  # metrics of the suite as a whole
BLIND = ("random", WHOLE, CONSTANT)  # methods that read no text: their mean says nothing


def evaluate_suite(
    encoder: Encoder,
    opened: OpenedSuite,
    config: TrainConfig,
    *,
    templates: Sequence[str],
    note: Callable[[str], None] = print,
    details: ResultDetails | None = None,
    methods: Sequence[str] | None = None,
    alphas: Sequence[float] | None = None,
    crops: Mapping[str, Any] | None = None,
) -> list[Result]:
    """The results of every set, and their averages, of suites that are included first.

    `config` has the alphas and the settings of scores; `templates` are the model's, for sets
    without any of their own. `note` is called as by `open_suite`. `methods` and `alphas`: None,
    those of the suite. `crops`: fields of `RandomCrops` that go before those of a set.
    Raises ValueError where none of the methods can be measured.
    """
    asked = _Asked(
        encoder=encoder,
        config=config,
        templates=templates,
        note=note,
        details=ResultDetails() if details is None else details,
        methods=methods,
        alphas=alphas,
        crops=crops or {},
    )
    given = _read_given(asked, opened)
    if methods:
        check_any_left(methods, asked.details.left_out)  # before anything is encoded
    return _evaluate(asked, opened, given, encoded={})


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is asked of every set."""

    encoder: Encoder
    config: TrainConfig
    templates: Sequence[str]
    note: Callable[[str], None]
    details: ResultDetails
    methods: Sequence[str] | None
    alphas: Sequence[float] | None
    crops: Mapping[str, Any]

    def methods_of(self, one: ImageSet, suite: Suite) -> Sequence[str]:
        """() for the default ones."""
        return self.methods or one.methods or suite.methods

    def kinds_of(self, one: ImageSet) -> Mapping[str, VariantKind]:
        return with_crops({**one.crop_numbers, **self.crops})


def _read_given(asked: _Asked, opened: OpenedSuite) -> dict[str, GivenImages]:
    """Set -> what its methods are given, which is read, not encoded; says what is left out."""
    banks: Banks = {}
    found: dict[str, GivenImages] = {}
    for suite, one, dataset in _every_images(opened):
        methods = asked.methods_of(one, suite)
        given = suite.given_images(one)
        for name in FULFILS:
            if name in given and not takers(name, methods or DEFAULT_METHODS):
                asked.note(
                    f"{one.name}: none of the methods looks at its {name}, which is unread; "
                    f"{', '.join(takers(name))} do."
                )
                given = {key: given[key] for key in given if of_option(key) != name}
        looked_at = crop_methods(methods or DEFAULT_METHODS)
        if one.crop_numbers and not looked_at and not suite.packaged:
            asked.note(
                f"{one.name}: none of the methods looks at random crops, so its numbers of crops "
                f"change nothing; {', '.join(crop_methods(METHODS))} do."
            )
        images = GivenImages()
        if given:
            with errors_about(title_of(suite, one)):
                images = read_given_images(
                    dataset,
                    asked.config.data,
                    image_size=asked.encoder.preprocessing.image_size,
                    **given,
                    classes=suite.text(one.classes),
                    naming={
                        "keep_names": one.keep_names,
                        "classes_by": one.classes_by,
                        "allow_equal_names": one.allow_equal_names,
                    },
                    banks=banks,
                    wording=IN_SUITE,
                    note=asked.note,
                )
        found[one.name] = images
        if methods:
            note_left_out(
                methods,
                dataset,
                has_regions=Trained.of(asked.encoder, asked.config).regions,
                num_boxes=predicted_boxes(asked.config, asked.encoder.learned),
                note=asked.note,
                given=images.fulfilled,
                left_out=asked.details.left_out,
                kinds=asked.kinds_of(one),
                draws=asked.config.evaluation.text_draws,
            )
    return found


def _every_images(opened: OpenedSuite) -> Iterator[tuple[Suite, ImageSet, ZeroShotSet]]:
    for part in opened.included:
        yield from _every_images(part)
    for one, dataset in opened.images:
        yield opened.suite, one, dataset


def _evaluate(
    asked: _Asked,
    opened: OpenedSuite,
    given: Mapping[str, GivenImages],
    *,
    encoded: dict[int, CaptionBank],
) -> list[Result]:
    """`encoded`: banks that were encoded before, see `GivenImages.encode`."""
    results: list[Result] = []
    for part in opened.included:
        results += _evaluate(asked, part, given, encoded=encoded)
    encoder, config, alphas = asked.encoder, asked.config, asked.alphas
    note, details = asked.note, asked.details
    if weights := alphas or opened.suite.alphas:
        evaluation = dataclasses.replace(config.evaluation, alphas=tuple(weights))
        config = dataclasses.replace(config, evaluation=evaluation)
    trained = Trained.of(encoder, config)
    own: list[Result] = []
    for one, loaded in opened.images:
        dataset = loaded
        if "templates" not in loaded.text_files:
            dataset = dataclasses.replace(loaded, templates=tuple(asked.templates))
        if unknown := unknown_words_note(encoder.tokenizer, dataset):
            note(f"{one.name}: {unknown}")
        images = given[one.name]
        own += score_zero_shot(
            encoder,
            dataset,
            config,
            final=True,
            details=details,
            methods=asked.methods_of(one, opened.suite) or DEFAULT_METHODS,
            kinds=asked.kinds_of(one),
            note=note,
            **images.encode(encoder, encoded),
        )
        details.zero_shot_sets[one.name] |= images.described
    for each, place, source in opened.records:
        own += evaluate_set(
            encoder,
            EvaluationSet(each.name, f"Set {each.name!r}", source),
            config,
            final=True,
            tasks=each.tasks,
            training=_training_boxes(encoder, config, place),
            details=details,
        )
    for test, data in opened.grounding:
        own += measure_grounding_test(
            encoder, test, data, trained=trained, note=note, details=details
        )
    for _, asked_of in opened.compositional:
        own += measure_compositional_test(encoder, asked_of, note=note, details=details)
    return [*results, *own, *averages(opened, own)]


def _training_boxes(encoder: Encoder, config: TrainConfig, place: Path) -> TrainingBoxes | None:
    """None for a folder of test data only: no boxes to fit the baseline to."""
    data = dataclasses.replace(config.data, dataset="tfds", data_dir=str(place))
    size = encoder.preprocessing.image_size
    try:
        training = open_source(data, data.train_split, image_size=size)
    except ValueError:
        return None
    return TrainingBoxes(lambda: training, encoder)


# Kinds of sets that have images in common: RefCOCO, RefCOCO+ and g; both parts of ARO.
SHARE_IMAGES = ("grounding", "compositional")


def averages(opened: OpenedSuite, results: Sequence[Result]) -> list[Result]:
    """Of each method and alpha, the mean over the sets of the suite that it was measured on, each
    by its own metric; `n` is their number. Beside it stands how many the suite has.

    Of grounding, sets of one protocol are averaged, and the data set of the mean names it, as in
    "mine/predicted_any". Sets of suites that are included are averaged there. None where a suite
    has fewer than two sets of a kind. Where all sets have a 95 % interval, so has the mean, but
    for tests in `SHARE_IMAGES`, see `_interval_of_mean`.
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for one in opened.suite.sets:
        if one.in_average:
            groups[one.averaged_with][one.name] = shown_metric(one)
    found: list[Result] = []
    for group, averaged in groups.items():
        if len(averaged) < 2:
            continue
        kind, _, protocol = group.partition("/")
        dataset = "/".join(filter(None, (opened.suite.name, protocol)))
        measured: dict[tuple[str, float | None], list[Result]] = defaultdict(list)
        for result in results:
            if averaged.get(result.dataset) == result.metric and result.method not in BLIND:
                measured[result.method, result.alpha].append(result)
        for key, each in measured.items():
            mean = sum(one.value for one in each) / len(each)
            interval = None if kind in SHARE_IMAGES else _interval_of_mean(each)
            low, high = interval or (None, None)
            found.append(Result(dataset, *key, AVERAGE, mean, low, high, len(each)))
            found.append(Result(dataset, *key, EXPECTED, float(len(averaged))))
    return found


def _interval_of_mean(each: Sequence[Result]) -> tuple[float, float] | None:
    """95 % interval of the mean of results of independent sets; None where one has none.

    The distances from each value to its lower bound add up as variances do, and so do those to the
    upper bounds (Zou and Donner 2008): of symmetric intervals this is the normal one, and others
    stay within [0, 1]. Sets with images in common are not independent, and no set says anything of
    sets that were not measured.
    """
    below, above = 0.0, 0.0
    for one in each:
        if one.low is None or one.high is None:
            return None
        below += (one.value - one.low) ** 2
        above += (one.high - one.value) ** 2
    mean = sum(one.value for one in each) / len(each)
    return mean - math.sqrt(below) / len(each), mean + math.sqrt(above) / len(each)
