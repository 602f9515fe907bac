"""Train GRAIN, or its CLIP baseline. Without --config: the built-in demo.

python -m grain_jax.train [--config=FILE.py[:VARIANT]] [--SETTING=VALUE ...] [--workdir=DIR]

--config names a Python file with get_config(variant), which gives the settings to start from;
"demo", "demo:clip" and "demo:smoke" are built in. Any setting below changes one of them, as in
--optim.learning_rate=3e-4; the defaults shown are those of --config.

Ctrl-C and SIGTERM save, then stop; a second Ctrl-C aborts. Exit status: 0 done, 1 stopped by what
it says (non-finite steps, a save that failed), 2 something to change in the command or the data,
75 a step hung, another process left, or storage cannot be reached, 130 or 143 saved and stopped by
Ctrl-C or SIGTERM. After 75 and 143 the same command resumes; the launchers in launch/ repeat it.

On a CPU under Linux the command starts itself again with huge pages, which XLA's steps need much
less time with; GLIBC_TUNABLES=glibc.malloc.hugetlb=0 prevents it.
"""

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import jax
import tyro

from grain_jax import runtime, slow_compile
from grain_jax.command_line import ExitStatus, NotParsed, end, parse
from grain_jax.config import TrainConfig, validate
from grain_jax.config.cli import SettingsOptions, config_to_json, read_settings
from grain_jax.config.validation import memory_notes
from grain_jax.data.loader import (
    prefetch_to_device,
    training_batches,
)
from grain_jax.data.mixture import source_marks, source_sizes
from grain_jax.data.source import data_source
from grain_jax.evaluation.suite import best_metric_name
from grain_jax.inference.encoder import Encoder
from grain_jax.loading import initialize
from grain_jax.models.bundle import ModelBundle, make_metadata
from grain_jax.models.image_text import model_of_run
from grain_jax.models.learned import NOTHING
from grain_jax.parallel import processes, sharding
from grain_jax.parallel.presets import choose_mesh
from grain_jax.parallel.processes import ProcessOptions, StopRequested, StopSignals
from grain_jax.paths import AnyPath, run_path, user_path
from grain_jax.terminal import escape_unprintable
from grain_jax.trainer.evaluation import finish, score
from grain_jax.trainer.inputs import (
    check,
    data_rows,
    fitting_loader,
    folder_in_words,
    last_step,
    open_inputs,
    resume_notes,
)
from grain_jax.trainer.planned import read_plan
from grain_jax.trainer.run import (
    Run,
    RunStopped,
    StoppedAlone,
    log_window,
    stop_over_data,
)
from grain_jax.trainer.watchdog import Watchdog, watchdog
from grain_jax.training import checkpoint, lock
from grain_jax.training.checkpoint import Checkpoints, SaveFailed
from grain_jax.training.metrics import MetricsLog, Window
from grain_jax.training.optimizer import (
    make_optimizer,
    make_schedule,
)
from grain_jax.training.progress import Screen, introduction
from grain_jax.training.run_files import RunFiles
from grain_jax.training.state import (
    abstract_state,
    new_state,
)
from grain_jax.training.step import make_train_step


