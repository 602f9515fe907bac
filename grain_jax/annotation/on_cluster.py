"""A stage on the machines of a Ray cluster: workers make rows, and one writer keeps them.

Each worker is a process that opens the stage once and is given images while it works on others, so
that none waits for a whole batch. Rows come back to the process that gave them out, which writes
them as if it had made them. A worker that dies is replaced and its images are dealt again.
"""

import itertools
import math
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grain_jax.annotation.dealing import Dealer
from grain_jax.annotation.deaths import Deaths
from grain_jax.annotation.run import Annotator, StageStopped
from grain_jax.cluster import (
    Cluster,
    Machine,
    enter,
    import_ray,
    last_line,
    original,
    require_same_files,
)
from grain_jax.data.annotation_rows import Provenance, Row

Note = Callable[[str], None]
CHECKED_IMAGES = 3  # that every machine has to see as this one does
WAIT_SECONDS = 60.0  # for a first worker, until a line says so


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers there are, and what Ray reserves for each."""

    count: int
    cpus: int
    gpus: float


def plan_workers(
    cluster: Cluster, *, count: int | None, gpus: float | None, uses_gpu: bool
) -> WorkerPlan:
    """Workers for a cluster.

    Args:
        count: None for one on each GPU that has a core beside it, or on each machine with cores
            where none is used.
        gpus: of each worker; None for one where the cluster has any and the stage uses it.

    Raises ValueError for more than the cluster has.
    """
    if gpus is None:
        gpus = 1.0 if uses_gpu and cluster.gpus else 0.0
    if gpus:
        places = sum(_room_on(machine, gpus) for machine in cluster.machines)
        if (count or 1) > places:
            raise ValueError(
                f"--num_gpus={gpus:g} and a core for each of {count or 1} workers, and the cluster "
                f"has room for {places} on {cluster.gpus} GPUs and {cluster.cpus} cores; give "
                "fewer --workers, or a fraction of a GPU."
            )
        return WorkerPlan(count or places, 1, gpus)
    cores = sorted(machine.cpus for machine in cluster.machines if machine.cpus)
    count = count or max(1, len(cores))
    if count > cluster.cpus:
        raise ValueError(
            f"--workers={count} take a core each, and the cluster has {cluster.cpus}; give fewer."
        )
    cpus = next(
        cpus for cpus in range(cores[-1], 0, -1) if sum(each // cpus for each in cores) >= count
    )
    return WorkerPlan(count, cpus, 0.0)


def _room_on(machine: Machine, gpus: float) -> int:
    """Workers of so many GPUs and a core each; a fraction is of one GPU."""
    on_gpus = machine.gpus * math.floor(1 / gpus) if gpus < 1 else math.floor(machine.gpus / gpus)
    return min(on_gpus, machine.cpus)


def paths_of(folder: Path, images: Sequence[str]) -> dict[str, Path]:
    """Paths of images as `require_same_files` takes them, each with the name that it has there."""
    return {f"--images/{name}": folder / name for name in images}


@dataclass(frozen=True)
class Opened:
    """What a worker says when its stage is open."""

    settings: tuple[str, str, str]
    images_ahead: int
    machine: str


@dataclass(frozen=True)
class Made:
    """What a worker has made since it was asked last."""

    rows: list[Row] = field(default_factory=list)
    ended: bool = False  # the session
    notes: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)  # since its stage was opened


class StageWorker:
    """What runs in a process of the cluster; its methods are called one at a time."""

    def __init__(self) -> None:
        self._stage: Annotator | None = None
        self._images: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._running = False
        self._error: BaseException | None = None

    def open(
        self, folder: str, environment: Mapping[str, str], open_stage: Callable[[Note], Annotator]
    ) -> Opened:
        """Opens the stage, as in `folder` and with these variables of the environment."""
        enter(folder)
        os.environ.update(environment)
        self._stage = open_stage(self._notes.put)
        return Opened(self._stage.settings, self._stage.images_ahead, os.uname().nodename)

    def exchange(self, images: list[str], last: bool) -> Made:
        """Gives images and takes the rows that are there, of which it waits for the first."""
        if self._error is not None:
            raise self._error
        if not self._running:
            self._images = queue.SimpleQueue()
            threading.Thread(target=self._run, name="stage", daemon=True).start()
            self._running = True
        for image in [*images, *([None] if last else [])]:
            self._images.put(image)
        rows: list[Row] = []
        while not rows or not self._found.empty():
            found = self._found.get()
            if found is None:
                self._running = False
                break
            if isinstance(found, BaseException):
                self._error = found
                if not rows:
                    raise found
                break
            rows.append(found)
        return Made(rows, not self._running, list(self._told()), self._measured())

    def _told(self) -> Iterator[str]:
        while not self._notes.empty():
            yield self._notes.get()

    def _measured(self) -> dict[str, float]:
        assert self._stage is not None
        return dict(self._stage.measured())

    def _run(self) -> None:
        assert self._stage is not None
        try:
            with closing(self._stage.rows(iter(self._images.get, None))) as rows:
                for row in rows:
                    self._found.put(row)
        except BaseException as error:
            self._found.put(error)
        else:
            self._found.put(None)


@dataclass
class _Place:
    """A worker, or the one that replaces it."""

    number: int
    actor: Any = None
    opened: Opened | None = None
    measured: dict[str, float] = field(default_factory=dict)


class OnCluster:
    """An `Annotator` whose rows are made by workers; a context manager, which ends them.

    Args:
        stage, input_hash: of the stage.
        open_stage: opens it in a worker; pickled.
        images: folder of the images.
        environment: variables that the workers get, not by way of Ray's own records.
        note: called with sentences on workers.

    Entering it raises what opening the stage in a worker does, and ValueError where a machine does
    not see the files.
    """

    def __init__(
        self,
        stage: str,
        input_hash: Callable[[str], str | None],
        open_stage: Callable[[Note], Annotator],
        *,
        images: Path,
        cluster: Cluster,
        plan: WorkerPlan,
        environment: Mapping[str, str],
        note: Note,
    ) -> None:
        self.stage, self.input_hash = stage, input_hash
        self.settings = ("", "", "")
        self._open_stage, self._environment, self._note = open_stage, environment, note
        self._folder, self._cluster, self._plan = images, cluster, plan
        self._places = [_Place(number) for number in range(plan.count)]
        self._calls: dict[Any, _Place] = {}
        self._deaths = Deaths(plan.count)
        self._measured_before: list[dict[str, float]] = []  # of workers that are no more

    def __enter__(self) -> "OnCluster":
        self._ray = import_ray()
        require_same_files(self._cluster, {"--images": self._folder}, shared=None)
        for place in self._places:
            self._start(place)
        while not any(place.opened for place in self._places):
            self._next_call(None)
        return self

    def __exit__(self, *error: object) -> None:
        for place in self._places:
            self._end(place)

    @property
    def images_ahead(self) -> int:
        """See `Annotator.images_ahead`: of all workers."""
        return sum(place.opened.images_ahead for place in self._places if place.opened)

    def measured(self) -> dict[str, float]:
        """See `Annotator.measured`: of all workers together."""
        each = [*self._measured_before, *(place.measured for place in self._places)]
        names = dict.fromkeys(itertools.chain.from_iterable(each))
        return {name: sum(one.get(name, 0.0) for one in each) for name in names}

    def rows(self, images: Iterator[str], /) -> Generator[Row, None, None]:
        """Rows in the order in which workers are done with the images."""
        first = list(itertools.islice(images, CHECKED_IMAGES))
        require_same_files(self._cluster, paths_of(self._folder, first), shared=None)
        dealer = Dealer(itertools.chain(first, images))
        while True:
            self._give_out(dealer)
            if dealer.is_over:
                return
            yield from self._next_call(dealer)

    def _give_out(self, dealer: Dealer) -> None:
        calling = {place.number for place in self._calls.values()}
        for place in self._places:
            if place.opened is None or place.number in calling:
                continue
            given = dealer.deal(place.number, place.opened.images_ahead)
            if given is not None:
                self._calls[place.actor.exchange.remote(*given)] = place

    def _next_call(self, dealer: Dealer | None) -> list[Row]:
        """Waits for a call of any worker and returns its rows. Raises what stops the run."""
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=WAIT_SECONDS)
        if not ready:
            if not any(place.opened for place in self._places):
                self._note("No worker has begun yet; Ray may be waiting for cores or GPUs.")
            return []
        place = self._calls.pop(ready[0])
        try:
            found = self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            self._refuse(place, original(error))
        except self._ray.exceptions.RayError as error:
            return self._replace(place, last_line(error), dealer)
        if isinstance(found, Opened):
            self._join(place, found)
            return []
        assert dealer is not None
        if found.rows:
            self._deaths.made_row(place.number)
        place.measured = found.measured
        for note in found.notes:
            self._note(f"{self._name(place)}: {note}")
        rows = [row for row in found.rows if dealer.done(place.number, row.image)]
        if found.ended:
            dealer.ended(place.number)
        return rows

    def _start(self, place: _Place) -> None:
        worker = self._ray.remote(StageWorker).options(
            num_cpus=self._plan.cpus, num_gpus=self._plan.gpus, scheduling_strategy="SPREAD"
        )
        place.actor, place.opened = worker.remote(), None
        # By a call of its own: what a worker is made with is kept in Ray's records.
        opening = place.actor.open.remote(os.getcwd(), dict(self._environment), self._open_stage)
        self._calls[opening] = place

    def _join(self, place: _Place, opened: Opened) -> None:
        """Raises ValueError for a worker whose rows would not be comparable."""
        if not any(self.settings):
            self.settings = opened.settings
        if opened.settings != self.settings:
            raise ValueError(
                f"A worker on {opened.machine} would make rows with {opened.settings}, and others "
                f"with {self.settings}; give options such as --dtype that are the same on all."
            )
        place.opened = opened
        self._deaths.opened(place.number)

    def _replace(self, place: _Place, why: str, dealer: Dealer | None) -> list[Row]:
        """A new worker in the place of one that died, unless that stays empty; a row for an image
        that was given up.
        """
        name, was_open = self._name(place), place.opened is not None
        self._end(place)
        self._measured_before.append(place.measured)
        place.measured = {}
        given_up = None if dealer is None else dealer.died(place.number)
        if self._deaths.is_replaced(place.number, why, was_open=was_open):
            self._note(f"{name} died ({why}); another one takes its place.")
            self._start(place)
        else:
            self._note(
                f"{name} died ({why}) time and again without a row; its place stays empty, with "
                f"{self._deaths.places_left} of {self._plan.count} workers left."
            )
        return [] if given_up is None else [self._failed_row(given_up, why)]

    def _failed_row(self, image: str, why: str) -> Row:
        model, prompt_hash, sampling = self.settings
        error = f"worker died: {why}"
        hashed = self.input_hash(image)
        return Row(
            image, None, Provenance(model, prompt_hash, sampling), {}, error, input_hash=hashed
        )

    def _refuse(self, place: _Place, error: BaseException) -> None:
        """Raises what a worker raised, with its name."""
        where = self._name(place)
        if isinstance(error, StageStopped):
            raise StageStopped(f"{where}: {error}") from None
        for kind in (ValueError, ImportError):
            if isinstance(error, kind):
                raise kind(f"{where}: {error}") from None
        if isinstance(error, self._ray.exceptions.RayError):  # what was sent cannot be read there
            raise ValueError(f"{where} cannot begin: {last_line(error)}") from None
        raise error

    def _name(self, place: _Place) -> str:
        on = f" on {place.opened.machine}" if place.opened else ""
        return f"worker {place.number}{on}"

    def _end(self, place: _Place) -> None:
        if place.actor is not None:
            self._ray.kill(place.actor)
        place.actor = place.opened = None
