#!/usr/bin/env bash
# One machine, one or several GPUs: one process drives them all.
#
#   launch/gpus.sh [--dry-run] GPUS [arguments of grain_jax.train ...]
#
# GPUS: "all", or the numbers of some, as nvidia-smi lists them: 0,1,2,3. The batch is split over
# them; for models that do not fit, add --mesh.fsdp=-1 --mesh.data=1. A run that hung or was killed
# is started again, and resumes. What it says is also in LOGS/process-0.log. --dry-run checks
# settings and data, needs no GPU, and prints the command instead of starting it.
# In the environment: PYTHON, MODULE, RETRIES, LOGS (launch/lib/common.sh);
# XLA_PYTHON_CLIENT_MEM_FRACTION, the fraction of GPU memory that JAX takes (default .95, as nothing
# else is to run there).
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib/common.sh
. "$folder/lib/common.sh"

take_arguments "all|0,1,... [arguments of grain_jax.train ...]" 1 "$@"
shift "$taken"
if [[ ! "$1" =~ ^(all|[0-9]+(,[0-9]+)*)$ ]]; then end_with_usage "given: $1"; fi
gpus=$1
shift

command=(env JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
  XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-.95}")
count=""
if [[ "$gpus" != all ]]; then
  command+=(CUDA_VISIBLE_DEVICES="$gpus")
  commas=${gpus//[0-9]/}
  count=$((${#commas} + 1))
fi
command+=("${PYTHON:-python}" -m "$MODULE" "$@")

if $dry_run; then
  bash "$folder/check.sh" "$MODULE" "$count" "$@"
  run_or_print "${command[@]}"
  exit
fi
while true; do
  SECONDS=0
  with_signals bash "$folder/lib/process.sh" 0 "$LOGS" "${command[@]}"
  judge "$status"
  if [[ "$verdict" != again || -n "$signalled" ]]; then exit "$status"; fi
  one_more_try "$SECONDS" || exit "$status"
done
