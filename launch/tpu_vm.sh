#!/usr/bin/env bash
# A Cloud TPU VM, one host or a pod slice: the same command on every worker.
#
#   launch/tpu_vm.sh [--dry-run] create TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION [options of gcloud ...]
#   launch/tpu_vm.sh [--dry-run] install TPU_NAME ZONE
#   launch/tpu_vm.sh [--dry-run] run TPU_NAME ZONE [arguments of grain_jax.train ...]
#   launch/tpu_vm.sh [--dry-run] stop TPU_NAME ZONE
#   launch/tpu_vm.sh [--dry-run] delete TPU_NAME ZONE
#
# create: at once, or not at all (launch/queued.sh waits). install: copies the code to every worker
# and installs it there with the extra "tpu". run: checks the settings here, which needs grain_jax on
# this machine too, starts the run on every worker and shows what the first one says. --workdir,
# which has to be given, and --data.data_dir must be reachable from all workers (gs://bucket/folder,
# or a mounted disk), and are looked for there. The run outlives this terminal: the same command
# shows it again, and gives its exit status; 255 where not all workers can be reached. A run that
# hung or lost a process is started again; workers that have not ended GRACE seconds after the first
# one are killed. stop: saves and stops it. Each worker has its log in
# ~/grain_jax/LOGS/process-N.log. --dry-run prints the commands and runs none.
# In the environment: PYTHON, 3.11 or 3.12 on the workers (default python3.11; on images without it:
# sudo apt-get install python3.11-venv); LOCAL_PYTHON, MODULE, RETRIES, LOGS, GRACE, PROJECT
# (launch/lib/common.sh).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/lib/common.sh
. "$root/launch/lib/common.sh"

take_arguments "create|install|run|stop|delete TPU_NAME ZONE [...]" 3 "$@"
shift "$taken"
action=$1
name=$2
zone=$3
shift 3
in_zone "$zone"
tpu=(gcloud compute tpus tpu-vm)

on() { # WORKER COMMAND
  run_or_print "${tpu[@]}" ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

create() {
  need_words "[--dry-run] create TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION [options of gcloud ...]" 4 \
    "$name" "$zone" "$@"
  run_or_print "${tpu[@]}" create "$name" "${where[@]}" --accelerator-type="$1" --version="$2" "${@:3}"
}

# Whether a run is going on, which `pid` is: a file of one that has ended may name a stranger's by now.
running="pid=\$(cat train.pid 2>/dev/null) && grep -qF launch/lib/process.sh /proc/\$pid/cmdline 2>/dev/null"
going() { # whether a run is going on: "yes" or "no"
  on 0 "mkdir -p ~/grain_jax && cd ~/grain_jax && if $running; then echo yes; else echo no; fi"
}

install() {
  if ! $dry_run && [[ "$(going)" == *yes* ]]; then
    echo "A run is going on there, and to install would change its code; stop it first." >&2
    exit 2
  fi
  local sources=("$root/grain_jax" "$root/configs" "$root/launch" "$root/pyproject.toml"
    "$root/setup.cfg" "$root/README.md" "$root/LICENSE" "$root/NOTICE")
  on all "mkdir -p ~/grain_jax"
  run_or_print "${tpu[@]}" scp --recurse "${sources[@]}" "$name:~/grain_jax" "${where[@]}" --worker=all
  on all "cd ~/grain_jax && ${PYTHON:-python3.11} -m venv .venv && .venv/bin/pip install -q -e '.[tpu,gcs]'"
}

start() {
  on all "cd ~/grain_jax && if $running; then echo 'runs already'; else \
{ JAX_PLATFORMS=tpu setsid nohup bash launch/lib/process.sh auto $(shell_words "$LOGS") \
$(shell_words .venv/bin/python -m "$MODULE" --distributed "$@") \
>/dev/null 2>&1 </dev/null & echo \$! >train.pid; }; fi"
}

follow() { # the first worker's log to its end; not 0 where it cannot be reached, or goes on
  on 0 "cd ~/grain_jax && for i in 1 2 3 4 5; do [ -f $(shell_words "$LOGS")/process-0.log ] || sleep 1; done; \
tail -n 200 --pid=\$(cat train.pid) -F $(shell_words "$LOGS")/process-0.log; ! { $running; }"
}

# In `statuses`, those of all workers. $1: whether the first one has ended. Then what has not GRACE
# seconds later stands still, and is killed; otherwise all may be well but the way to it.
statuses_of_all() {
  local text kill=:
  if $1; then kill="kill -USR1 \$pid; for i in \$(seq 20); do $running || break; sleep 1; done"; fi
  text=$(on all "cd ~/grain_jax && for i in \$(seq $GRACE); do $running || break; sleep 1; done; \
if $running; then $kill; fi; \
echo exit-status \$(cat $(shell_words "$LOGS")/process-*.status)") || text+=" exit-status $UNREACHED"
  statuses=()
  while read -r _ status; do statuses+=("$status"); done < <(grep -oE 'exit-status [0-9]+' <<<"$text")
  if ((${#statuses[@]} == 0)); then statuses=("$UNREACHED"); fi
}

run() {
  need_workdir "the disks of the workers" "$@"
  check_settings "on the workers" "$@"
  if $dry_run; then
    start "$@"
    follow
    return
  fi
  while true; do
    SECONDS=0
    start "$@" || { # with any status, which is gcloud's or ssh's and says nothing about the run
      echo "Launcher: the run could not be started on all workers; the reason is above." >&2
      exit "$UNREACHED"
    }
    ended=false
    if follow; then ended=true; fi
    statuses_of_all "$ended"
    judge "${statuses[@]}"
    if [[ "$verdict" != again ]]; then exit "$verdict"; fi
    for status in "${statuses[@]}"; do # stopped by "stop", or about to be preempted
      if ((status == SAVED)); then exit "$SAVED"; fi
    done
    one_more_try "$SECONDS" || exit "$AGAIN"
  done
}

case $action in
create | install | run | going) "$action" "$@" ;; # "going" is for queued.sh
stop) on all "cd ~/grain_jax && if $running; then kill -TERM \$pid; else echo No run is going on here.; fi" ;;
delete) run_or_print "${tpu[@]}" delete "$name" "${where[@]}" --quiet ;;
*) end_with_usage "given: $action" ;;
esac