@dataclass
class Options:
    """What `train` takes besides `--config`."""

    # folder of the run, gs://bucket/folder too, or runs/<name>; the same command again resumes it
    workdir: str = ""
    print_config: bool = False  # print every setting as JSON and exit
    check: bool = False  # check settings and data, say what would start, and exit; needs no GPU
    check_devices: str = ""  # with check: that the mesh fits 16 devices (16) or 2 nodes of 8 (2x8)
    change_schedule: bool = False  # resume with other steps or epochs though the rate would jump
    processes: Annotated[ProcessOptions, tyro.conf.arg(name="")] = field(
        default_factory=ProcessOptions
    )
    config: SettingsOptions = field(default_factory=TrainConfig)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    escape_unprintable()
    with contextlib.ExitStack() as held:
        try:
            options = parse_options(sys.argv[1:] if arguments is None else arguments)
            config = options.config
            validate(config, complete=not config.pretrained)  # the rest comes with the weights
            if options.print_config:
                print(config_to_json(config), end="")
                if config.pretrained:
                    print(f"Note: settings of {config.pretrained} come to these.", file=sys.stderr)
                return ExitStatus.DONE
            workdir = run_path(options.workdir or f"runs/{config.name}", option="--workdir")
            change_schedule = options.change_schedule
            if options.check or options.check_devices:
                devices = options.check_devices
                check(config, workdir, devices=devices, change_schedule=change_schedule)
                return ExitStatus.DONE
            # Nothing before these lines may touch a device: they decide which devices there are.
            processes.join_processes(options.processes)
            sharding.set_cpu_devices(config)
            runtime.quiet_libraries()
            runtime.cache_compilations(config.logging.compilation_cache)
            runtime.open_devices()
            watching = held.enter_context(watchdog(config.logging))
            watching.at(0, "setting up", slow=True)
            screen = Screen()
            with processes.errors_in_all():
                held_lock: lock.Held = lock.Kept()
                if processes.speaks():  # for all of them
                    held_lock = held.enter_context(lock.locked(workdir, note=screen.note))
                files = RunFiles(
                    workdir,
                    check=held_lock.check,
                    confirm=held_lock.confirm,
                    fetch=processes.speaks(),
                )
                held.callback(files.close)
            run = set_up(config, workdir, files, screen, change_schedule=change_schedule)
        except NotParsed as parsed:
            return parsed.status
        except (ValueError, OSError) as error:  # what the user gave; nothing has been trained yet
            return processes.refused(error)
        except KeyboardInterrupt:
            print("Interrupted before the first step.", file=sys.stderr)
            return processes.interrupted()
        except Exception as error:
            processes.leave_over(error)
            raise
        return run_to_end(run, screen, watching)


def parse_options(arguments: Sequence[str]) -> Options:
    """The options of the command line; notes on it go to stderr.

    Raises ValueError for a mistake in the settings, and NotParsed for what the parser has printed.
    """
    base, words = read_settings(
        arguments, note=lambda text: print(f"Note: {text}.", file=sys.stderr)
    )
    return parse(
        Options,
        words,
        command="train",
        description=__doc__,
        default=Options(config=base),
        may_repeat=True,
    )


def run_to_end(run: "Run", screen: Screen, watching: Watchdog) -> int:
    """Trains, evaluates and reports; returns the exit status."""
    with StopSignals() as signals:
        try:
            with runtime.Profiler(run.files.folder, run.config.logging.profile_step) as profiler:
                train(run, screen, signals, profiler, watching)
            if not signals.exit_status:
                # Of all that is held out: it would be begun anew, and take as long again.
                watching.at(run.last_step, "in the last evaluation", slow=True, endless=True)
                finish(run, screen, signals)
        except StopRequested:
            screen.say(f"Stopped by {signals.name} during the last evaluation; {run.kept()}")
        except (RunStopped, SaveFailed, OSError) as error:  # OSError: a disk full of logs
            screen.stop()
            if processes.is_of_others(error):
                processes.leave_over(error)
            status = ExitStatus.AGAIN if processes.may_pass(error) else ExitStatus.STOPPED
            if processes.are_many() and isinstance(error, StoppedAlone | SaveFailed | OSError):
                print(f"Process {jax.process_index()} stopped: {error}", file=sys.stderr)
                processes.leave(status)
            screen.say(f"Stopped: {error}", style="red")
            return status
        except KeyboardInterrupt:
            screen.stop()
            screen.say(f"Aborted; {run.kept()}")
            return processes.interrupted()
        except Exception as error:
            processes.leave_over(error)  # before the rest, which waits for saves of all processes
            raise
        finally:
            watching.at(run.last_step, "ending", slow=True)
            try:
                screen.stop()
            finally:
                run.close()
        return signals.exit_status


