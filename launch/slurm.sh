#!/usr/bin/env bash
# GPU nodes under Slurm, one or several: one process a GPU, found and joined by JAX itself.
#
#   launch/slurm.sh [--dry-run] NODES GPUS_PER_NODE [arguments of grain_jax.train ...]
#
# Run it on the login node, in the folder that holds the environment and the data, from a checkout
# that the nodes see too: settings, data and mesh are checked there before the job is submitted.
# --dry-run checks too, and prints the job.
# Slurm sends SIGTERM ten minutes before the time limit; the run then saves, stops, and the job
# queues itself again. A run that hung or lost a process is started again in the same job; a mistake
# in the command or the data ends it. Each task gets a CPU for itself and one for each of
# data.num_workers loader processes; where the nodes have fewer, ask for fewer, and fewer loader
# processes start.
# The job's log, LOGS/slurm-JOB.log, is what process 0 says; all have LOGS/JOB/process-N.log.
# In the environment: SBATCH_ARGS, more options of sbatch, such as "--partition=gpu --time=24:00:00
# --cpus-per-task=8"; PYTHON, here and on the nodes; MODULE, RETRIES, LOGS (launch/lib/common.sh);
# XLA_PYTHON_CLIENT_MEM_FRACTION, the fraction of GPU memory that JAX takes (default .95).
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib/common.sh
. "$folder/lib/common.sh"

take_arguments "NODES GPUS_PER_NODE [arguments of grain_jax.train ...]" 2 "$@"
shift "$taken"
if [[ ! "$1 $2" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]]; then end_with_usage "given: $1 $2"; fi
nodes=$1
gpus=$2
shift 2

bash "$folder/check.sh" "$MODULE" "${nodes}x$gpus" "$@"
cpus=4 # of an evaluation: threads of one process decode
if [[ "$MODULE" == grain_jax.train ]]; then
  # With threads instead of loader processes, they are what needs the CPUs.
  cpus=$(JAX_PLATFORMS=cpu "${PYTHON:-python}" -m grain_jax.train --print_config "$@" 2>/dev/null |
    "${PYTHON:-python}" -c 'import json, sys
data = json.load(sys.stdin)["data"]
print(1 + (data["num_workers"] or data["num_threads"]))')
fi

read -r -a extra <<<"${SBATCH_ARGS:-}"
submit=(sbatch --job-name=grain --nodes="$nodes" --ntasks-per-node="$gpus"
  --gpus-per-node="$gpus" --cpus-per-task="$cpus" --signal=TERM@600 --requeue --open-mode=append
  --output="$LOGS/slurm-%j.log" ${extra[@]+"${extra[@]}"})
command=(bash "$folder/lib/slurm_job.sh" "$LOGS" "${PYTHON:-python}" -m "$MODULE" --distributed "$@")

job=$(
  cat <<EOF_JOB
#!/usr/bin/env bash
export JAX_PLATFORMS="\${JAX_PLATFORMS:-cuda}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="\${XLA_PYTHON_CLIENT_MEM_FRACTION:-.95}"
export RETRIES=$RETRIES
exec $(shell_words "${command[@]}")
EOF_JOB
)

if $dry_run; then
  printf '%s <<EOF\n%s\nEOF\n' "$(shell_words "${submit[@]}")" "$job"
else
  mkdir -p "$LOGS" # where Slurm's log goes must be there
  "${submit[@]}" <<<"$job"
fi
