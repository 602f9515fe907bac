"""Run a stage over the images of a folder: only those it has no row for, each to a row.

A stage is an `Annotator`. It gets the images that are left and yields rows in any order; what goes
wrong with one image is a row with an error. `StageStopped` ends the run where nothing can continue;
the same command then continues with the images that have no row yet.
"""

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from grain_jax.annotation.images import ImageList, list_images
from grain_jax.annotation.shards import WHOLE, Shard
from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_files import Attempt, StageFiles, attempts, read_annotations
from grain_jax.data.annotation_layout import MARKER, check_marker
from grain_jax.data.annotation_rows import Row, content_hash
from grain_jax.data.checks import read_image_file
from grain_jax.data.image_files import SkippedSample

MAX_EXAMPLES = 10


class StageStopped(Exception):
    """Nothing can continue, and none of the images is to blame: the message says what to do."""


@runtime_checkable
class Annotator(Protocol):
    """What a stage does with images."""

    stage: str  # key of `STAGES`
    settings: tuple[str, str, str]  # `Provenance.settings` of its rows

    @property
    def images_ahead(self) -> int:
        """Images that it takes before it waits for a row to be taken; more keep it no busier."""
        ...

    def input_hash(self, image: str) -> str | None:
        """`Row.input_hash` of the rows it would make, None without an earlier stage.

        Raises `SkippedSample` for an image that it can do nothing with yet.
        """
        ...

    def rows(self, images: Iterator[str], /) -> Generator[Row, None, None]:
        """A row for each image; a generator, which is closed where the run ends early."""
        ...

    def measured(self) -> Mapping[str, float]:
        """Numbers for the report that are of no single row; those of several workers are added."""
        ...


@dataclass(frozen=True)
class StageSpec:
    """What a stage is run on."""

    images: Path  # folder
    output: Path  # folder of annotations
    shard: Shard = WHOLE
    retry_errors: bool = False  # images whose last row is an error, too
    redo_changed: bool = False  # images whose row was made by another model, prompts or sampling
    redo_replaced: bool = False  # images whose file is another than the row's; reads all files


@dataclass
class Selection:
    """The images that a stage is left with, and the others, counted."""

    images: list[str] = field(default_factory=list)
    listed: int = 0  # in the folder
    done: int = 0  # have a row
    failed: int = 0  # of `done`: it is an error
    changed: int = 0  # of `done`: made by another model, prompts or sampling
    sent_back: int = 0  # of `images`: by `annotate audit --retry`
    replaced: int = 0  # of `images`: their file is another than the one that was annotated
    skipped: Counter[str] = field(default_factory=Counter)  # by reason


@dataclass
class StageReport:
    """What a run did."""

    selection: Selection
    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by reason
    examples: list[str] = field(default_factory=list)  # the first errors, with their images
    totals: Counter[str] = field(default_factory=Counter)  # sums of the integer outputs
    regions: int = 0
    seconds: float = 0.0

    def add(self, row: Row) -> None:
        """Counts a row."""
        self.rows += 1
        for name, value in row.outputs.items():
            if isinstance(value, int):
                self.totals[name] += value
        self.regions += len(row.outputs.get("regions") or ())
        if row.error is not None:
            self.failed[row.error.partition(": ")[0]] += 1
            if len(self.examples) < MAX_EXAMPLES:
                self.examples.append(f"{row.image}: {row.error}")


def run_stage(
    annotator: Annotator,
    spec: StageSpec,
    *,
    progress: Callable[[StageReport], None] = lambda report: None,
    note: Callable[[str], None] = lambda text: None,
) -> StageReport:
    """Annotates the images that are left; every row is kept as soon as it is there.

    Args:
        progress: called at the start and after each row with what was done so far.
        note: called with a text where nothing stops another process.

    Raises ValueError for a folder that cannot be used or another process writes to, OSError where
    the disk refuses to be written to, and `StageStopped`. Whatever ends it, rows are kept.
    """
    listed = list_images(spec.images)
    with AnnotationWriter(spec.output, annotator.stage, shard=spec.shard, note=note) as writer:
        report = StageReport(_select(annotator, spec, listed))
        del listed
        started = time.monotonic()
        progress(report)
        with closing(annotator.rows(iter(report.selection.images))) as rows:
            for row in rows:
                writer.append(row)
                report.add(row)
                report.seconds = time.monotonic() - started
                progress(report)
    return report


def plan_stage(annotator: Annotator, spec: StageSpec) -> Selection:
    """What `run_stage` would do; writes nothing. Raises ValueError."""
    return _select(annotator, spec, list_images(spec.images))


def _select(annotator: Annotator, spec: StageSpec, listed: ImageList) -> Selection:
    """`select` by what is in the folder of annotations as of now."""
    known: dict[str, Attempt] = {}
    again = frozenset[str]()
    if (spec.output / MARKER).exists():
        check_marker(spec.output)
        known = attempts(StageFiles(spec.output, annotator.stage))
        if annotator.stage == "describe" and (spec.output / "audit").exists():
            again = frozenset(read_annotations(spec.output).to_describe_again())
    return select(annotator, spec, listed, known, again)


def select(
    annotator: Annotator,
    spec: StageSpec,
    listed: ImageList,
    known: dict[str, Attempt],
    again: frozenset[str] = frozenset(),
) -> Selection:
    """The images that are left, in the order of the list: those without a row, those whose input
    from the same source has changed, and what `spec` asks for besides.

    Args:
        known: the last attempt at each image.
        again: images that are sent back though they have a row.
    """
    found = Selection(listed=len(listed.images), skipped=Counter(listed.skipped))
    for image in listed.images:
        if image not in spec.shard:
            found.skipped["of other shards"] += 1
            continue
        try:
            input_hash = annotator.input_hash(image)
        except SkippedSample as error:
            found.skipped[error.reason] += 1
            continue
        if (attempt := known.get(image)) is None:
            found.images.append(image)
            continue
        same_source = _input_source(attempt.settings) == _input_source(annotator.settings)
        if same_source and attempt.input_hash != input_hash:
            found.images.append(image)
            continue
        if image in again and not attempt.failed:
            found.images.append(image)
            found.sent_back += 1
            continue
        if spec.redo_replaced and _is_replaced(image, attempt, spec.images):
            found.images.append(image)
            found.replaced += 1
            continue
        changed = attempt.settings != annotator.settings
        if (attempt.failed and spec.retry_errors) or (changed and spec.redo_changed):
            found.images.append(image)
            continue
        found.done += 1
        found.failed += attempt.failed
        found.changed += changed
    return found


@functools.lru_cache(maxsize=1000)
def _input_source(settings: tuple[str, str, str]) -> str:
    """What the hash of an input is of; hashes of other sources differ without a change."""
    sampling = json.loads(settings[2])
    return str(sampling.get("queries", "")) if isinstance(sampling, dict) else ""


def _is_replaced(image: str, attempt: Attempt, folder: Path) -> bool:
    """Whether the file is another than the one of the row; one that cannot be read is."""
    if attempt.image_hash is None:
        return False
    try:
        return content_hash(read_image_file(image, folder)) != attempt.image_hash
    except SkippedSample:
        return True
