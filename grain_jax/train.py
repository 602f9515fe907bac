"""Train GRAIN, or its CLIP baseline. Without --config: the built-in demo.

python -m grain_jax.train [--config=FILE.py[:VARIANT]] [--config.SETTING=VALUE ...] [--workdir=DIR]

--config        Python file with get_config(variant); "demo:clip" and "demo:smoke" are built in
--config.A.B=X  override of any setting; --print_config lists them all
--workdir       folder of the run (default: runs/<name>); the same command again goes on with it
--print_config  print the resolved configuration and exit
--distributed   join the processes that JAX detects (Slurm and TPU pods on GKE join without it)
--coordinator=HOST:PORT --num_processes=N --process_id=I   join N processes by hand

Ctrl-C and SIGTERM save, then stop; a second Ctrl-C aborts. Exit status: 0 done, 1 stopped by what
it says (non-finite steps, a save that failed), 2 something to change in the command or the data,
130 or 143 saved and stopped by Ctrl-C or SIGTERM.

On a CPU under Linux the command starts itself again with huge pages, which XLA's steps need much
less time with; GLIBC_TUNABLES=glibc.malloc.hugetlb=0 prevents it.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from absl import flags

from grain_jax.config import TrainConfig, validate
from grain_jax.config_files import config_to_json, parse_arguments
from grain_jax.data.batch import Batch
from grain_jax.data.pipeline import DevicePrefetch, prefetch_to_device, training_batches
from grain_jax.data.records import Source
from grain_jax.data.sources import open_source
from grain_jax.data.tokenizer import build_tokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.encode import Encoder
from grain_jax.evaluation.report import write_report
from grain_jax.evaluation.suite import best_metric_name, check_inputs, evaluate
from grain_jax.evaluation.tables import print_results
from grain_jax.interop import start
from grain_jax.models.build import build_model
from grain_jax.training import environment, metrics, sharding
from grain_jax.training.checkpoint import Checkpoints, SaveFailed, make_metadata
from grain_jax.training.metrics import MetricsLog, Summary, Window
from grain_jax.training.optimizer import make_optimizer, make_schedule, num_steps, num_warmup_steps
from grain_jax.training.processes import StopRequested, StopSignals, join_processes
from grain_jax.training.progress import Screen, duration, introduction
from grain_jax.training.resume import changed_settings, check_same_data
from grain_jax.training.state import TrainState, abstract_state, count_parameters, new_state
from grain_jax.training.step import TrainStep, make_train_step


class RunStopped(RuntimeError):
    """The run cannot go on; the message says why and what to change."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _flags()
    try:
        config = parse_arguments(sys.argv[1:] if arguments is None else arguments, options)
        if options["help"].value:
            print((__doc__ or "").strip())
            return 0
        validate(config, complete=not config.init)  # the rest comes with the weights
        if options["print_config"].value:
            print(config_to_json(config), end="")
            if config.init:
                print(f"Note: settings of {config.init} come to these.", file=sys.stderr)
            return 0
        # Nothing before these lines may touch a device: they decide which devices there are.
        join_processes(
            distributed=bool(options["distributed"].value),
            coordinator=str(options["coordinator"].value),
            num_processes=options["num_processes"].value,
            process_id=options["process_id"].value,
        )
        sharding.set_cpu_devices(config)
        environment.quiet_libraries()
        environment.cache_compilations(config.logging.compilation_cache)
        screen = Screen()
        workdir = environment.local_folder(options["workdir"].value or f"runs/{config.name}")
        run = set_up(config, workdir, screen)
    except (ValueError, OSError) as error:  # what the user gave; nothing has been trained yet
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted before the first step.", file=sys.stderr)
        return 130

    with StopSignals() as signals:
        try:
            train(run, screen, signals)
            if not signals.exit_status:
                finish(run, screen, signals)
        except StopRequested:
            screen.say(f"Stopped by {signals.name} during the last evaluation; {run.kept()}")
        except (RunStopped, SaveFailed) as error:
            screen.stop()
            screen.say(f"Stopped: {error}", style="red")
            return 1
        except KeyboardInterrupt:
            screen.stop()
            screen.say(f"Aborted; {run.kept()}")
            return 130
        finally:
            screen.stop()
            run.close()
        return signals.exit_status


