#!/usr/bin/env bash
# Several processes on this machine's CPU, to try what many machines do.
#
#   launch/local.sh [--dry-run] NUM_PROCESSES [arguments of grain_jax.train ...]
#
# Each training process gets one host device (override with --mesh.cpu_devices=N). Ctrl-C
# saves and stops all of them. --dry-run checks settings and data, and prints the commands.
# In the environment: PORT (default 12355), where they meet; PYTHON, the interpreter; MODULE, what
# runs (default grain_jax.train; grain_jax.evaluate takes its own arguments).
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 [--dry-run] NUM_PROCESSES [arguments of grain_jax.train ...]" >&2
  exit 2
fi
count=$1
shift
module=${MODULE:-grain_jax.train}
check=$(dirname "${BASH_SOURCE[0]}")/check.sh

arguments=("$@")
if [[ "$module" == grain_jax.train ]]; then arguments=(--mesh.cpu_devices=1 "$@"); fi
if $dry_run; then bash "$check" "$module" "" "$@"; fi # how many devices each has is a setting

pids=()
for ((i = 0; i < count; i++)); do
  command=("${PYTHON:-python}" -m "$module" ${arguments[@]+"${arguments[@]}"}
    --coordinator="localhost:${PORT:-12355}" --num_processes="$count" --process_id="$i")
  if $dry_run; then
    echo "JAX_PLATFORMS=cpu$(printf ' %q' "${command[@]}")"
  else
    JAX_PLATFORMS=cpu "${command[@]}" &
    pids+=($!)
  fi
done

# A signal goes to all processes, for background jobs start deaf to the terminal's Ctrl-C; then wait
# for them again, as they save first.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
status=0
for pid in ${pids[@]+"${pids[@]}"}; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal ends `wait`, not the process
    code=0
    wait "$pid" || code=$?
  done
  if ((code != 0)); then status=$code; fi
done
exit "$status"
