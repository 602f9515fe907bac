#!/usr/bin/env bash
# Several GPU nodes under Slurm: one process a node, found by jax.distributed through Slurm's own variables.
#   launch/slurm.sh [--dry-run] [--nodes=2] [--gpus=8] [--time=24:00:00] [--partition=NAME] [train flags...]
# The workdir must be on a file system that all nodes share. A requeued job resumes where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false nodes=2 gpus=8 limit=24:00:00 partition='' flags=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    --nodes=*) nodes=${argument#*=} ;;
    --gpus=*) gpus=${argument#*=} ;;
    --time=*) limit=${argument#*=} ;;
    --partition=*) partition=${argument#*=} ;;
    *) flags+=("$argument") ;;
  esac
done

# SIGTERM two minutes before the limit: the trainer saves, exits, and the job is put back in the queue.
options=("--job-name=grain_jax" "--nodes=$nodes" "--ntasks-per-node=1" "--gpus-per-node=$gpus"
  "--time=$limit" --requeue --signal=TERM@120 --open-mode=append)
[[ -z $partition ]] || options+=("--partition=$partition")
wrapped="srun env JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_MEM_FRACTION=0.92"
wrapped+=" $(printf '%q ' "${PYTHON:-python}" -m grain_jax.train --distributed "${flags[@]}")"
command=(sbatch "${options[@]}" "--wrap=$wrapped")
if $dry_run; then printf '%q ' "${command[@]}" && echo; else exec "${command[@]}"; fi
