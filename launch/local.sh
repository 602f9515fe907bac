#!/usr/bin/env bash
# Several processes on this machine's CPU, to try what many machines do.
#
#   launch/local.sh [--dry-run] NUM_PROCESSES [arguments of grain_jax.train ...]
#
# Each training process gets one host device (override with --mesh.cpu_devices=N). Ctrl-C saves and
# stops all of them. A run that hung or lost a process is started again, and resumes; processes that
# have not ended GRACE seconds after one has failed are killed. --dry-run checks settings and data,
# and prints the commands.
# In the environment: PORT (default 12355), where they meet; PYTHON, MODULE, RETRIES, LOGS, GRACE
# (launch/lib/common.sh).
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib/common.sh
. "$folder/lib/common.sh"

take_arguments "NUM_PROCESSES [arguments of grain_jax.train ...]" 1 "$@"
shift "$taken"
if [[ ! "$1" =~ ^[1-9][0-9]*$ ]]; then end_with_usage "given: $1"; fi
count=$1
shift

arguments=("$@")
if [[ "$MODULE" == grain_jax.train ]]; then arguments=(--mesh.cpu_devices=1 "$@"); fi
export JAX_PLATFORMS=cpu
command_of() { # process number: its command, in `command`
  command=("${PYTHON:-python}" -m "$MODULE" ${arguments[@]+"${arguments[@]}"}
    --coordinator="localhost:${PORT:-12355}" --num_processes="$count" --process_id="$1")
}
if $dry_run; then
  bash "$folder/check.sh" "$MODULE" "" "$@" # how many devices each has is a setting
  for ((i = 0; i < count; i++)); do
    command_of "$i"
    echo "JAX_PLATFORMS=cpu $(shell_words "${command[@]}")"
  done
  exit
fi

one_has_failed() {
  local i code
  for ((i = 0; i < count; i++)); do
    code=$(cat "$LOGS/process-$i.status" 2>/dev/null) || continue
    if [[ "$code" != 0 && "$code" != "$SAVED" ]]; then return; fi
  done
  return 1
}

kill_what_stands_still() { # PIDS: of process.sh
  local pids=("$@") i
  until one_has_failed; do sleep 1 >/dev/null 2>&1; done
  for ((i = 0; i < GRACE; i++)); do sleep 1 >/dev/null 2>&1; done
  for ((i = 0; i < count; i++)); do
    if [[ -f "$LOGS/process-$i.status" ]]; then continue; fi
    echo "Launcher: process $i has not ended $GRACE s after another one failed, and is killed." >&2
    kill -USR1 "${pids[i]}" 2>/dev/null || true
  done
}

start_all() { # their exit statuses are in `statuses`, the last that is not 0 in `status`
  local pids=() i pid last=0
  for ((i = 0; i < count; i++)); do rm -f "$LOGS/process-$i.status"; done
  for ((i = 0; i < count; i++)); do
    command_of "$i"
    bash "$folder/lib/process.sh" "$i" "$LOGS" "${command[@]}" &
    pids+=($!)
  done
  kill_what_stands_still "${pids[@]}" &
  local guard=$!
  # A signal goes to all processes, for background jobs start deaf to the terminal's Ctrl-C; then
  # wait for them again, as they save first.
  trap 'signalled=TERM; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT HUP
  statuses=()
  for pid in "${pids[@]}"; do
    wait_for "$pid"
    if ((status != 0)); then last=$status; fi
    statuses+=("$status")
  done
  status=$last
  trap - TERM INT HUP
  kill "$guard" 2>/dev/null || true
  wait "$guard" 2>/dev/null || true
}

while true; do
  SECONDS=0
  start_all
  judge "${statuses[@]}"
  if [[ "$verdict" != again ]]; then exit "$verdict"; fi
  if [[ -n "$signalled" ]]; then exit "$status"; fi
  one_more_try "$SECONDS" || exit "$status"
done