def set_up(
    config: TrainConfig,
    workdir: AnyPath,
    files: RunFiles,
    screen: Screen,
    *,
    change_schedule: bool,
) -> Run:
    """Opens devices, data, model and run folder; ValueError for what the user must change.

    An error that one process alone may meet is raised in all, between what they do together.
    """
    newest = checkpoint.latest_in_all(workdir)
    inputs = open_inputs(config, workdir, newest)
    config, source, tokenizer, notes = inputs.config, inputs.source, inputs.tokenizer, inputs.notes
    if newest is not None:
        notes += resume_notes(inputs, workdir, newest, change_schedule=change_schedule)
    start_step = newest or 0

    # Devices and mesh.
    with processes.errors_in_all():
        mesh = choose_mesh(config)
        sharding.check_batch(config, mesh.devices.shape)
        plan = config.logging.plan
        planned = read_plan(user_path(plan), config, mesh) if plan else None

    # Model, optimizer, and where their arrays live.
    with processes.errors_in_all():
        model = model_of_run(config)
        optimizer = make_optimizer(config.optim)
        schedule = make_schedule(config.optim, steps=inputs.steps, warmup_steps=inputs.warmup_steps)
        abstract = abstract_state(model, optimizer, config, mesh)
        train_step = make_train_step(
            model, optimizer, schedule, config, mesh=mesh, abstract=abstract
        )

    # Start, in this order: the newest whole checkpoint of the run folder, else a new state from the
    # seed, with the weights of `pretrained` where it names some. All are placed as this mesh wants.
    templates = data_source(config.data, image_size=config.model.image_size).templates
    metadata = make_metadata(
        config,
        tokenizer=tokenizer,
        preprocessing=inputs.preprocessing,
        templates=templates,
        num_images=len(source),
        learned=NOTHING,
    )
    metadata["inherited_settings"] = list(inputs.inherited)
    metadata["set_sizes"] = source_sizes(source)
    metadata["set_marks"] = source_marks(source)
    checkpoints = Checkpoints(
        workdir, config.checkpoint, metadata=metadata, metric=best_metric_name(config) or "score"
    )
    if newest is not None:
        state = checkpoints.restore(newest, abstract)
    else:
        state = new_state(model, optimizer, config, abstract)
        if inputs.trained is not None:
            with processes.errors_in_all():
                state, report = initialize.start_from(inputs.trained, state, config)
            notes += report.sentences(config.pretrained)
    checkpoints.set_learned(inputs.learned)

    rows = sharding.local_rows(sharding.batch_sharding(mesh), config.batch_size)
    loader, loader_notes = fitting_loader(config.data, rows=len(rows))
    notes += [*loader_notes, *runtime.missing_gpu_notes()]
    notes += sharding.cpu_devices_notes(config)
    if mesh.devices.flat[0].platform == "tpu":
        notes += memory_notes(config)
    batches = training_batches(
        source,
        loader,
        tokenizer,
        image_size=config.model.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        rows=rows,
    )
    bundle = ModelBundle(
        model=model,
        params=state.inference_params,
        config=config,
        tokenizer=tokenizer,
        preprocessing=inputs.preprocessing,
        templates=templates,
        step=start_step,
        learned=inputs.will_learn,
    )
    encoder = Encoder.from_bundle(bundle, mesh=mesh, num_workers=loader.num_workers)
    # From here on the run folder is this run's.
    with processes.errors_in_all():
        log = MetricsLog(files.folder, config, start_step=start_step)
        if processes.speaks():
            (files.folder / "config.json").write_text(config_to_json(config), encoding="utf-8")
    run = Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        source=source,
        steps=inputs.steps,
        last_step=last_step(config, start_step=start_step, steps=inputs.steps),
        start_step=start_step,
        train_step=train_step,
        state=state,
        batches=prefetch_to_device(
            batches, lambda batch: sharding.put_batch(batch, mesh, batch_size=config.batch_size)
        ),
        encoder=encoder,
        checkpoints=checkpoints,
        best=checkpoints.best_score(),
        files=files,
        log=log,
        seconds=log.seconds_before,
        learned=inputs.learned,
        last_box_step=start_step,
        planned=planned,
    )
    screen.table(
        introduction(config, mesh, state.params, num_images=len(source), steps=inputs.steps)
        | data_rows(inputs)
        | {"loader": batches.plan.sentence, "run folder": folder_in_words(workdir, newest)}
    )
    for note in notes:
        screen.note(note)
    return run