@dataclass
class Run:
    """What `set_up` opens; `state`, `best` and `seconds` change while it trains."""

    config: TrainConfig
    workdir: Path
    mesh: jax.sharding.Mesh
    source: Source
    steps: int  # of the whole schedule
    last_step: int  # where this run ends: `steps`, or earlier at `stop_at_step`
    start_step: int
    train_step: TrainStep
    state: TrainState
    batches: DevicePrefetch[Batch]
    encoder: Encoder
    checkpoints: Checkpoints
    best: float  # highest held-out score that was saved
    log: MetricsLog
    seconds: float  # of training, earlier starts included

    def kept(self) -> str:
        """What the same command would go on from."""
        step = self.checkpoints.latest()
        if step is None:
            return f"nothing is saved in {self.workdir} yet."
        return f"step {step} is saved in {self.workdir}, and the same command goes on from it."

    def close(self) -> None:
        """Ends loader threads, log files and the saving in the background."""
        self.batches.close()
        self.log.close()
        self.checkpoints.close()


def set_up(config: TrainConfig, workdir: Path, screen: Screen) -> Run:
    """Opens devices, data, model and run folder; ValueError for what the user must change."""
    # Weights to start from, and the settings that come with them.
    given = start.pretrained(config, workdir)
    config, notes = given.config, [*given.notes]
    validate(config)

    # Devices and mesh.
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config, mesh)

    # Data. A batch is a function of the step, so there is no loader state to restore.
    size = config.model.image_size
    source = open_source(config.data, config.data.train_split, image_size=size)
    tokenizer = given.tokenizer or build_tokenizer(config.data, pooling=config.model.text.pooling)
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise ValueError(
            f"data.tokenizer = {config.data.tokenizer!r} has {tokenizer.vocab_size} tokens, "
            f"model.text.vocab_size = {config.model.text.vocab_size}; raise the latter."
        )
    preprocessing = Preprocessing.from_config(config.data, size)
    check_inputs(config)
    steps, warmup_steps = num_steps(config, len(source)), num_warmup_steps(config, len(source))

    # Model, optimizer, and where their arrays live.
    model = build_model(config.model)
    optimizer = make_optimizer(config.optim)
    schedule = make_schedule(config.optim, steps=steps, warmup_steps=warmup_steps)
    abstract = abstract_state(model, optimizer, config, mesh)
    train_step = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)

    # Start, in this order: the newest whole checkpoint of the run folder, else a new state from the
    # seed, with the weights of `init` where it names some. All are placed as this mesh wants them.
    metadata = make_metadata(
        config, tokenizer=tokenizer, preprocessing=preprocessing, num_images=len(source)
    )
    metadata["adopted"] = list(given.adopted)
    checkpoints = Checkpoints(
        workdir, config.checkpoint, metadata=metadata, metric=best_metric_name(config) or "score"
    )
    newest = checkpoints.latest()
    start_step = newest or 0
    if newest is not None:
        saved = checkpoints.metadata(start_step)
        check_same_data(saved, len(source), workdir)
        changed = changed_settings(saved["config"], config, workdir)
        notes += [f"changed: {setting}" for setting in changed]
        state = checkpoints.restore(start_step, abstract)
    else:
        state = new_state(model, optimizer, config, abstract)
        if given.trained is not None:
            state, origin = start.start_from(given.trained, state, config)
            notes += origin.sentences(config.init)
    if warmup_steps >= steps:
        notes.append(f"the warm-up takes {warmup_steps} steps, the whole run has {steps}")

    batches = training_batches(
        source,
        config.data,
        tokenizer,
        image_size=size,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        rows=sharding.local_rows(sharding.batch_sharding(mesh), config.batch_size),
    )
    encoder = Encoder(
        model,
        state.inference_params,
        tokenizer=tokenizer,
        preprocessing=preprocessing,
        batch_size=config.evaluation.batch_size,
        caption_length=config.data.caption_length,
        description_length=config.data.description_length,
        mesh=mesh,
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
    )
    # From here on the run folder is this run's.
    log = MetricsLog(workdir, config, start_step=start_step)
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(config_to_json(config), encoding="utf-8")
    run = Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        source=source,
        steps=steps,
        last_step=min(steps, config.stop_at_step or steps),
        start_step=start_step,
        train_step=train_step,
        state=state,
        batches=prefetch_to_device(
            batches, lambda batch: sharding.put_batch(batch, mesh, batch_size=config.batch_size)
        ),
        encoder=encoder,
        checkpoints=checkpoints,
        best=checkpoints.best_score(),
        log=log,
        seconds=log.seconds_before,
    )
    screen.table(
        introduction(config, mesh, state.params, num_images=len(source), steps=steps)
        | {"run folder": str(workdir) + (f", resumed at step {start_step}" if start_step else "")}
    )
    for note in notes:
        screen.say(f"Note: {note}.")
    return run


