"""What the commands of all stages share: options, a dry run, workers, progress, report, status."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import arg

from grain_jax.annotation.on_cluster import OnCluster, plan_workers
from grain_jax.annotation.run import (
    Annotator,
    Selection,
    StageReport,
    StageSpec,
    StageStopped,
    plan_stage,
    run_stage,
)
from grain_jax.annotation.shards import WHOLE, Shard, read_shard
from grain_jax.cluster import ClusterFailed, check_address, cluster_address, connected
from grain_jax.command_line import (
    ExitStatus,
    NotParsed,
    OptionalCount,
    RequiredPath,
    default_is,
    one_word,
    parse,
    print_error,
    progress_bar,
)

ROWS_KEPT = "all finished rows are kept"
Note = Callable[[str], None]


def _gpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 <= value < 1 or (value < 1000 and value == int(value))):  # as Ray gives them out
        raise ValueError(f"{text!r} should be 0, a fraction such as 0.5, or a whole number")
    return value


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The options that every stage has."""

    images: Annotated[RequiredPath, arg(metavar="DIR")]  # folder of images, with its subfolders
    # of n processes that share the images, this is the i-th: 0/n to n-1/n
    shard: Annotated[Shard, one_word(read_shard, "i/n"), default_is("all images")] = WHOLE
    # also images whose last row is an error
    retry_errors: bool = False
    # also images whose row was made by another model, with other prompts, queries or sampling
    redo_changed: bool = False
    # also images whose file was replaced since; reads every file first
    redo_replaced: bool = False
    # work on a Ray cluster: "auto" for the one of this machine, or its address
    ray: Annotated[
        str | None, one_word(cluster_address, "auto|HOST:PORT"), default_is("this process alone")
    ] = None
    # processes of the cluster
    workers: Annotated[OptionalCount, default_is("one a GPU, else one a machine")] = None
    # of each worker; 0.5 puts two on one
    num_gpus: Annotated[
        float | None,
        one_word(_gpus, "X"),
        default_is("1 where a model is loaded and there are any"),
    ] = None
    # count images and what they would take, on this machine, and do nothing
    dry_run: bool = False

    def spec(self, output: Path) -> StageSpec:
        """What the stage is run on, with its folder of annotations."""
        return StageSpec(
            self.images,
            output,
            self.shard,
            self.retry_errors,
            self.redo_changed,
            self.redo_replaced,
        )


Options = TypeVar("Options", bound=StageOptions)
InputHash = Callable[[str], str | None]


@dataclass(frozen=True)
class WorkerStage:
    """A stage that workers open."""

    input_hash: InputHash  # `Annotator.input_hash` of the stage
    open_stage: Callable[[Note], Annotator]  # pickled, and called in each worker


class StageCommand(ABC, Generic[Options]):
    """What is a stage's own of its command."""

    stage: str  # key of `STAGES`
    options: type[Options]
    description: str | None

    @abstractmethod
    def output(self, options: Options) -> Path:
        """The folder of annotations."""

    @abstractmethod
    def check(self, options: Options, note: Note) -> None:
        """Raises ValueError for options that do not fit together; opens no model."""

    @abstractmethod
    def open_stage(self, options: Options, note: Note) -> Annotator:
        """The stage with its model; the options were checked. `note`: also while it runs."""

    @abstractmethod
    def open_to_plan(self, options: Options, note: Note) -> Annotator:
        """The stage, without its model where its settings are known without."""

    @abstractmethod
    def for_workers(self, options: Options, note: Note) -> WorkerStage:
        """The stage for workers of a cluster, without its model; called before there are any."""

    @abstractmethod
    def uses_gpu(self, options: Options) -> bool:
        """Whether a process that has the stage open makes use of a GPU."""

    def environment(self, options: Options) -> dict[str, str]:
        """Variables that the stage reads wherever it runs."""
        return {}

    @abstractmethod
    def planned(
        self, options: Options, stage: Annotator, selection: Selection
    ) -> Iterator[tuple[str, str]]:
        """Lines of the table of --dry_run."""

    @abstractmethod
    def done(
        self, options: Options, report: StageReport, measured: Mapping[str, float]
    ) -> Iterator[tuple[str, str]]:
        """Lines that the report has more; `measured`: `Annotator.measured`."""