def train(
    run: Run,
    screen: Screen,
    signals: StopSignals,
    profiler: runtime.Profiler,
    watching: Watchdog,
) -> None:
    """The loop: batch -> step -> log -> evaluate -> save -> stop.

    The order is part of restarting. A line is in the log before the checkpoint that makes it final,
    and no log window spans a save, so a run that is killed and started again writes the same lines
    as one that was not.
    """
    config, window = run.config, Window()
    if run.start_step < run.last_step and jax.process_index() == 0:
        (run.files.folder / "report.md").unlink(missing_ok=True)  # of a shorter run: no longer true
    screen.start(done=run.start_step, steps=run.last_step)
    failure: ValueError | None = None  # of the data, found out only now, by this process alone
    for step in range(run.start_step + 1, run.last_step + 1):
        watching.at(step, "waiting for its batch", slow=step == run.start_step + 1)
        if failure is None:
            try:
                batch = next(run.batches)
            except ValueError as error:
                failure = error
                if not processes.are_many():
                    stop_over_data(run, window, screen, done=step - 1, failure=error)
                # The others wait for this process in every step, so it continues with steps that
                # change nothing in any of them, until all have agreed on one to stop after.
                print(f"Process {jax.process_index()}: {error}", file=sys.stderr)
                signals.ask()
                batch = run.void_batch()

        watching.at(step, "computing", slow=step == run.start_step + 1)  # the first is compiled
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
        save = stop or step == run.last_step or step % config.checkpoint.save_interval_steps == 0
        evaluation_steps = config.evaluation.eval_interval_steps
        evaluate_now = not stop and evaluation_steps > 0 and step % evaluation_steps == 0
        if not (save or evaluate_now or step % config.logging.log_interval_steps == 0):
            continue
        watching.at(step, "waiting for its result")
        for done in window.results():  # each counts as progress, however many a line has
            watching.at(min(done + 1, step), "waiting for its result")
        if processes.are_many() and (done := int(run.state.step)) < step:
            if stop or step == run.last_step:
                stop_over_data(run, window, screen, done=done, failure=failure)
            continue
        summary = window.close(batch_size=config.batch_size, wait_seconds=run.batches.wait_seconds)
        log_window(run, summary, screen)

        watching.at(step, "evaluating or saving", slow=True)
        with window.paused():
            measured = None
            if evaluate_now:
                try:
                    with signals.interrupting():
                        measured = score(run, step)
                except StopRequested:
                    stop = save = True
            better = measured is not None and measured > run.best and config.checkpoint.keep_best

            # Nothing is saved while steps are nonfinite: weights that may be unable to take any
            # step would push good checkpoints out.
            if (save or better) and not summary.consecutive_nonfinite:
                run.save(step=step, score=measured)
                run.best = max(run.best, -math.inf if measured is None else measured)
            run.checkpoints.check()

        if stop:
            screen.stop()
            screen.say(f"{signals.name}: saving before stopping ...")
            run.checkpoints.wait()
            screen.say(f"Stopped; {run.kept()}")
            break
    watching.at(run.last_step, "waiting for the last save", slow=True)
    screen.stop()
    run.checkpoints.wait()


if __name__ == "__main__":
    runtime.restart_with_huge_pages()
    slow_compile.hide_alarm()
    end(main())
