"""Checkpoints: all that a run needs to go on, and all that its weights need to be used elsewhere.

`checkpoints/<step>/` holds `params`, `ema_params` (when averaging is on), `optimizer` and
`metadata`, a JSON file with the resolved configuration, preprocessing, tokenizer, prompt templates
and code version. A step's folder gets its name only when it is whole, so that a killed save leaves
nothing that could be taken for a checkpoint.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from grain_jax.buckets import Unreachable, failed_for_now, in_bucket
from grain_jax.config import CheckpointConfig, TrainConfig
from grain_jax.config.migration import STATE
from grain_jax.models.bundle import ModelBundle, from_metadata
from grain_jax.models.image_text import model_of_run
from grain_jax.models.learned import Learned
from grain_jax.parallel.processes import device_error, errors_in_all, from_first
from grain_jax.parallel.sharding import parameter_shardings
from grain_jax.paths import AnyPath, absolute, run_path
from grain_jax.training.moments import as_stored, with_moments_of
from grain_jax.training.run_folder import (
    ENDED,
    FOLDER,
    METADATA,
    STARTED,
    checkpoints,
    complete_steps,
    read_metadata,
    stored_steps,
)
from grain_jax.training.state import TrainState, abstract_boxed_params

SECONDS_TO_SHOW = 60  # that a shared file system may take to show a file to another machine


def load(
    path: str | AnyPath, *, step: int | None = None, best: bool = False, mesh: Mesh | None = None
) -> ModelBundle:
    """The model of a run folder (or its `checkpoints/`): the newest, the best, or that of `step`.

    Reads neither optimizer nor data. With a `mesh`, parameters are split over it as in training.
    Raises ValueError where there is no such checkpoint.
    """
    folder = _checkpoint_folder(run_path(path))
    step = _choose_step(folder, step, best=best)

    def params(config: TrainConfig) -> Any:
        item = "ema_params" if config.optim.ema_decay else "params"
        return _read_params(folder / str(step) / item, model_of_run(config), config, mesh)

    return from_metadata(read_metadata(folder, step), params, step=step)


class SaveFailed(RuntimeError):
    """A checkpoint could not be written, possibly one that was begun some steps ago.

    Not where another process has left in the middle of it: that is a `JaxRuntimeError`.
    """


def latest_in_all(run_folder: AnyPath) -> int | None:
    """The newest whole step of a run folder, the same in every process; None for a new run.

    Process 0 decides. Where the file system shows it to another only later, that one waits. Raises
    ValueError where it does not come: the processes have different folders under this name.
    """
    folder = checkpoints(run_folder)
    own = complete_steps(folder)
    step = from_first(own[-1] if own else None)
    with errors_in_all():
        deadline = time.monotonic() + SECONDS_TO_SHOW
        while complete_steps(folder)[-1:] != ([] if step is None else [step]):
            if time.monotonic() > deadline:
                here = complete_steps(folder)[-1:] or "none"
                raise ValueError(
                    f"The newest checkpoint in {folder} is {'none' if step is None else step} for "
                    f"process 0, and {here} here, {SECONDS_TO_SHOW} s later; expected a "
                    "--workdir that all machines see."
                )
            time.sleep(0.2)
    return step


class Checkpoints:
    """Saves and restores the state of a run; keeps the newest and the best by a held-out metric.

    Every process of a run makes the same calls, with the same scores, as a save waits for all of
    them; each writes and reads its own shards. Scores are stored under the name of their `metric`;
    those of another, of an earlier start, do not count.
    """

    def __init__(
        self,
        run_folder: AnyPath,
        config: CheckpointConfig,
        *,
        metadata: dict[str, Any],
        metric: str = "score",
    ):
        self.folder = checkpoints(run_folder)
        self._metadata = metadata
        self._metric = metric

        def value(metrics: dict[str, float]) -> float:
            return metrics.get(metric, -math.inf)

        if jax.process_index() == 0:  # before the manager looks; the others wait in it for all
            _make_way(self.folder)
        keep: list[Any] = [preservation_policy.LatestN(config.max_to_keep)]
        if config.keep_best:
            best = preservation_policy.BestN(
                get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False
            )
            keep.append(best)
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("params", "ema_params", "optimizer", METADATA),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
                best_fn=value,
                enable_async_checkpointing=config.asynchronous,
            ),
        )

    def latest(self) -> int | None:
        """The newest whole step; None for a new run."""
        steps = complete_steps(self.folder)
        return steps[-1] if steps else None

    def save(self, state: TrainState, *, step: int, score: float | None = None) -> None:
        """Starts to save and returns once the state may be overwritten; a step is saved once.

        `score`: the held-out metric that decides on keep_best, where it was measured at this step.
        Raises `SaveFailed` where this or an earlier save failed.
        """
        self.check()
        if from_first(step in self._manager.all_steps()):
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()} | {
            METADATA: ocp.args.JsonSave(self._metadata)
        }
        with _explained(self.folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(**items),
                metrics=None if score is None else {self._metric: score},
                force=True,
            )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of `step` on the devices of `abstract`, whatever devices wrote it.

        Where other parameters were trained before, those that are trained from here on start with
        moments of 0, and the moments of those that are frozen now are left out. Moments that were
        stored in another type are rounded to the nearest number of this one.
        """
        stored = as_stored(abstract, self.folder / str(step) / "optimizer")
        items = {name: ocp.args.StandardRestore(tree) for name, tree in _items(stored).items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        state = TrainState(
            params=restored["params"],
            ema_params=restored["ema_params"] if "ema_params" in items else None,
            **{name: restored["optimizer"][stored] for name, stored in STATE.items()},
        )
        return state if stored is abstract else with_moments_of(state, abstract)

    def best_score(self) -> float:
        """The highest value of the metric among the saved steps; -inf where none has one.

        As process 0 reads it, for all of them.
        """
        scores = _read_scores(self.folder).values()
        values = (score.get(self._metric, -math.inf) for score in scores)
        return from_first(max(values, default=-math.inf))

    def set_learned(self, learned: Learned) -> None:
        """What the saves from here on say of the decoder."""
        self._metadata = self._metadata | learned.metadata()

    @property
    def commit(self) -> str:
        """Of the code that runs; "" for an installed package."""
        return str(self._metadata["commit"])

    def metadata(self, step: int) -> dict[str, Any]:
        """What was stored with `step`."""
        return read_metadata(self.folder, step)

    def check(self) -> None:
        """Raises `SaveFailed` if a save in the background has failed."""
        with _explained(self.folder):
            self._manager.check_for_errors()

    @property
    def saving(self) -> bool:
        """Whether this process still writes a save in the background."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when the saves of all processes are on disk; `SaveFailed` where one is not."""
        with _explained(self.folder):
            self._manager.wait_until_finished()
        if jax.process_count() > 1:  # a launcher may end all processes once the first has left
            multihost_utils.sync_global_devices("saved")

    def close(self) -> None:
        """Waits, then frees what the saving holds."""
        self._manager.close()


def _make_way(folder: AnyPath) -> None:
    """What has the name of a step and no end mark would block its step.

    On a disk it is put aside: it was half copied, say. In a bucket it is what every killed save
    leaves, and is removed. Raises ValueError where it was saved whole and copied there without its
    end mark, which versions of Orbax do not write on a disk.
    """
    for step in sorted({*stored_steps(folder)} - {*complete_steps(folder)}):
        entry = folder / str(step)
        if not in_bucket(folder):
            entry.rename(entry.with_name(entry.name + ".incomplete"))
            continue
        if _was_committed(entry):
            raise ValueError(
                f"{entry} was saved whole elsewhere and has no {ENDED}, by which a checkpoint in a "
                f"bucket is known to be complete. If it was copied whole, add the mark (`gcloud "
                f"storage cp - {entry / ENDED} < /dev/null`); else remove {entry}."
            )
        entry.rmtree()  # type: ignore[attr-defined]  # of etils's paths


def _was_committed(step: AnyPath) -> bool:
    """Whether Orbax had written all of it when its description was written last."""
    if not (step / STARTED).exists():
        return False
    try:
        stored = json.loads((step / STARTED).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return bool(stored.get("commit_timestamp_nsecs"))


def best_step(folder: AnyPath) -> int | None:
    """The complete step with the highest held-out metric, the later of equals; None without any.

    The metric is that of the newest step that has one: a run may have changed it on the way.
    """
    scores = _read_scores(folder)
    if not scores:
        return None
    names = scores[max(scores)].keys()
    compared = {step: next(iter(s.values())) for step, s in scores.items() if s.keys() == names}
    return max(compared, key=lambda step: (compared[step], step))


def _read_scores(folder: AnyPath) -> dict[int, dict[str, float]]:
    """Complete step -> its metric by name, for the steps that have one."""
    files = {step: folder / str(step) / "metrics" / "metrics" for step in complete_steps(folder)}
    return {
        step: json.loads(file.read_text(encoding="utf-8"))
        for step, file in files.items()
        if file.exists()
    }


@contextlib.contextmanager
def _explained(folder: AnyPath) -> Iterator[None]:
    """What storage raises, as one sentence with its cause.

    Where another process has left, what raises is a barrier of the save: a `JaxRuntimeError`, which
    Orbax hides in a TimeoutError, and which is raised as it was.
    """
    try:
        yield
    except Exception as error:
        if (found := device_error(error)) is not None:
            raise found from found.__cause__
        said = f"a checkpoint could not be written to {folder} ({type(error).__name__}: {error})."
        if in_bucket(folder) and failed_for_now(error):
            raise SaveFailed(said) from Unreachable(str(error))
        raise SaveFailed(f"{said} Check the space and the rights there.") from error


def _items(state: TrainState) -> dict[str, Any]:
    """The parts of a state that are stored, and can be read, on their own."""
    optimizer = {stored: getattr(state, name) for name, stored in STATE.items()}
    average = {} if state.ema_params is None else {"ema_params": state.ema_params}
    return {"params": state.params, "optimizer": optimizer} | average


def _checkpoint_folder(path: AnyPath) -> AnyPath:
    for folder in (path / FOLDER, path):
        if complete_steps(folder):
            return absolute(folder)
    raise ValueError(
        f"There is no checkpoint in {path}; expected a run folder, the --workdir of "
        f"`python -m grain_jax.train`, with a complete step in {FOLDER}/."
    )


def _choose_step(folder: AnyPath, step: int | None, *, best: bool) -> int:
    steps = complete_steps(folder)
    if best and step is not None:
        raise ValueError(f"Give either step={step} or best=True, not both.")
    if best:
        if (chosen := best_step(folder)) is None:
            raise ValueError(
                f"No checkpoint of {folder} carries a held-out metric, so none is best; "
                f"choose one of the steps {steps}."
            )
        return chosen
    if step is not None and step not in steps:
        raise ValueError(f"{folder} has no step {step}; it has {steps}.")
    return steps[-1] if step is None else step


def _read_params(path: AnyPath, model: nn.Module, config: TrainConfig, mesh: Mesh | None) -> Any:
    boxed = abstract_boxed_params(model, config)
    abstract = nn.unbox(boxed)
    if mesh is None:  # to the host first, so that the arrays are not tied to one device
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
    else:
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            parameter_shardings(boxed, mesh),
        )
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(path, target)
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, abstract):
        raise ValueError(f"The weights in {path} do not have the shapes of their configuration.")
    return params if mesh is not None else jax.tree.map(jnp.asarray, params)
