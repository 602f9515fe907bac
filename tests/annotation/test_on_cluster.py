"""A stage in workers: how many there are, what one of them does, and what of those that die."""

import functools
import os
from pathlib import Path

import pytest
from marking_stage import Marking, caption_of, open_marking
from ray_machines import ray_machines

pytest.importorskip("pyarrow")

import grain_jax
from grain_jax.annotation.on_cluster import (
    OnCluster,
    StageWorker,
    WorkerPlan,
    paths_of,
    plan_workers,
)
from grain_jax.annotation.run import StageReport, StageSpec, StageStopped, run_stage
from grain_jax.cluster import Cluster, Machine, connected, look_at, size_of
from grain_jax.data.annotation_files import StageFiles
from grain_jax.data.annotation_rows import Row

THREE = WorkerPlan(3, 1, 0.0)


def cluster(*machines: tuple[int, int]) -> Cluster:
    """A cluster of machines of so many cores and GPUs."""
    return Cluster(tuple(Machine(f"n{i}", f"10.0.0.{i}", *each) for i, each in enumerate(machines)))


@pytest.mark.parametrize(
    ("machines", "count", "gpus", "uses_gpu", "expected"),
    [
        (((8, 0), (8, 0)), None, None, True, WorkerPlan(2, 8, 0.0)),
        (((8, 0), (8, 0)), 4, None, True, WorkerPlan(4, 4, 0.0)),
        (((8, 0), (8, 0)), 3, None, False, WorkerPlan(3, 4, 0.0)),
        (((8, 0), (2, 0)), 2, None, False, WorkerPlan(2, 4, 0.0)),
        (((0, 0), (8, 0), (8, 0)), None, None, False, WorkerPlan(2, 8, 0.0)),
        (((16, 4), (16, 4)), None, None, True, WorkerPlan(8, 1, 1.0)),
        (((16, 4), (16, 4)), None, None, False, WorkerPlan(2, 16, 0.0)),
        (((16, 4), (16, 4)), None, 0.0, True, WorkerPlan(2, 16, 0.0)),
        (((16, 4), (16, 4)), None, 0.5, True, WorkerPlan(16, 1, 0.5)),
        (((16, 3), (16, 3)), None, 2.0, True, WorkerPlan(2, 1, 2.0)),
        (((16, 4), (16, 0)), 3, None, True, WorkerPlan(3, 1, 1.0)),
        (((2, 4), (16, 4)), None, None, True, WorkerPlan(6, 1, 1.0)),
        (((2, 4), (0, 4)), None, 0.1, True, WorkerPlan(2, 1, 0.1)),
        (((99, 3),), None, 0.3, True, WorkerPlan(9, 1, 0.3)),
    ],
)
def test_how_many_workers_there_are(machines, count, gpus, uses_gpu, expected):
    found = plan_workers(cluster(*machines), count=count, gpus=gpus, uses_gpu=uses_gpu)
    assert found == expected
    if not found.gpus:  # all of them find room at once
        assert sum(cores // found.cpus for cores, _ in machines) >= found.count


@pytest.mark.parametrize(
    ("machines", "count", "gpus", "said"),
    [
        (((8, 0),), None, 1.0, "--num_gpus=1"),
        (((8, 3), (8, 3)), 3, 2.0, "has room for 2 on 6 GPUs"),
        (((2, 4),), 3, None, "has room for 2 on 4 GPUs and 2 cores"),
        (((4, 0), (4, 0)), 9, None, "--workers=9"),
        (((0, 0),), None, None, "--workers=1"),
    ],
)
def test_more_than_the_cluster_has_is_refused(machines, count, gpus, said):
    with pytest.raises(ValueError, match=said):
        plan_workers(cluster(*machines), count=count, gpus=gpus, uses_gpu=True)


@pytest.mark.parametrize("gone", ["a.png", "inner/b.png", "c.png"])
def test_a_machine_that_lacks_one_of_the_first_images_is_named(tmp_path, monkeypatch, gone):
    names = ["a.png", "inner/b.png", "c.png"]
    (tmp_path / "inner").mkdir()
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    sizes = {key: (str(path), size_of(path)) for key, path in paths_of(tmp_path, names).items()}
    assert look_at(str(tmp_path), grain_jax.__version__, sizes, None) == ""
    (tmp_path / gone).unlink()
    said = look_at(str(tmp_path), grain_jax.__version__, sizes, None)
    assert f"does not see --images/{gone}={tmp_path / gone}" in said


def opened(tmp_path, *, stops=()) -> StageWorker:
    worker = StageWorker()
    open_stage = functools.partial(open_marking, frozenset(), frozenset(stops))
    said = worker.open(str(tmp_path), {"GRAIN_JAX_TEST_KEY": "17"}, open_stage)
    assert said.settings == Marking.settings
    assert said.images_ahead == Marking.images_ahead
    return worker


def take(worker: StageWorker, images: list[str], *, last: bool) -> tuple[list[Row], list]:
    """All rows of some images, and every answer."""
    answers = [worker.exchange(images, last)]
    rows = list(answers[0].rows)
    while len(rows) < len(images) or (last and not answers[-1].ended):
        answers.append(worker.exchange([], False))
        rows += answers[-1].rows
    return rows, answers


def test_a_worker_has_sessions(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAIN_JAX_TEST_KEY", "")
    monkeypatch.chdir(tmp_path)
    worker = opened(tmp_path)
    assert os.environ["GRAIN_JAX_TEST_KEY"] == "17"
    rows, answers = take(worker, ["a", "b", "c"], last=False)
    assert [row.image for row in rows] == ["a", "b", "c"]
    assert [row.outputs["captions"] for row in rows] == [[caption_of(each)] for each in "abc"]
    assert len(answers[0].notes) == 1
    assert not answers[-1].ended
    assert worker.exchange([], True).ended
    rows, answers = take(worker, ["d"], last=True)
    assert [row.image for row in rows] == ["d"]
    assert answers[-1].measured == {"rows made": 4.0}
    assert all(answer.notes == [] for answer in answers)


def test_rows_before_an_error_are_not_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker = opened(tmp_path, stops=["c"])
    rows = worker.exchange(["a", "b", "c", "d"], True).rows
    while len(rows) < 2:
        rows += worker.exchange([], False).rows
    assert [row.image for row in rows] == ["a", "b"]
    with pytest.raises(StageStopped, match="stopped at c"):
        worker.exchange([], False)


@pytest.fixture(scope="module")
def joined():
    pytest.importorskip("ray")
    with ray_machines(2, 1, gpus=1) as address, connected(address) as found:
        yield found


def run(
    joined,
    folder: Path,
    notes: list[str],
    *,
    fatal=(),
    stops=(),
    plan=THREE,
) -> StageReport:
    """The stage over 50 images."""
    (folder / "images").mkdir()
    for number in range(50):
        (folder / "images" / f"{number:02d}.png").touch()
    open_stage = functools.partial(open_marking, frozenset(fatal), frozenset(stops))
    with OnCluster(
        "describe",
        lambda image: None,
        open_stage,
        images=folder / "images",
        cluster=joined,
        plan=plan,
        environment={},
        note=notes.append,
    ) as stage:
        return run_stage(stage, StageSpec(folder / "images", folder / "annotations"))


def rows_in(folder: Path) -> dict[str, Row]:
    files = StageFiles(folder / "annotations", "describe")
    rows = [files.row(index) for index in range(len(files))]
    found = {row.image: row for row in rows}
    assert len(found) == len(rows), "an image has two rows"
    return found


@pytest.mark.slow
@pytest.mark.multiprocess
def test_images_that_kill_their_worker_are_rows_with_errors(joined, tmp_path):
    notes: list[str] = []
    report = run(joined, tmp_path, notes, fatal=["07.png", "31.png"])
    assert report.rows == 50
    found = rows_in(tmp_path)
    assert {image for image, row in found.items() if row.error} == {"07.png", "31.png"}
    assert all((row.error or "worker died").startswith("worker died") for row in found.values())
    for image, row in found.items():
        if not row.error:
            assert row.outputs["captions"] == [caption_of(image)]
    assert sum("another one takes its place" in note for note in notes) >= 4
    assert any("is open" in note for note in notes)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_each_worker_has_a_gpu_of_its_own(joined, tmp_path):
    plan = plan_workers(joined, count=None, gpus=None, uses_gpu=True)
    assert plan == WorkerPlan(2, 1, 1.0)
    notes: list[str] = []
    assert run(joined, tmp_path, notes, plan=plan).rows == 50
    assert len(rows_in(tmp_path)) == 50
    # The first GPU of either machine; a worker that has no images says nothing.
    assert notes
    assert all(note.endswith("with the GPUs '0'") for note in notes)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_what_stops_a_worker_stops_the_run_with_its_name(joined, tmp_path):
    with pytest.raises(StageStopped, match=r"worker \d on .*: stopped at 20.png"):
        run(joined, tmp_path, [], stops=["20.png"])
    assert "20.png" not in rows_in(tmp_path)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_workers_that_only_die_stop_the_run(joined, tmp_path, monkeypatch):
    monkeypatch.setattr("grain_jax.annotation.deaths.MAX_DEATHS", 4)
    everything = [f"{number:02d}.png" for number in range(50)]
    with pytest.raises(StageStopped, match="4 workers died one after the other"):
        run(joined, tmp_path, [], fatal=everything)
