"""Grounding and compositional tests of a suite: opened before a model is loaded, and measured."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grain_jax.config import TrainConfig
from grain_jax.data.compositional.readers import READERS, Test
from grain_jax.data.grounding.formats import load_grounding
from grain_jax.data.grounding.queries import GroundingSet
from grain_jax.evaluation.compositional_suite import describe_test, score_test
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.grounding_benchmark import describe_grounding, measure_grounding
from grain_jax.evaluation.grounding_protocol import Feature
from grain_jax.evaluation.grounding_tables import left_out_notes
from grain_jax.evaluation.suite_file import CompositionalTest, GroundingTest
from grain_jax.evaluation.unknown_words import unknown_words_in
from grain_jax.inference.encoder import Encoder, errors_about
from grain_jax.results import Result


@dataclass(frozen=True)
class Trained:
    """What of a model a test may ask for."""

    regions: bool
    boxes: bool

    @classmethod
    def of(cls, encoder: Encoder, config: TrainConfig) -> "Trained":
        """Those of an encoder."""
        grain = config.model.type == "grain"
        return cls(grain and encoder.learned.regions, grain and encoder.learned.boxes)


def open_grounding(one: GroundingTest, place: Path, images: Path | None) -> GroundingSet:
    """The queries of a test, under its name. Raises ValueError as `load_grounding`."""
    split_file = None
    if one.split_file:
        beside = (place if place.is_dir() else place.parent) / one.split_file
        split_file = beside if beside.is_file() else Path(one.split_file)
    data = load_grounding(
        one.format,
        place,
        images=images,
        split=one.split or None,
        split_file=split_file,
        negatives=one.negatives,
    )
    return dataclasses.replace(data, name=one.name)


def open_compositional(one: CompositionalTest, place: Path, images: Path) -> Test:
    """The questions of a test, under its name.

    Raises ValueError as its reader, and for a folder with several tests.
    """
    found = READERS[one.format](_questions(one, place), images)
    if len(found) > 1:
        raise ValueError(
            f"{str(place)!r} holds the tests {', '.join(test.name for test in found)}; list each "
            "by its own file."
        )
    return dataclasses.replace(found[0], name=one.name)


def _questions(one: CompositionalTest, place: Path) -> Path:
    """Of captioned images in a folder, the lines in it; the other readers find their files."""
    if one.format != "retrieval" or not place.is_dir():
        return place
    found = sorted(place.glob("*.jsonl"))
    if len(found) != 1:
        raise ValueError(
            f"{str(place)!r} holds {len(found)} files of lines (.jsonl), and one was expected."
        )
    return found[0]


def measure_grounding_test(
    encoder: Encoder,
    one: GroundingTest,
    data: GroundingSet,
    *,
    trained: Trained,
    note: Callable[[str], None],
    details: ResultDetails,
) -> list[Result]:
    """The results of a test by what the model has; `note` says what is left out for lack of it.

    `details` gets the protocol of each feature, beside what was asked. Raises ValueError as
    `measure_grounding`.
    """
    features: list[Feature] = [
        feature
        for feature in one.feature
        if feature == "crop" or (trained.regions and trained.boxes)
    ]
    if one.boxes == "predicted" and not trained.boxes:
        note(f"{one.name} is left out: the model predicts no boxes, or they were never trained.")
        return []
    if lacking := [feature for feature in one.feature if feature not in features]:
        what = "is" if not features else f"by {', '.join(lacking)} is"
        note(f"{one.name} {what} left out: the model has no trained regions.")
    if not features:
        return []
    for sentence in left_out_notes(data.left_out):
        note(f"{one.name}: {sentence}")
    if unknown := unknown_words_in(encoder.tokenizer, (query.text for query in data.queries)):
        note(f"{one.name}: {unknown}")
    measured = measure_grounding(
        encoder,
        data,
        boxes=one.boxes,
        truth=one.protocol,
        features=features,
        prompt=one.prompt,
        predictions=details.predictions,
    )
    protocols = {name: dataclasses.asdict(each) for name, each in measured.protocols.items()}
    details.splits[one.name] = describe_grounding(data) | {"protocols": protocols}
    if measured.usage:
        usage = {str(name): each.counts.tolist() for name, each in measured.usage.items()}
        details.query_usage[one.name] = usage
    return measured.results


def measure_compositional_test(
    encoder: Encoder, test: Test, *, note: Callable[[str], None], details: ResultDetails
) -> list[Result]:
    """The results of a test; `details` gets what was asked, and the answers.

    Raises ValueError, with the name of the test, as `score_test`.
    """
    if unknown := unknown_words_in(encoder.tokenizer, test.texts):
        note(f"{test.name}: {unknown}")
    with errors_about(test.name):
        results = score_test(encoder, test, predictions=details.predictions)
    details.splits[test.name] = describe_test(test)
    return results
