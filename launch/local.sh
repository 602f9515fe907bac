#!/usr/bin/env bash
# Several training processes on this machine's CPU, to try a multi-host run without a cluster.
#   launch/local.sh [--dry-run] [--processes=2] [train flags...]
set -euo pipefail
cd "$(dirname "$0")/.."

processes=2 dry_run=false port=${PORT:-29400} flags=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    --processes=*) processes=${argument#*=} ;;
    *) flags+=("$argument") ;;
  esac
done

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM
for ((rank = 0; rank < processes; rank++)); do
  command=("${PYTHON:-python}" -m grain_jax.train "--coordinator=127.0.0.1:$port"
    "--num_processes=$processes" "--process_id=$rank" "${flags[@]}")
  if $dry_run; then
    echo "JAX_PLATFORMS=cpu ${command[*]}"
  else
    JAX_PLATFORMS=cpu "${command[@]}" &
    pids+=($!)
  fi
done

status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit "$status"