def run_command(command: StageCommand[Options], arguments: Sequence[str] | None) -> int:
    """The command of a stage; returns its exit status."""
    try:
        options = parse(
            command.options,
            arguments,
            command=f"annotate {command.stage}",
            description=command.description,
        )
    except NotParsed as parsed:
        return parsed.status
    console = Console(stderr=True)
    spec = options.spec(command.output(options))

    def say(text: str, style: str = "yellow") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    try:
        _check(command, options)
        command.check(options, say)
        if options.dry_run:
            return _plan(command, options, spec, say)
        return _run(command, options, spec, console, say)
    except (StageStopped, ClusterFailed) as stopped:
        say(f"Stopped: {stopped}", "red")
        return ExitStatus.STOPPED
    except (ValueError, OSError, ImportError) as error:
        return print_error(error, console, folder=spec.output, kept=ROWS_KEPT)
    except KeyboardInterrupt:
        console.print(f"Stopped. The same command continues; {ROWS_KEPT}.")
        return ExitStatus.INTERRUPTED


def _check(command: StageCommand[Options], options: Options) -> None:
    for name in ("workers", "num_gpus"):
        if options.ray is None and getattr(options, name) is not None:
            raise ValueError(f"--{name} is for --ray; give both, or neither.")
    if options.num_gpus and not command.uses_gpu(options):
        raise ValueError(
            f"--num_gpus={options.num_gpus:g} is for workers with a model on a GPU, and these "
            "options put none there; leave it out."
        )


def _plan(command: StageCommand[Options], options: Options, spec: StageSpec, note: Note) -> int:
    if options.ray is not None:
        check_address(options.ray)
    stage = command.open_to_plan(options, note)
    selection = plan_stage(stage, spec)
    counts = [(name, f"{count:,}") for name, count in selection_rows(selection)]
    _print_table("Dry run", [*counts, *command.planned(options, stage, selection)])
    return ExitStatus.DONE


def _run(
    command: StageCommand[Options], options: Options, spec: StageSpec, console: Console, note: Note
) -> int:
    with (
        _opened(command, options, note) as stage,
        progress_bar(console, command.stage, state="looking for images") as advance,
    ):

        def show(report: StageReport) -> None:
            parts = [f"{report.failed.total()} failed"]
            if report.seconds:
                parts.insert(0, f"{report.rows / report.seconds:.1f}/s")
            if tokens := report.totals.total():
                parts.append(f"{tokens:,} tokens")
            advance(report.rows, len(report.selection.images), ", ".join(parts))

        report = run_stage(stage, spec, progress=show, note=note)
        measured = stage.measured()
    print_report(report, spec, [*command.done(options, report, measured)])
    nothing = report.rows and report.failed.total() == report.rows
    return ExitStatus.SKIPPED if nothing else ExitStatus.DONE


@contextlib.contextmanager
def _opened(command: StageCommand[Options], options: Options, note: Note) -> Iterator[Annotator]:
    """The stage in this process, or in workers of a cluster."""
    if options.ray is None:
        yield command.open_stage(options, note)
        return
    with connected(options.ray) as cluster:
        plan = plan_workers(
            cluster,
            count=options.workers,
            gpus=options.num_gpus,
            uses_gpu=command.uses_gpu(options),
        )
        of_workers = command.for_workers(options, note)
        with OnCluster(
            command.stage,
            of_workers.input_hash,
            of_workers.open_stage,
            images=options.images,
            cluster=cluster,
            plan=plan,
            environment=command.environment(options),
            note=note,
        ) as stage:
            yield stage


def selection_rows(selection: Selection) -> list[tuple[str, int]]:
    """Lines of a table on the images that a stage finds."""
    return [
        ("images in the folder", selection.listed),
        ("done before", selection.done),
        *([("sent back by audit", selection.sent_back)] if selection.sent_back else []),
        *([("file was replaced", selection.replaced)] if selection.replaced else []),
        *((f"left out: {reason}", count) for reason, count in selection.skipped.most_common()),
    ]


def print_report(report: StageReport, spec: StageSpec, more: Sequence[tuple[str, str]]) -> None:
    """Prints what a run did, and what the same or another command would do next."""
    rows = [(name, f"{count:,}") for name, count in selection_rows(report.selection)]
    rows.append(("done now", f"{report.rows - report.failed.total():,}"))
    rows += [(f"failed now: {why}", f"{count:,}") for why, count in report.failed.most_common()]
    if report.rows and report.seconds:
        rows.append(("images a second", f"{report.rows / report.seconds:.1f}"))
    _print_table(str(spec.output), [*rows, *more])
    lines = [f"  failed: {example}" for example in report.examples]
    if failed := report.failed.total() + report.selection.failed:
        lines.append(
            f"{failed:,} images have a row with an error; the same command with --retry_errors "
            "tries them again."
        )
    if report.selection.changed:
        lines.append(
            f"{report.selection.changed:,} rows were made by another model, or with other prompts, "
            "queries or sampling, and are kept; --redo_changed makes them anew."
        )
    for line in lines:
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    table = Table(title=escape(title), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(escape(name), value)
    Console().print(table)
