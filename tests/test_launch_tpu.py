"""TPU VMs and queued resources, under a gcloud that runs what it is told on two made-up workers."""

import subprocess

import pytest
from stub_commands import calls, launch, start, stubs

# ssh and scp reach $HOME/worker-0 and worker-1; a request for a TPU goes through the states of
# the file "states", a line each, of which the last stays.
GCLOUD = r"""
home=$HOME
say_state() {
  if [[ -s "$home/describe-fails" ]]; then # so many times
    truncate -s -1 "$home/describe-fails"
    echo "ERROR: (gcloud) UNAVAILABLE: the network is gone" >&2; exit 1
  fi
  if [[ ! -f "$home/states" ]]; then
    echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: no pod" >&2; exit 1
  fi
  head -n 1 "$home/states"
  if (($(wc -l <"$home/states") > 1)); then sed -i 1d "$home/states"; fi
}
workers="0 1"
for argument in "$@"; do
  case $argument in
    --command=*) command=${argument#--command=} ;;
    --worker=[0-9]) workers=${argument#--worker=} ;;
  esac
done
case "$*" in
  *" ssh "*)
    # What gcloud says of a preempted TPU: its own errors are 1.
    if grep -q SUSPENDED "$home/states" 2>/dev/null && [[ -f "$home/gone" ]]; then exit 1; fi
    if [[ -f "$home/no-ssh" ]]; then echo "ERROR: no way there" >&2; exit 1; fi
    code=0
    for worker in $workers; do
      mkdir -p "$home/worker-$worker"
      (cd "$home/worker-$worker" && WORKER=$worker HOME=$PWD bash -c "$command") || code=$?
    done
    exit $code ;;
  *" scp "*)
    if [[ -f "$home/no-scp" ]]; then exit 1; fi
    for worker in 0 1; do
      for argument in "$@"; do
        case $argument in
          /*) cp -r "$argument" "$home/worker-$worker/grain_jax/" ;;
        esac
      done
    done ;;
  *"queued-resources describe"*yaml*) echo "no such accelerator" ;;
  *"queued-resources describe"*) say_state ;;
  *"queued-resources create"*)
    if [[ -f "$home/states" ]]; then echo "ERROR: ALREADY_EXISTS" >&2; exit 1; fi
    printf "${NEXT:-PROVISIONING\nACTIVE\n}" >"$home/states" ;;
  *"queued-resources delete"*) rm -f "$home/states" "$home/gone" ;;
esac
"""
CURL = 'echo "$WORKER"'
# "python3.11 -m venv" makes an environment whose python ends as the next word of ENDS says.
VENV = r"""
mkdir -p .venv/bin
printf '#!/usr/bin/env bash\n' >.venv/bin/pip
cat >.venv/bin/python <<'END'
#!/usr/bin/env bash
start=$(cat starts 2>/dev/null | wc -l)
echo "$*" >>starts
echo "worker $WORKER start $start: $*"
ends=($ENDS)
end=${ends[start]}
if [[ $end == preempted ]]; then
  sleep 0.3
  printf 'SUSPENDING\nSUSPENDED\n' >"$HOME/../states"; touch "$HOME/../gone"; end=143
fi
if [[ $end == waits ]]; then
  for ((i = 0; i < 600; i++)); do if [[ -f $HOME/../finish ]]; then break; fi; sleep 0.1; done
  end=0
fi
if [[ $end == frozen-1 ]]; then # the second worker stands still, and the first says so
  if [[ $WORKER == 1 ]]; then kill -STOP $$; fi
  end=75
fi
exit "$end"
END
chmod +x .venv/bin/*
"""
TPU = ("pod", "us-east5-b")
QUEUED = (*TPU, "v5p-16", "v2-alpha-tpuv5")
WORKDIR = "--workdir=gs://bucket/run"


@pytest.fixture
def bin(tmp_path):
    return stubs(tmp_path / "bin", gcloud=GCLOUD, curl=CURL, **{"python3.11": VENV})


@pytest.fixture
def run(tmp_path, bin):
    def run_launcher(script, *arguments, **environment):
        return launch(script, *arguments, bin=bin, cwd=tmp_path, **{"POLL": "0.1", **environment})

    return run_launcher


def starts(tmp_path, worker):
    return (tmp_path / f"worker-{worker}" / "grain_jax" / "starts").read_text().splitlines()


def test_a_dry_run_prints_all_commands_and_runs_none(run, bin):
    printed = run("tpu_vm.sh", "--dry-run", "create", *TPU, "v5p-16", "v2-alpha-tpuv5", "--spot")
    assert printed.stdout.split() == [
        *("gcloud", "compute", "tpus", "tpu-vm", "create", "pod", "--zone=us-east5-b"),
        *("--accelerator-type=v5p-16", "--version=v2-alpha-tpuv5", "--spot"),
    ]
    for action in ("install", "run", "stop", "delete"):
        given = (action, *TPU, *([WORKDIR] if action == "run" else []))
        printed = run("tpu_vm.sh", "--dry-run", *given, PROJECT="p").stdout
        assert "gcloud" in printed
        assert "--project=p" in printed
    queued = run("queued.sh", "--dry-run", *QUEUED, WORKDIR, "--a=b c")
    assert "queued-resources create pod --node-id=pod" in queued.stdout
    assert "--spot" in queued.stdout
    assert calls(bin) == []