def train(run: Run, screen: Screen, signals: StopSignals) -> None:
    """The loop: batch -> step -> log -> evaluate -> save -> stop.

    The order is part of restarting. A line is in the log before the checkpoint that makes it final,
    and no log window spans a save, so a run that is killed and started again writes the same lines
    as one that was not.
    """
    config, window = run.config, Window()
    profiler = environment.Profiler(run.workdir, config.logging.profile_step)
    if run.start_step < run.last_step and jax.process_index() == 0:
        (run.workdir / "report.md").unlink(missing_ok=True)  # of a shorter run: no longer true
    screen.start(done=run.start_step, steps=run.last_step)
    for step in range(run.start_step + 1, run.last_step + 1):
        try:
            batch = next(run.batches)
        except ValueError as error:  # the data, found out only now
            raise RunStopped(f"{error} {run.kept()}") from error

        profiler.before(step)
        with sharding.use_mesh(run.mesh):
            run.state, step_metrics = run.train_step(run.state, batch)
        profiler.after(step, step_metrics)
        window.add(step, step_metrics, batch)
        if step == run.start_step + 1:
            jax.block_until_ready(step_metrics)  # the compilation is not the pace of the run
            window.restart_clock(wait_seconds=run.batches.wait_seconds)
        screen.step(step)

        stop = signals.requested(step)
        save = stop or step == run.last_step or step % config.checkpoint.every_steps == 0
        evaluation_steps = config.evaluation.every_steps
        evaluate_now = not stop and evaluation_steps > 0 and step % evaluation_steps == 0
        if not (save or evaluate_now or step % config.logging.every_steps == 0):
            continue
        summary = window.close(batch_size=config.batch_size, wait_seconds=run.batches.wait_seconds)
        _log(run, summary, screen)

        with window.paused():
            score = None
            if evaluate_now:
                try:
                    with signals.interrupting():
                        score = _score(run, step)
                except StopRequested:
                    stop = save = True
            better = score is not None and score > run.best and config.checkpoint.keep_best

            # Nothing is saved within a streak of bad steps: weights that may be unable to take any
            # step would push good checkpoints out.
            if (save or better) and not summary.streak:
                run.checkpoints.save(run.state, step=step, score=score)
                run.best = max(run.best, -math.inf if score is None else score)
            run.checkpoints.check()

        if stop:
            screen.stop()
            screen.say(f"{signals.name}: saving before stopping ...")
            run.checkpoints.wait()
            screen.say(f"Stopped; {run.kept()}")
            break
    profiler.stop()
    screen.stop()
    run.checkpoints.wait()


