#!/usr/bin/env bash
# One machine, several GPUs: one process drives them all, no launcher needed.
#
#   launch/gpus.sh [--dry-run] GPUS [arguments of grain_jax.train ...]
#
# GPUS: "all", or the numbers of some, as nvidia-smi lists them: 0,1,2,3. PYTHON is the interpreter.
# The batch is split over them; for models that do not fit, add --config.mesh.fsdp=-1
# --config.mesh.data=1.
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

command=(env JAX_PLATFORMS=cuda)
if [[ "$gpus" != all ]]; then command+=(CUDA_VISIBLE_DEVICES="$gpus"); fi
command+=("${PYTHON:-python}" -m grain_jax.train "$@")

if $dry_run; then
  echo "${command[*]}"
else
  exec "${command[@]}"
fi
