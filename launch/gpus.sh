#!/usr/bin/env bash
# One machine with one or more GPUs: one process drives them all.
#   launch/gpus.sh [--dry-run] [--gpus=0,1,2,3] [train flags...]
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false gpus=${CUDA_VISIBLE_DEVICES:-} flags=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    --gpus=*) gpus=${argument#*=} ;;
    *) flags+=("$argument") ;;
  esac
done

# JAX_PLATFORMS=cuda: stop rather than fall back to the CPU without a word.
environment=(JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_MEM_FRACTION=0.92)
[[ -z $gpus ]] || environment+=("CUDA_VISIBLE_DEVICES=$gpus")
command=(env "${environment[@]}" "${PYTHON:-python}" -m grain_jax.train "${flags[@]}")
if $dry_run; then echo "${command[*]}"; else exec "${command[@]}"; fi