def finish(run: Run, screen: Screen, signals: StopSignals) -> None:
    """Evaluates the trained weights on everything held out; writes and prints the report."""
    report = run.workdir / "report.md"
    if run.start_step >= run.last_step and report.exists():
        screen.say(
            f"This run is finished (step {run.start_step}); its report is {report}. For a new run "
            "give another --workdir."
        )
        return
    screen.say("Evaluating ...")
    encoder = run.encoder.with_params(run.state.inference_params)
    with sharding.use_mesh(run.mesh), signals.interrupting():
        try:
            results = evaluate(encoder, run.config, final=True, note=screen.say)
        except ValueError as error:
            raise RunStopped(f"the final evaluation failed: {error} {run.kept()}") from error
        run.log.write(int(run.state.step), results)
        written = write_report(run.workdir, run.config, results, encoder=encoder, facts=_facts(run))
    print_results(results, screen.console)
    for path in [*written, run.workdir / metrics.FILE, run.checkpoints.folder]:
        screen.say(str(path))


def _log(run: Run, summary: Summary, screen: Screen) -> None:
    """Writes a window's line; names the images of skipped steps; stops after too many in a row."""
    run.seconds += summary.seconds
    epoch = summary.step * run.config.batch_size / len(run.source)
    run.log.write(summary.step, summary.values | {"epoch": epoch, metrics.SECONDS: run.seconds})
    left = (run.last_step - summary.step) * summary.seconds_per_step
    screen.figures(summary.step, summary.values, seconds_left=left)
    for step, rows in summary.bad_batches.items():
        ids = [run.source[int(row)].id for row in rows]
        run.log.write(step, {"bad_batch_index": rows.tolist(), "bad_batch_ids": ids})
        shown = ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")
        screen.say(f"Step {step} skipped, loss or gradient not finite. Its images: {shown}")
    if replaced := int(summary.values["replaced_images"]):
        screen.say(f"Up to step {summary.step}, {replaced} unreadable images were replaced.")
    if summary.streak >= run.config.optim.max_bad_steps:
        run.checkpoints.wait()
        raise RunStopped(
            f"loss or gradient was not finite for {summary.streak} steps in a row, up to step "
            f"{summary.step}. Lower optim.learning_rate, set optim.clip_grad_norm=1, or look at "
            f"the images named in {run.workdir / metrics.FILE}; {run.kept()}"
        )


def _score(run: Run, step: int) -> float | None:
    """Measures what is held out, and returns what decides on keep-best; None without such data."""
    encoder = run.encoder.with_params(run.state.inference_params)
    try:
        with sharding.use_mesh(run.mesh):
            results = evaluate(encoder, run.config, final=False, note=lambda _: None)
    except ValueError as error:
        run.checkpoints.save(run.state, step=step)
        run.checkpoints.wait()
        raise RunStopped(f"the evaluation at step {step} failed: {error} {run.kept()}") from error
    run.log.write(step, results)
    name = best_metric_name(run.config)
    if name and name not in results:
        run.checkpoints.save(run.state, step=step)
        run.checkpoints.wait()
        raise RunStopped(
            f"evaluation.best_metric = {name!r} is not measured during training; choose one of "
            f"{', '.join(sorted(results))}, or none. {run.kept()}"
        )
    return results.get(name)


def _facts(run: Run) -> dict[str, str]:
    shape = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    return {
        "training images": f"{len(run.source):,}",
        "steps": f"{int(run.state.step):,} of {run.steps:,}",
        "training time": f"{duration(run.seconds)}, without compiling and evaluating",
        "parameters": f"{count_parameters(run.state.params):,}",
        "skipped steps": str(int(run.state.skipped)),
        "mesh": shape,
        "commit": run.checkpoints.commit or "of an installed package",
    }


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_boolean("help", False, "", flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    flags.DEFINE_boolean("print_config", False, "", flag_values=values)
    flags.DEFINE_boolean("distributed", False, "", flag_values=values)
    flags.DEFINE_string("coordinator", "", "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    return values


if __name__ == "__main__":
    environment.restart_with_huge_pages()
    sys.exit(main())
