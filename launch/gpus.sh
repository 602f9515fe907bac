#!/usr/bin/env bash
# One machine, several GPUs: one process drives them all, no launcher needed.
#
#   launch/gpus.sh [--dry-run] GPUS [arguments of grain_jax.train ...]
#
# GPUS: "all", or the numbers of some, as nvidia-smi lists them: 0,1,2,3. The batch is split over
# them; for models that do not fit, add --mesh.fsdp=-1 --mesh.data=1.
# --dry-run checks settings and data, needs no GPU, and prints the command instead of starting it.
# In the environment: PYTHON, the interpreter; MODULE, what runs (default grain_jax.train;
# grain_jax.evaluate takes its own arguments); XLA_PYTHON_CLIENT_MEM_FRACTION, the fraction of GPU
# memory that JAX takes (default .95, as nothing else is to run there).
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ ! "${1:-}" =~ ^(all|[0-9]+(,[0-9]+)*)$ ]]; then
  echo "usage: $0 [--dry-run] all|0,1,... [arguments of grain_jax.train ...]" >&2
  exit 2
fi
gpus=$1
shift
module=${MODULE:-grain_jax.train}
check=$(dirname "${BASH_SOURCE[0]}")/check.sh

command=(env JAX_PLATFORMS=cuda
  XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-.95}")
count=""
if [[ "$gpus" != all ]]; then
  command+=(CUDA_VISIBLE_DEVICES="$gpus")
  commas=${gpus//[0-9]/}
  count=$((${#commas} + 1))
fi
command+=("${PYTHON:-python}" -m "$module" "$@")

if $dry_run; then
  bash "$check" "$module" "$count" "$@"
  for ((i = 0; i < ${#command[@]}; i++)); do # quoted where a shell would need it
    [[ "${command[i]}" =~ ^[A-Za-z0-9_.,:=/+-]+$ ]] || command[i]=$(printf '%q' "${command[i]}")
  done
  echo "${command[*]}"
else
  exec "${command[@]}"
fi