@pytest.mark.parametrize(
    "given",
    [
        ("run", "pod", "--config=x"),
        ("run", "--config=x", "zone"),
        ("start", "pod", "zone"),
        ("pod", "us-east5-b", "--config=x"),  # as it was before there were actions
    ],
)
def test_what_the_launcher_does_not_know_is_named(given, run, bin):
    result = run("tpu_vm.sh", *given)
    assert (result.returncode, result.stdout) == (2, "")
    assert "create|install|run|stop|delete TPU_NAME ZONE" in result.stderr
    assert "given: " in result.stderr
    assert calls(bin) == []


def test_settings_are_checked_before_anything_is_started(run, bin):
    assert run("tpu_vm.sh", "run", *TPU, WORKDIR, CHECK_STATUS="2").returncode == 2
    queued = run("queued.sh", *QUEUED, WORKDIR, CHECK_STATUS="2")
    assert (queued.returncode, queued.stdout) == (2, "")
    assert calls(bin) == []


@pytest.mark.parametrize("given", [[], ["--workdir="], ["--config=demo:smoke"]])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_training_needs_a_workdir_that_outlives_the_tpu(run, bin, given, dry):
    for result in (
        run("tpu_vm.sh", *dry, "run", *TPU, *given),
        run("queued.sh", *dry, *QUEUED, *given),
    ):
        assert (result.returncode, result.stdout) == (2, "")
        assert "No --workdir is given" in result.stderr
        assert "--workdir=gs://" in result.stderr
    assert calls(bin) == []
    other = run("tpu_vm.sh", "--dry-run", "run", *TPU, MODULE="grain_jax.evaluate")
    assert other.returncode == 0


def test_a_run_is_started_on_all_workers_and_again_after_it_hung(tmp_path, run):
    assert run("tpu_vm.sh", "install", *TPU).returncode == 0
    result = run("tpu_vm.sh", "run", *TPU, WORKDIR, "--a=b c", ENDS="75 0")
    assert result.returncode == 0, result.stderr
    assert f"worker 0 start 1: -m grain_jax.train --distributed {WORKDIR} --a=b c" in result.stdout
    assert "worker 1" not in result.stdout
    assert "starts it again, number 1 of 3" in result.stderr
    for worker in (0, 1):
        assert len(starts(tmp_path, worker)) == 2
        log = tmp_path / f"worker-{worker}" / "grain_jax" / "logs" / f"process-{worker}.log"
        assert f"worker {worker} start 1" in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "status"), [("2", 2), pytest.param("143", 143, marks=pytest.mark.slow)]
)
def test_a_mistake_or_a_stop_ends_it(tmp_path, run, ends, status):
    run("tpu_vm.sh", "install", *TPU)
    assert run("tpu_vm.sh", "run", *TPU, WORKDIR, ENDS=ends).returncode == status
    assert len(starts(tmp_path, 1)) == 1


@pytest.mark.slow
def test_the_same_command_shows_a_run_that_goes_on(tmp_path, run, bin):
    """A run outlives the terminal; installing would change its code."""
    run("tpu_vm.sh", "install", *TPU)
    command = ("tpu_vm.sh", "run", *TPU, WORKDIR)
    first = start(*command, bin=bin, cwd=tmp_path, ENDS="waits")
    until(first, "worker 0 start 0")
    first.kill()
    first.wait()
    first.stdout.close()
    refused = run("tpu_vm.sh", "install", *TPU)
    assert refused.returncode == 2
    assert "A run is going on there" in refused.stderr
    again = start(*command, bin=bin, cwd=tmp_path)
    shown = until(again, "worker 0 start 0")
    assert "runs already" in shown
    (tmp_path / "finish").touch()
    output, _ = again.communicate(timeout=50)
    assert again.returncode == 0, shown + output
    assert len(starts(tmp_path, 0)) == 1


def until(process, text):
    """What a process says up to the line that has `text`."""
    shown = ""
    while text not in shown:
        line = process.stdout.readline()
        assert line, shown
        shown += line
    return shown


@pytest.mark.slow
def test_a_number_that_another_process_has_by_now_is_no_run(tmp_path, run):
    """`train.pid` outlives a run, and Linux gives its number to others."""
    run("tpu_vm.sh", "install", *TPU)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        for worker in (0, 1):
            file = tmp_path / f"worker-{worker}" / "grain_jax" / "train.pid"
            file.write_text(f"{stranger.pid}\n")
        stopped = run("tpu_vm.sh", "stop", *TPU)
        assert (stopped.returncode, stopped.stderr) == (0, "")
        assert stopped.stdout.splitlines() == ["No run is going on here."] * 2
        result = run("tpu_vm.sh", "run", *TPU, WORKDIR, ENDS="0")
        assert result.returncode == 0, result.stderr
        assert "runs already" not in result.stdout
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert len(starts(tmp_path, 0)) == 1


