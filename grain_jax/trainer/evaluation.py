"""A run is evaluated: between its steps, and at its end on everything held out."""

from grain_jax.data.source import data_source
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.report import write_report
from grain_jax.evaluation.suite import best_metric_name, evaluate
from grain_jax.evaluation.tables import print_results
from grain_jax.parallel import processes, sharding
from grain_jax.parallel.processes import StopSignals
from grain_jax.terminal import may_be_gone
from grain_jax.trainer.run import Run, RunStopped, StoppedAlone, save_before_stopping
from grain_jax.training import metrics, run_folder
from grain_jax.training.progress import Screen, duration
from grain_jax.training.state import count_parameters


def score(run: Run, step: int) -> float | None:
    """Measures what is held out, and returns what decides on keep_best; None without such data."""
    encoder = run.encoder.with_params(run.state.inference_params)
    try:
        with sharding.use_mesh(run.mesh):
            results = evaluate(encoder, run.config, final=False, note=lambda _: None)
    except ValueError as error:
        if (stopped := stopped_by(error)) is RunStopped:  # a save takes all processes
            save_before_stopping(run)
        raise stopped(f"the evaluation at step {step} failed: {error} {run.kept()}") from error
    run.log.write_results(step, results)
    measured = {result.key: result.value for result in results}
    name = best_metric_name(run.config)
    if name and name not in measured and run.config.checkpoint.keep_best:
        save_before_stopping(run)
        raise RunStopped(
            f"{name!r}, by which keep_best goes, could be measured when the run began and cannot "
            f"any more: the data has changed. {run.kept()}"
        )
    # The last bit may differ between machines, and a save that only some begin waits for ever.
    return processes.from_first(measured.get(name))


def stopped_by(error: ValueError) -> type[RunStopped]:
    """How to stop after an evaluation's error: with all processes, or alone."""
    known_to_all = isinstance(error, processes.FailedInAll) or not processes.are_many()
    return RunStopped if known_to_all else StoppedAlone


def finish(run: Run, screen: Screen, signals: StopSignals) -> None:
    """Evaluates the trained weights on everything held out; writes and prints the report."""
    report = run.files.folder / "report.md"
    if run.start_step >= run.last_step and processes.from_first(report.exists()):
        screen.say(
            f"This run is finished (step {run.start_step}); its report is "
            f"{run.files.address(report)}. For a new run give another --workdir."
        )
        return
    screen.say("Evaluating ...")
    encoder = run.encoder.with_params(run.state.inference_params, learned=run.learned)
    with sharding.use_mesh(run.mesh), signals.interrupting():
        try:
            details = ResultDetails()
            results = evaluate(encoder, run.config, final=True, note=screen.say, details=details)
            run.log.write_results(int(run.state.step), results)
            written = write_report(
                run.files.folder,
                run.config,
                results,
                encoder=encoder,
                facts=facts(run),
                details=details,
            )
            run.files.publish(wait=True)
        except ValueError as error:
            stopped = stopped_by(error)
            raise stopped(f"the final evaluation failed: {error} {run.kept()}") from error
    data = data_source(run.config.data, image_size=run.config.model.image_size)
    with may_be_gone():
        print_results(results, screen.console, headline=data.headline(results))
    shown = [run.files.address(path) for path in [*written, run.files.folder / metrics.FILE]]
    for path in [*shown, run.workdir / run_folder.FOLDER]:
        screen.say(str(path))


def facts(run: Run) -> dict[str, str]:
    """What the report says of the training."""
    shape = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    return {
        "training images": f"{len(run.source):,}",
        "steps": f"{int(run.state.step):,} of {run.steps:,}",
        "training time": f"{duration(run.seconds)}, without compiling and evaluating",
        "parameters": f"{count_parameters(run.state.params):,}",
        "nonfinite steps": str(int(run.state.nonfinite_steps)),
        "mesh": shape,
        "commit": run.checkpoints.commit or "of an installed package",
    }
