"""TPU VMs and queued resources, under a gcloud that runs what it is told on two made-up workers."""

import pytest
from stub_commands import calls, launch, stubs

# ssh and scp reach $HOME/worker-0 and worker-1; a request for a TPU goes through the states of
# the file "states", a line each, of which the last stays.
GCLOUD = r"""
home=$HOME
say_state() {
  [[ -f "$home/states" ]] || exit 1
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
    # What a preempted TPU says.
    if grep -q SUSPENDED "$home/states" 2>/dev/null && [[ -f "$home/gone" ]]; then exit 255; fi
    code=0
    for worker in $workers; do
      mkdir -p "$home/worker-$worker"
      (cd "$home/worker-$worker" && WORKER=$worker HOME=$PWD bash -c "$command") || code=$?
    done
    exit $code ;;
  *" scp "*)
    for worker in 0 1; do
      for argument in "$@"; do
        case $argument in
          /*) cp -r "$argument" "$home/worker-$worker/grain_jax/" ;;
        esac
      done
    done ;;
  *"queued-resources describe"*) say_state ;;
  *"queued-resources create"*) printf 'PROVISIONING\nACTIVE\n' >"$home/states" ;;
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
if [[ $end == waits ]]; then sleep 5 & wait $!; end=0; fi
exit "$end"
END
chmod +x .venv/bin/*
"""
TPU = ("pod", "us-east5-b")


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
        assert "gcloud" in run("tpu_vm.sh", "--dry-run", action, *TPU, PROJECT="p").stdout
        assert "--project=p" in run("tpu_vm.sh", "--dry-run", action, *TPU, PROJECT="p").stdout
    queued = run("queued.sh", "--dry-run", *TPU, "v5p-16", "v2-alpha-tpuv5", "--a=b c")
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
    assert run("tpu_vm.sh", "run", *TPU, CHECK_STATUS="2").returncode == 2
    queued = run("queued.sh", *TPU, "v5p-16", "v2-alpha-tpuv5", CHECK_STATUS="2")
    assert (queued.returncode, queued.stdout) == (2, "")
    assert calls(bin) == []


def test_a_run_is_started_on_all_workers_and_again_after_it_hung(tmp_path, run):
    assert run("tpu_vm.sh", "install", *TPU).returncode == 0
    result = run("tpu_vm.sh", "run", *TPU, "--a=b c", ENDS="75 0")
    assert result.returncode == 0, result.stderr
    assert "worker 0 start 1: -m grain_jax.train --distributed --a=b c" in result.stdout
    assert "worker 1" not in result.stdout
    assert "starts it again, number 1 of 3" in result.stderr
    for worker in (0, 1):
        assert len(starts(tmp_path, worker)) == 2
        log = tmp_path / f"worker-{worker}" / "grain_jax" / "logs" / f"process-{worker}.log"
        assert f"worker {worker} start 1" in log.read_text()


@pytest.mark.parametrize(
    ("ends", "status"), [("2", 2), pytest.param("143", 143, marks=pytest.mark.slow)]
)
def test_a_mistake_or_a_stop_ends_it(tmp_path, run, ends, status):
    run("tpu_vm.sh", "install", *TPU)
    assert run("tpu_vm.sh", "run", *TPU, ENDS=ends).returncode == status
    assert len(starts(tmp_path, 1)) == 1


@pytest.mark.slow
def test_the_same_command_shows_a_run_that_goes_on(tmp_path, run):
    """A run outlives the terminal; installing would change its code."""
    run("tpu_vm.sh", "install", *TPU)
    pid = tmp_path / "worker-0" / "grain_jax" / "train.pid"
    with pytest.raises(Exception, match="timed out"):
        launch(
            "tpu_vm.sh", "run", *TPU, bin=tmp_path / "bin", cwd=tmp_path, timeout=2, ENDS="waits"
        )
    assert pid.exists()
    refused = run("tpu_vm.sh", "install", *TPU)
    assert refused.returncode == 2
    assert "A run is going on there" in refused.stderr
    again = run("tpu_vm.sh", "run", *TPU, ENDS="waits")
    assert again.returncode == 0, again.stderr
    assert "runs already" in again.stdout
    assert len(starts(tmp_path, 0)) == 1


@pytest.mark.slow
def test_a_run_on_a_queued_resource_returns_after_a_preemption(tmp_path, run, bin):
    result = run("queued.sh", *TPU, "v5p-16", "v2-alpha-tpuv5", "--a=b", ENDS="preempted 0")
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("Launcher: pod is")]
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


def test_a_mistake_on_a_queued_resource_is_not_repeated(tmp_path, run, bin):
    options = {"ENDS": "2", "QUEUE_ARGS": "--reserved", "DELETE": "true"}
    result = run("queued.sh", *TPU, "v5p-16", "v2-alpha-tpuv5", **options)
    assert result.returncode == 2, result.stderr
    (request,) = [call for call in calls(bin) if "queued-resources create" in call]
    assert "--reserved" in request
    assert "--spot" not in request
    assert "queued-resources delete" in calls(bin)[-1]
