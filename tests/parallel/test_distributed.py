"""Several processes do what one does, on one machine and on two or four; how they agree."""

import json
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest
from few_devices import devices_of_config
from hosts import needs_mount_namespace, outputs, start_hosts
from places import HELPERS
from stored_results import stored_results
from training_process import (
    ARGUMENTS,
    CLIP,
    ENDLESS,
    lines,
    run,
    undisturbed_run,
)
from two_processes import launch_two

import grain_jax.evaluate
import grain_jax.train
from grain_jax.evaluation.comparison import read_predictions
from grain_jax.evaluation.kept_predictions import beside
from grain_jax.parallel import processes
from grain_jax.training import checkpoint

pytestmark = pytest.mark.multiprocess

PNG = bytes.fromhex(  # 1 x 1 pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cf"
    "c0000003010100c9fe92ef0000000049454e44ae426082"
)
DISAGREEING = str(HELPERS / "disagreeing.py")
EVALUATION = ("--step=8", "--batch_size=16")


def evaluated(workdir):
    """The final results: the last line."""
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(tmp_path):
    workdir = tmp_path / "two"
    process = launch_two(workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "2 x cpu of 2 processes" in output
    assert output.count("step 12/12") == 1  # one process speaks

    trained = [line for line in lines(workdir) if "loss" in line]
    for found, expected in zip(trained, lines(undisturbed_run()), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)

    # The same command in one process: the run is finished and has no report, so it is evaluated.
    (workdir / "report.md").unlink()
    two = evaluated(workdir)
    with devices_of_config():
        assert grain_jax.train.main([*ARGUMENTS, f"--workdir={workdir}"]) == 0
    assert (workdir / "report.md").exists()
    assert evaluated(workdir) == pytest.approx(two, abs=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    workdir = tmp_path / "stopped"
    process = launch_two(workdir, *ENDLESS, base=CLIP)
    while not (workdir / "metrics.jsonl").exists() or not lines(workdir):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    (saved,) = checkpoint.complete_steps(workdir / "checkpoints")
    assert f"step {saved} is saved" in output


@dataclass
class TwoHosts:
    """What two machines have done: for each command the exit status and output of both."""

    workdir: Path
    evaluation: Path  # the JSON of the second command
    hidden: Path  # images that the second machine does not see
    trained: list[tuple[int, str]]
    evaluated: list[tuple[int, str]]
    failed: list[tuple[int, str]]


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """A run to step 8 of 12, with its report, measured every third; then two evaluations of it.

    Its processes disagree about every score but the first. The second evaluation is of images that
    one of them does not see. All in one pair of processes, as starting one takes longer than that.
    """
    folder = tmp_path_factory.mktemp("hosts")
    workdir, evaluation, images = (folder / name for name in ("run", "two.json", "images"))
    for name in ("red", "blue"):
        (images / name).mkdir(parents=True)
        (images / name / "0.png").write_bytes(PNG)
    train = (
        *("train", *ARGUMENTS, "--mesh.cpu_devices=1", f"--workdir={workdir}"),
        *("--max_steps_this_run=8", "--evaluation.eval_interval_steps=3"),
        "--checkpoint.max_to_keep=9",
    )
    evaluate = ("evaluate", f"--checkpoint={workdir}")
    commands = [train, (*evaluate, *EVALUATION, f"--output={evaluation}")]
    commands.append((*evaluate, f"--data={images}"))
    started = start_hosts(folder, DISAGREEING, "run", json.dumps(commands), hide=images)
    both = [of_commands(*ended) for ended in outputs(started)]
    return TwoHosts(workdir, evaluation, images, *map(list, zip(*both, strict=True)))


def of_commands(status, output):
    """Exit status and output of each of three commands in one process, which ended with `status`.

    The last may have ended the process, and then no line says its status.
    """
    parts = re.split(r"^== exit status (\d+)\n", output, flags=re.MULTILINE)
    ended = [(int(number), text) for text, number in zip(parts[::2], parts[1::2], strict=False)]
    if len(ended) < 3:
        ended.append((status, parts[-1]))
    assert len(ended) == 3, output
    return ended


@pytest.mark.slow
@needs_mount_namespace
def test_two_machines_train_and_one_process_speaks(two_hosts):
    (status, output), (other_status, other_output) = two_hosts.trained
    assert (status, other_status) == (0, 0), output + other_output
    assert "2 x cpu of 2 processes; mesh data 2 x fsdp 1 x tensor 1" in output
    assert "step 8/8" in output
    assert "step 8/8" not in other_output


@pytest.mark.slow
@needs_mount_namespace
def test_two_machines_save_what_process_0_finds_better(two_hosts):
    """Step 3 is the best to both; step 6 to process 1 alone, whose save would wait for ever."""
    workdir = two_hosts.workdir
    assert checkpoint.complete_steps(workdir / "checkpoints") == [3, 4, 8]
    assert checkpoint.load(workdir, best=True).step == 3
    measured = [line for line in lines(workdir) if "validation/box_recall" in line]
    assert [line["step"] for line in measured] == [3, 6, 8]
    assert (workdir / "report.md").exists()


@pytest.mark.slow
@needs_mount_namespace
def test_two_machines_evaluate_as_one(two_hosts, tmp_path):
    (status, output), (other_status, other_output) = two_hosts.evaluated
    assert (status, other_status) == (0, 0), output + other_output
    assert f"Written to {two_hosts.evaluation}" in output
    assert "Written" not in other_output
    assert "%" not in other_output
    alone = tmp_path / "one.json"
    arguments = [f"--checkpoint={two_hosts.workdir}", *EVALUATION, f"--output={alone}"]
    with devices_of_config():
        assert grain_jax.evaluate.main(arguments) == 0
    report = json.loads(two_hosts.evaluation.read_text())
    assert report["hardware"]["processes"] == "2"
    two, one = (stored_results(path) for path in (two_hosts.evaluation, alone))
    assert two == pytest.approx(one, abs=1e-4)
    kept = [read_predictions(beside(path)) for path in (two_hosts.evaluation, alone)]
    assert kept[0].keys() == kept[1].keys()
    for measure, answers in kept[0].items():  # of all images, each once
        assert answers.questions == kept[1][measure].questions
    trained = next(line for line in lines(two_hosts.workdir) if "unseen/description/alpha0" in line)
    assert {name: trained[name] for name in one} == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
@needs_mount_namespace
def test_an_error_on_one_machine_ends_the_evaluation_on_both(two_hosts):
    (status, output), (other_status, other_output) = two_hosts.failed
    assert status != 0, output
    assert other_status == 2
    assert str(two_hosts.hidden) in other_output
    assert "Traceback" not in other_output


@pytest.mark.slow
@needs_mount_namespace
def test_one_process_goes_on_with_the_run_of_two_machines(two_hosts, capsys, monkeypatch):
    monkeypatch.setattr(grain_jax.train, "finish", lambda run, screen, signals: None)
    with devices_of_config():
        assert grain_jax.train.main([*ARGUMENTS, f"--workdir={two_hosts.workdir}"]) == 0
    assert "resumed at step 8" in " ".join(capsys.readouterr().out.split())
    trained = [line for line in lines(two_hosts.workdir) if "loss" in line]
    alone = {line["step"]: line for line in lines(undisturbed_run())}
    compared = [line for line in trained if line["step"] in alone]
    assert [line["step"] for line in compared] == [2, 4, 6, 8, 10, 12]
    for found in compared:
        names = ("loss", "box_l1", "region", "grad_norm")
        expected = {name: alone[found["step"]][name] for name in names}
        if found["step"] not in (4, 8):  # a window of its own after the evaluation of step 3, 6
            assert {name: found[name] for name in names} == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@needs_mount_namespace
def test_four_machines_train_as_one_process(tmp_path):
    """Four slices of one device each: every row of the mesh crosses what XLA takes for a network.

    Sums over the batch are taken in another order, of which the losses keep 1e-5 over four steps.
    """
    arguments = (*CLIP, "--steps=4", "--logging.log_interval_steps=1")
    four, one = tmp_path / "four", tmp_path / "one"
    train_only = str(HELPERS / "train_only.py")
    started = start_hosts(
        tmp_path,
        *(train_only, *arguments, "--mesh.cpu_devices=1", f"--workdir={four}"),
        count=4,
    )
    ended = outputs(started)
    assert [status for status, _ in ended] == [0] * 4, "".join(output for _, output in ended)
    assert "4 x cpu of 4 processes; mesh data 4 x fsdp 1 x tensor 1" in ended[0][1]
    assert [output.count("step 4/4") for _, output in ended] == [1, 0, 0, 0]
    assert run(one, *arguments, "--mesh.cpu_devices=1", base=())[0] == 0
    trained = lines(four)
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    for found, expected in zip(trained, lines(one), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@needs_mount_namespace
def test_processes_that_see_things_differently_agree_with_the_first(tmp_path):
    started = start_hosts(tmp_path, DISAGREEING, "agree", str(tmp_path))
    (status, output), (other_status, other_output) = outputs(started, timeout=400)
    first, second = (
        json.loads(next(line for line in text.splitlines() if line.startswith("{")))
        for text in (output, other_output)
    )
    assert first | {"first": None, "second": None} == second | {"first": None, "second": None}
    assert (first["number"], first["none"], first["infinite"]) == (0.1, None, True)
    assert (first["yes"], first["latest"], first["neither"]) == (True, 7, None)
    assert first["first"] == ["the first cannot read", False, False]
    assert second["first"] == ["process 0: the first cannot read", True, False]
    assert first["second"] == ["process 1: the second cannot read", True, True]
    assert other_status == 1
    assert "something nobody expected" in other_output
    assert status != 0
    assert "something nobody expected" not in output


@pytest.mark.parametrize(
    ("variables", "many"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # a shell inside an allocation
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "host:1"}, True),
    ],
)
def test_many_processes_are_detected_and_one_is_left_alone(variables, many):
    assert processes.is_one_of_many(variables) == many


def test_ctrl_c_in_one_of_several_changes_nothing_before_all_agree(monkeypatch):
    """Else it alone would leave out the last evaluation, which takes all of them."""
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    reached = []
    monkeypatch.setattr(
        processes.multihost_utils, "reached_preemption_sync_point", lambda step: bool(reached)
    )
    passed_on = []
    monkeypatch.setattr(processes.os, "kill", lambda pid, number: passed_on.append(number))
    before = signal.getsignal(signal.SIGINT)
    with processes.StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert passed_on == [signal.SIGTERM]
        assert not signals.requested(1)
        assert signals.exit_status == 0
        reached.append(True)
        assert signals.requested(2)
        assert signals.exit_status == 130
    assert signal.getsignal(signal.SIGINT) is before


def chained(cause):
    error = TimeoutError("Timed out while waiting for a barrier.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("UNAVAILABLE: failed to connect to all addresses", processes.AGAIN),
        ("DEADLINE_EXCEEDED: Barrier timed out", processes.AGAIN),
        ("FAILED_PRECONDITION: Buffer: Gloo all-reduce failed: closed by peer", processes.AGAIN),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited", processes.AGAIN),
        (chained(jax.errors.JaxRuntimeError("ABORTED: task 1 died")), processes.AGAIN),
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed"), processes.AGAIN),
        (chained(ValueError("UNKNOWN: Gloo AllGather failed: reset by peer")), processes.AGAIN),
        (ValueError("UNAVAILABLE: of storage"), 1),
        ("INTERNAL: Mosaic failed to compile TPU kernel: Not implemented", 1),
        ("INVALID_ARGUMENT: executable is built for another device", 1),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 2 bytes", 1),
        (RuntimeError("UNAVAILABLE: not of the runtime"), 1),
    ],
)
def test_only_the_loss_of_another_process_says_again(error, status, monkeypatch, capsys):
    left = []

    def leave(number):
        left.append(number)
        raise SystemExit

    monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes, "leave", leave)
    if isinstance(error, str):
        error = jax.errors.JaxRuntimeError(error)
    with pytest.raises(SystemExit):
        processes.leave_over(error)
    printed = capsys.readouterr().err
    assert left == [status]
    assert str(error) in printed.splitlines()[-1 if status == 1 else -2]  # of the traceback
    assert ("another process has left" in printed) == (status == processes.AGAIN)


def test_the_loss_of_another_process_is_no_mistake_of_the_command(monkeypatch, capsys):
    """What reads a result raises a ValueError of it, as a setting that is wrong does."""

    def leave(number):
        raise SystemExit(number)

    monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes, "leave", leave)
    for text, status in (("UNKNOWN: Gloo AllGather failed: reset by peer", 75), ("steps = -1", 2)):
        with pytest.raises(SystemExit) as ended:
            processes.refused(ValueError(text))
        assert ended.value.code == status
        assert ("another process has left" in capsys.readouterr().err) == (status == 75)


def test_a_process_needs_all_three_numbers():
    with pytest.raises(
        ValueError, match=r"--coordinator, --process_id given without --num_processes"
    ):
        processes.join_processes(processes.ProcessOptions(coordinator="host:1", process_id=0))
