"""`python -m grain_jax.evaluate --watch`: a run that trains elsewhere, measured as it goes.

It reads the run's folder and takes no lock. Its results go to a file of its own there, beside those
of the trainer.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grain_jax.buckets import in_bucket
from grain_jax.disk import write_whole
from grain_jax.parallel import processes
from grain_jax.results import METRICS_FILE, Result, read_json_lines
from grain_jax.training.run_folder import FOLDER, complete_steps, read_metadata

FILE = "watch_results.jsonl"  # in the run folder: as results.jsonl, with "watch" in each line
POLL_SECONDS = 20.0
IDLE_MINUTES = 60
REMOVAL_SECONDS = 10.0  # that a checkpoint may take to be gone for good


def check_watch(run: Path, *, checkpoints: int, given: Collection[str]) -> None:
    """Raises ValueError for what cannot be watched; `given`: options of one step."""
    if given:
        raise ValueError(
            f"--{sorted(given)[0]} is of one checkpoint, and --watch measures each; leave one out."
        )
    if checkpoints > 1:
        raise ValueError(f"--watch follows one run, and {checkpoints} checkpoints are given.")
    if processes.are_many():
        raise ValueError("--watch is one process; give it a machine of its own.")
    if in_bucket(run):
        raise ValueError(f"{run} is in a bucket, and --watch follows a folder; mount it here.")
    if not run.is_dir():
        raise ValueError(f"There is no run folder {str(run)!r} to watch yet; start the run first.")


def watch(
    run: Path,
    measure: Callable[[int], Sequence[Result]],
    *,
    watched: str,
    idle_minutes: int | None,
    note: Callable[[str], None],
) -> list[tuple[int, Sequence[Result]]]:
    """Measures each checkpoint as it appears, and appends the results to `FILE`; returns them.

    `watched` says what is measured: steps that the file has by it are left out. A checkpoint that
    the trainer removes meanwhile is skipped. Returns when the run has ended.
    """
    found = []
    for step in follow(run, done=measured(run, watched), idle_minutes=idle_minutes, note=note):
        try:
            results = measure(step)
        except Exception:
            if not _removed(run, step):
                raise
            note(f"the checkpoint of step {step} was removed before it was measured.")
            continue
        append(run, step, results, watched=watched)
        found.append((step, results))
    return found


def follow(
    run: Path,
    *,
    done: Collection[int],
    idle_minutes: int | None,
    note: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Any] = time.sleep,
) -> Iterator[int]:
    """The steps of complete checkpoints in order, as they appear, without those that are `done`.

    Ends when the newest is the run's last step, or when nothing in the folder has changed for
    `idle_minutes` (None: `IDLE_MINUTES`).
    """
    seen, idle = set(done), 60 * (idle_minutes or IDLE_MINUTES)
    state, changed = None, clock()
    while True:
        if new := [step for step in complete_steps(run / FOLDER) if step not in seen]:
            seen.add(new[0])
            yield new[0]
            changed = clock()
            continue
        if (last := _last_step(run)) is not None and last in seen:
            note(f"the run has ended at step {last}.")
            return
        if (now := _state(run)) != state:
            state, changed = now, clock()
        elif clock() - changed >= idle:
            note(f"nothing in {run} has changed for {idle // 60} minutes: the run has stopped.")
            return
        sleep(POLL_SECONDS)


def measured(run: Path, watched: str) -> set[int]:
    """Steps that were measured by `watched` before."""
    return {line["step"] for line in read_json_lines(run / FILE) if line.get("watch") == watched}


def append(run: Path, step: int, results: Sequence[Result], *, watched: str) -> None:
    """All results of a step or none. Raises OSError."""
    path = run / FILE
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = (json.dumps({"step": step, "watch": watched} | asdict(result)) for result in results)
    write_whole(path, before + "".join(f"{line}\n" for line in lines))


def _last_step(run: Path) -> int | None:
    """The step at which the run ends, where it has a checkpoint; else None."""
    if not (steps := complete_steps(run / FOLDER)):
        return None
    try:
        last = read_metadata(run / FOLDER, steps[-1])["config"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):  # removed meanwhile
        return None
    return steps[-1] if steps[-1] >= last else None


def _state(run: Path) -> tuple[Any, ...]:
    """What changes while a run trains."""
    try:
        logged = (run / METRICS_FILE).stat().st_mtime_ns
    except OSError:
        logged = None
    folder = run / FOLDER
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return logged, *names


def _removed(run: Path, step: int) -> bool:
    """Whether the checkpoint is gone; one that is being removed may still look complete."""
    end = time.monotonic() + REMOVAL_SECONDS
    while step in complete_steps(run / FOLDER):
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True
