#!/usr/bin/env bash
# Several training processes on this machine's CPU, to try what many machines do.
#
#   launch/local.sh [--dry-run] NUM_PROCESSES [arguments of grain_jax.train ...]
#
# Each process gets one host device (override with --config.mesh.cpu_devices=N). Ctrl-C saves and
# stops all of them. PORT (default 12355) is where they meet; PYTHON is the interpreter.
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

pids=()
for ((i = 0; i < count; i++)); do
  command=("${PYTHON:-python}" -m grain_jax.train --config.mesh.cpu_devices=1 "$@"
    --coordinator="localhost:${PORT:-12355}" --num_processes="$count" --process_id="$i")
  if $dry_run; then
    echo "JAX_PLATFORMS=cpu ${command[*]}"
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
