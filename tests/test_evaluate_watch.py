"""A run that is followed: what is measured, what is left out, when it ends."""

import json
import shutil

import pytest

from grain_jax.evaluate_watch import FILE, check_watch, follow, measured, watch
from grain_jax.results import METRICS_FILE, Result, read_results


class Run:
    """A run folder, and a clock on which a minute is one look at it."""

    def __init__(self, folder, *, steps: int):
        self.folder, self.steps, self.now = folder, steps, 0.0
        self.events = {}  # what happens at which look
        self.noted = []
        self.looks = 0

    def save(self, step: int, *, complete: bool = True) -> None:
        place = self.folder / "checkpoints" / str(step)
        (place / "metadata").mkdir(parents=True)
        settings = {"config": {"steps": self.steps}}
        (place / "metadata" / "metadata").write_text(json.dumps(settings), encoding="utf-8")
        if complete:
            (place / "_CHECKPOINT_METADATA").touch()

    def complete(self, step: int) -> None:
        (self.folder / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").touch()

    def log(self) -> None:
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write("{}\n")

    def remove(self, step: int) -> None:
        shutil.rmtree(self.folder / "checkpoints" / str(step))

    def sleep(self, seconds: float) -> None:
        self.now += 60
        self.looks += 1
        self.events.get(self.looks, lambda: None)()

    def followed(self, *, done=(), idle_minutes=None):
        return follow(
            self.folder,
            done=done,
            idle_minutes=idle_minutes,
            note=self.noted.append,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, steps=30)


def test_checkpoints_are_measured_as_they_appear_until_the_last_step(run):
    run.events = {
        1: lambda: run.save(10),
        2: lambda: run.save(20, complete=False),
        4: lambda: run.complete(20),
        6: lambda: run.save(30),
    }
    assert [(step, run.looks) for step in run.followed()] == [(10, 1), (20, 4), (30, 6)]
    assert run.noted == ["the run has ended at step 30."]


def test_a_run_that_has_ended_is_measured_where_it_was_not_yet(run):
    for step in (10, 20, 30):
        run.save(step)
    assert list(run.followed(done={10})) == [20, 30]
    assert list(run.followed(done={10, 20, 30})) == []
    assert run.looks == 0


def test_a_run_that_stands_still_has_stopped(run):
    run.save(10)
    run.events = {4: run.log, 8: run.log}
    assert list(run.followed(idle_minutes=5)) == [10]
    assert run.looks == 8 + 5  # it is alive as long as it logs
    assert "for 5 minutes: the run has stopped" in run.noted[0]


def result(step: int) -> list[Result]:
    return [Result("birds", "name", None, metric, step / 100) for metric in ("top1", "per_class")]


def watched(run, measure, by="one"):
    return watch(run.folder, measure, watched=by, idle_minutes=1, note=run.noted.append)


def test_results_go_to_a_file_of_their_own_and_are_not_measured_again(run):
    for step in (10, 30):
        run.save(step)
    assert [step for step, _ in watched(run, result)] == [10, 30]
    lines = [json.loads(line) for line in (run.folder / FILE).read_text().splitlines()]
    assert [(line["step"], line["metric"]) for line in lines] == [
        (10, "top1"),
        (10, "per_class"),
        (30, "top1"),
        (30, "per_class"),
    ]
    assert lines[0]["value"] == 0.1
    assert read_results(run.folder) == {}  # the trainer's are its own
    assert measured(run.folder, "one") == {10, 30}
    assert watched(run, result) == []
    assert [step for step, _ in watched(run, result, by="other data")] == [10, 30]


def test_a_checkpoint_that_was_removed_is_skipped(run):
    for step in (10, 20, 30):
        run.save(step)

    def measure(step):
        if step == 20:
            run.remove(step)
            raise FileNotFoundError("20")
        return result(step)

    assert [step for step, _ in watched(run, measure)] == [10, 30]
    assert "step 20 was removed before it was measured" in run.noted[0]


def test_any_other_error_ends_it(run, monkeypatch):
    monkeypatch.setattr("grain_jax.evaluate_watch.REMOVAL_SECONDS", 0.0)
    run.save(30)

    def measure(step):
        raise ValueError("no such data")

    with pytest.raises(ValueError, match="no such data"):
        watched(run, measure)
    assert not (run.folder / FILE).exists()


def test_only_a_run_can_be_watched(tmp_path):
    with pytest.raises(ValueError, match="--best is of one checkpoint"):
        check_watch(tmp_path, checkpoints=1, given=["step", "best"])
    with pytest.raises(ValueError, match="follows one run, and 2"):
        check_watch(tmp_path, checkpoints=2, given=[])
    with pytest.raises(ValueError, match="no run folder"):
        check_watch(tmp_path / "none", checkpoints=1, given=[])
    check_watch(tmp_path, checkpoints=1, given=[])
