"""The sets of a `Suite` and of its included ones, opened and checked before a model is loaded."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from grain_jax.data.classification.class_counts import OtherClasses, published_counts_of
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.set_names import TFDS
from grain_jax.data.compositional.readers import Test
from grain_jax.data.grounding.formats import lacks_split
from grain_jax.data.grounding.queries import GroundingSet
from grain_jax.data.records import Source, ZeroShotSet
from grain_jax.evaluation.compositional_suite import describe_test
from grain_jax.evaluation.given_images import (
    FULFILS,
)
from grain_jax.evaluation.suite_file import (
    AnySet,
    CompositionalTest,
    GroundingTest,
    ImageSet,
    RecordSet,
    Suite,
    shown_metric,
)
from grain_jax.evaluation.suite_tests import (
    open_compositional,
    open_grounding,
)
from grain_jax.inference.encoder import errors_about
from grain_jax.paths import nearest_hint

RECORDS_INFO = "dataset_info.json"  # which a folder of prepared records has


@dataclass(frozen=True)
class OpenedSuite:
    """A suite with its sets loaded; of records, the folders are known."""

    suite: Suite
    images: tuple[tuple[ImageSet, ZeroShotSet], ...]
    records: tuple[tuple[RecordSet, Path, Source], ...]
    grounding: tuple[tuple[GroundingTest, GroundingSet], ...]
    compositional: tuple[tuple[CompositionalTest, Test], ...]
    included: tuple["OpenedSuite", ...]
    missing: tuple[str, ...]  # sets that are not there, also of suites that are included
    # folders of its own sets that are there; of records with their split
    own_places: tuple[tuple[Path, str | None], ...] = ()

    @property
    def places(self) -> tuple[tuple[Path, str | None], ...]:
        """Folders of all sets that are there; of records with their split."""
        return (*self.own_places, *(place for part in self.included for place in part.places))

    @property
    def metrics(self) -> dict[str, str]:
        """Set -> the metric that is shown of it, and averaged."""
        found: dict[str, str] = {}
        for part in self.included:
            found |= part.metrics
        found |= {one.name: shown_metric(one) for one, _ in self.images}
        found |= {one.name: shown_metric(one) for one, *_ in self.records}
        found |= {one.name: shown_metric(one) for one, _ in self.grounding}
        return found | {one.name: shown_metric(one) for one, _ in self.compositional}

    @property
    def note(self) -> str:
        """What is printed below the results."""
        notes = [f"{part.suite.name}: {part.note}" for part in self.included if part.note]
        return " ".join([*([self.suite.note] if self.suite.note else []), *notes])

    def described(self) -> dict[str, Any]:
        """For the file of results."""
        suite = self.suite
        return {"name": suite.name, "sha256": suite.sha256, "missing": list(self.missing)}


def open_suite(
    suite: Suite,
    *,
    suite_data: Path | None = None,
    allow_missing: bool = False,
    templates: str = "",
    counts: str = "",
    note: Callable[[str], None] = print,
) -> OpenedSuite:
    """Finds and loads the sets; no image is decoded.

    Args:
        suite_data: a folder that holds one folder a set, for sets whose `data` is not given.
        allow_missing: leave out sets that are not there.
        templates: a file or list of templates that goes before those of sets and suites.
        counts: a kind of published counts (`published_kinds`); goes before those of the sets that
            the package has counts of.
        note: called with sentences that a reader of the metrics should know.

    Raises ValueError where sets are missing, all of them named at once; where there are `counts` of
    none; where one has another
    number of classes, images, texts or questions than expected; and as `load_zero_shot`,
    `load_grounding` and the readers of compositional tests do.
    """
    places = {one.name: part.place(one, suite_data) for part in suite.every for one in part.sets}
    lacking = {
        one.name: what
        for part in suite.every
        for one in part.sets
        if (what := _what_lacks(part, one, places[one.name], suite_data))
    }
    missing = tuple(lacking)
    if missing and (not allow_missing or len(missing) == len(places)):
        listed = "".join(f"\n  {name}: {what}" for name, what in lacking.items())
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
    texts = _Texts(templates=templates, counts=counts)
    if counts:
        _check_counted(suite, texts, missing, note)
    return _opened(suite, suite_data, places, missing, note, texts)


def _check_counted(
    suite: Suite, texts: "_Texts", missing: Collection[str], note: Callable[[str], None]
) -> None:
    """Says which sets there are no published counts of."""
    sets = [one for part in suite.every for one in part.images if one.name not in missing]
    without = [one.name for one in sets if not published_counts_of(one.name, texts.counts)]
    if sets and len(without) == len(sets):
        raise ValueError(
            f"--counts={texts.counts} is of none of the sets {', '.join(without)}; published "
            "counts go by names as cub200, imagenet, flowers102. Write counts = FILE under a set "
            "in the suite's file, or leave it out."
        )
    if without:
        note(f"No counts {texts.counts} of {', '.join(without)} come with grain_jax.")


def _what_lacks(suite: Suite, one: AnySet, place: Path, suite_data: Path | None) -> str:
    """Which folder or file of a set is not there; "" for none."""
    if str(place).startswith(TFDS):
        from grain_jax.data.classification.tfds_set import is_prepared  # TFDS is slow to import

        return "" if is_prepared(place) else f"no prepared data set {str(place)!r}"
    if isinstance(one, RecordSet) and not place.is_dir():
        return f"no folder {str(place)!r}"
    if not place.exists():
        kind = "file" if place.suffix else "folder"
        return f"no {kind} {str(place)!r}{nearest_hint(place)}"
    if isinstance(one, ImageSet):
        for what, given in suite.given_images(one).items():
            if what in FULFILS and not str(given).startswith(TFDS) and not given.exists():
                return f"no folder {str(given)!r} of its {what}{nearest_hint(given)}"
    if isinstance(one, GroundingTest) and one.split and lacks_split(one.format, place, one.split):
        return f"no file of split {one.split!r} in {str(place)!r}"
    if isinstance(one, GroundingTest | CompositionalTest):
        images = suite.images_of(one, suite_data)
        if images is not None and not images.is_dir():
            return f"no folder {str(images)!r} of its images{nearest_hint(images)}"
    return ""


def _opened(
    suite: Suite,
    suite_data: Path | None,
    places: Mapping[str, Path],
    missing: Collection[str],
    note: Callable[[str], None],
    texts: "_Texts",
) -> OpenedSuite:
    """The sets of a suite that are there, and the suites that it includes."""
    texts = texts.within(suite)
    included = tuple(
        _opened(part, suite_data, places, missing, note, texts) for part in suite.included
    )
    images, records, compositional = [], [], []
    for one in suite.images:
        if one.name not in missing:
            images.append((one, _open_images(suite, one, places[one.name], note, texts)))
    for each in suite.records:
        if each.name not in missing:
            records.append((each, places[each.name], _open_records(suite, each, places[each.name])))
    for test in suite.compositional:
        if test.name not in missing:
            place, folder = places[test.name], suite.images_of(test, suite_data)
            assert folder is not None
            with errors_about(title_of(suite, test)):
                asked = open_compositional(test, place, folder)
            described = describe_test(asked)
            for what in ("images", "questions"):
                _expect(suite, test.name, what, getattr(test, f"num_{what}"), described[what])
            compositional.append((test, asked))
    known: list[tuple[Path, str | None]] = [(places[one.name], None) for one, _ in images]
    known += [(place, each.split) for each, place, _ in records]
    return OpenedSuite(
        suite,
        tuple(images),
        tuple(records),
        tuple(_open_phrases(suite, suite_data, places, missing)),
        tuple(compositional),
        included,
        tuple(name for part in suite.every for name in _names(part) if name in missing),
        tuple(known),
    )


@dataclass(frozen=True)
class _Texts:
    """Texts of sets that are given elsewhere."""

    templates: str = ""  # before what a set says
    counts: str = ""  # kind of published ones, before what a set says
    default_templates: str = ""  # where neither it nor a suite around it says anything

    def within(self, suite: Suite) -> "_Texts":
        """Those of a suite's sets; what an outer suite says goes before."""
        default = self.default_templates or suite.text(suite.templates)
        return dataclasses.replace(self, default_templates=default)

    def templates_of(self, suite: Suite, one: ImageSet) -> str:
        """A file or list; "": those of the folder, or the model's."""
        return self.templates or suite.text(one.templates) or self.default_templates