@pytest.mark.slow
def test_workers_that_cannot_be_reached_are_no_end_of_the_run(tmp_path, run):
    """gcloud ends with 1 then, which as the status of a run would end it."""
    (tmp_path / "no-ssh").touch()
    result = run("tpu_vm.sh", "run", *TPU, WORKDIR)
    assert result.returncode == 255
    assert "could not be started on all workers" in result.stderr


@pytest.mark.slow
def test_a_worker_that_stands_still_is_killed(tmp_path, run):
    run("tpu_vm.sh", "install", *TPU)
    result = run("tpu_vm.sh", "run", *TPU, WORKDIR, ENDS="frozen-1 0", GRACE="2")
    assert result.returncode == 0, result.stderr
    assert "runs already" not in result.stdout
    assert (len(starts(tmp_path, 0)), len(starts(tmp_path, 1))) == (2, 2)
    log = tmp_path / "worker-1" / "grain_jax" / "logs" / "process-1.log"
    assert "exit status 137" in log.read_text()


@pytest.mark.slow
def test_a_run_on_a_queued_resource_returns_after_a_preemption(tmp_path, run, bin):
    result = run("queued.sh", *QUEUED, WORKDIR, ENDS="preempted 0")
    assert result.returncode == 0, result.stderr
    *said, last = [
        line for line in result.stderr.splitlines() if line.startswith("Launcher: pod is")
    ]
    assert "pod is not deleted, and a TPU is paid for" in last
    assert [line for line in said if "SUSPENDING" not in line] == [  # which may pass unseen
        "Launcher: pod is not requested yet.",
        "Launcher: pod is PROVISIONING.",
        "Launcher: pod is ACTIVE.",
        "Launcher: pod is SUSPENDED.",
        "Launcher: pod is not requested yet.",
        "Launcher: pod is PROVISIONING.",
        "Launcher: pod is ACTIVE.",
    ]
    requests = [call for call in calls(bin) if "queued-resources create" in call]
    assert len(requests) == 2
    assert all("--spot" in call for call in requests)
    assert sum("queued-resources delete" in call for call in calls(bin)) == 1
    assert len(starts(tmp_path, 0)) == 2


@pytest.mark.slow
def test_a_mistake_on_a_queued_resource_is_not_repeated(tmp_path, run, bin):
    options = {"ENDS": "2", "QUEUE_ARGS": "--reserved", "DELETE": "true"}
    result = run("queued.sh", *QUEUED, WORKDIR, **options)
    assert result.returncode == 2, result.stderr
    (request,) = [call for call in calls(bin) if "queued-resources create" in call]
    assert "--reserved" in request
    assert "--spot" not in request
    assert "queued-resources delete" in calls(bin)[-1]


@pytest.mark.slow
def test_a_tpu_that_cannot_be_reached_is_tried_again(tmp_path, run, bin):
    (tmp_path / "states").write_text("ACTIVE\n")
    (tmp_path / "no-ssh").touch()
    result = run("queued.sh", *QUEUED, WORKDIR, RETRIES="1")
    assert result.returncode == 75
    assert "the installation on pod failed; it tries again" in result.stderr
    assert "pod is not deleted, and a TPU is paid for" in result.stderr
    assert "queued-resources delete pod --zone=us-east5-b --force" in result.stderr
    assert not [call for call in calls(bin) if "queued-resources delete" in call]


def requests(bin):
    return sum("queued-resources create" in call for call in calls(bin))


@pytest.mark.slow
def test_an_installation_that_fails_is_not_repeated_for_ever(tmp_path, run, bin):
    (tmp_path / "states").write_text("ACTIVE\n")
    (tmp_path / "no-scp").touch()
    result = run("queued.sh", *QUEUED, WORKDIR, RETRIES="2", DELETE="true")
    assert result.returncode == 75
    assert sum(" scp " in call for call in calls(bin)) == 3
    assert "failure number 3 in a row (RETRIES=2)" in result.stderr
    assert "queued-resources delete" in calls(bin)[-1]  # as it is paid for


def test_a_request_that_fails_is_made_again_only_so_often(run, bin):
    result = run("queued.sh", *QUEUED, WORKDIR, NEXT="FAILED", RETRIES="2")
    assert result.returncode == 75
    assert requests(bin) == 3
    assert result.stderr.count("no such accelerator") == 3  # why it has failed


@pytest.mark.slow
def test_a_queue_that_does_not_answer_is_no_request_to_make(tmp_path, run, bin):
    """An answer that fails, with anything but NOT_FOUND, says nothing about the request."""
    (tmp_path / "states").write_text("ACTIVE\n")
    (tmp_path / "describe-fails").write_text("xx")
    result = run("queued.sh", *QUEUED, WORKDIR, ENDS="2")
    assert result.returncode == 2, result.stderr
    assert "the network is gone" in result.stderr
    assert requests(bin) == 0
    (tmp_path / "describe-fails").write_text("x" * 9)
    gone = run("queued.sh", *QUEUED, WORKDIR, RETRIES="1")
    assert gone.returncode == 75
    assert "the queue could not be looked at" in gone.stderr
    assert requests(bin) == 0