def _names(suite: Suite) -> list[str]:
    return [one.name for one in suite.sets]


def title_of(suite: Suite, one: AnySet) -> str:
    """Of errors about a set."""
    return f"Set {one.name!r} of suite {suite.name!r}"


def _open_phrases(
    suite: Suite, suite_data: Path | None, places: Mapping[str, Path], missing: Collection[str]
) -> Iterator[tuple[GroundingTest, GroundingSet]]:
    """The grounding tests; queries that several ask by other protocols are read once."""
    read: dict[tuple[Any, ...], GroundingSet] = {}
    for one in suite.grounding:
        if one.name in missing:
            continue
        place, images = places[one.name], suite.images_of(one, suite_data)
        key = one.format, place, images, one.split, one.split_file, one.negatives
        with errors_about(title_of(suite, one)):
            found = read.get(key) or open_grounding(one, place, images)
        read[key] = found
        _expect(suite, one.name, "images", one.num_images, len(found.images))
        texts = len(found.queries) + sum(found.left_out.values())
        _expect(suite, one.name, "texts", one.num_texts, texts)
        yield one, dataclasses.replace(found, name=one.name)


def _open_images(
    suite: Suite, one: ImageSet, place: Path, note: Callable[[str], None], texts: "_Texts"
) -> ZeroShotSet:
    if (place / RECORDS_INFO).exists():
        raise ValueError(
            f"Set {one.name!r} of suite {suite.name!r}: {str(place)!r} holds prepared records, not "
            "labelled images; list it under [[records]]."
        )
    load = functools.partial(
        load_zero_shot,
        place,
        name=one.name,
        classes=suite.text(one.classes),
        templates=texts.templates_of(suite, one),
        descriptions=suite.text(one.descriptions),
        further={kind: suite.text(file) for kind, file in one.texts.items()},
        description_template=one.description_template,
        keep_names=one.keep_names,
        classes_by=one.classes_by,
        allow_equal_names=one.allow_equal_names,
        split=one.split or None,
        image_column=one.image_column or None,
        label_column=one.label_column or None,
    )
    published = published_counts_of(one.name, texts.counts)
    noted: list[str] = []
    try:
        dataset = load(counts=published or suite.text(one.counts), note=noted.append)
    except OtherClasses as error:
        if not published:
            raise
        noted.clear()
        note(f"{error} --counts={texts.counts} is left out for it; counts of its own are taken.")
        dataset = load(counts=suite.text(one.counts), note=noted.append)
    for sentence in noted:
        note(sentence)
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
    expected = one.captions_per_image
    if expected is not None and jax.process_index() == 0:  # each record is read, if not decoded
        for record in map(source.__getitem__, range(len(source))):
            found = sum(caption.source == "original" for caption in record.captions)
            if found < expected:
                raise ValueError(
                    f"Set {one.name!r} of suite {suite.name!r}: of image {record.id!r} there "
                    f"are {found} captions, and {expected} or more were expected: recalls of fewer "
                    "captions are another measurement. Prepare all captions, or change "
                    "captions_per_image in a suite file of your own."
                )
    return source


def _expect(suite: Suite, name: str, what: str, expected: int | None, found: int) -> None:
    if expected not in (None, found):
        raise ValueError(
            f"Set {name!r} of suite {suite.name!r} has {found:,} {what}, and {expected:,} were "
            f"expected: another split or version of it is another measurement. Change the folder, "
            f"or num_{what} in a suite file of your own."
        )
