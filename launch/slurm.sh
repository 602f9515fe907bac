#!/usr/bin/env bash
# Several GPU nodes under Slurm: one process a GPU, found and joined by JAX itself.
#
#   launch/slurm.sh [--dry-run] NODES GPUS_PER_NODE [arguments of grain_jax.train ...]
#
# Run it on the login node, in the folder that holds the environment and the data: settings, data
# and mesh are checked there before the job is submitted. --dry-run checks too, and prints the job.
# Slurm sends SIGTERM ten minutes before the time limit; the run then saves, stops, and the job
# queues itself again. Each task gets a CPU for itself and one for each of data.num_workers loader
# processes; where the nodes have fewer, ask for fewer, and fewer loader processes start.
# In the environment: SBATCH_ARGS, more options of sbatch, such as "--partition=gpu --time=24:00:00
# --cpus-per-task=8"; PYTHON, the interpreter here and on the nodes; MODULE, what runs (default
# grain_jax.train; grain_jax.evaluate takes its own arguments); XLA_PYTHON_CLIENT_MEM_FRACTION, the
# fraction of GPU memory that JAX takes (default .95).
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ ! "${1:-} ${2:-}" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]]; then
  echo "usage: $0 [--dry-run] NODES GPUS_PER_NODE [arguments of grain_jax.train ...]" >&2
  exit 2
fi
nodes=$1
gpus=$2
shift 2
module=${MODULE:-grain_jax.train}
check=$(dirname "${BASH_SOURCE[0]}")/check.sh

bash "$check" "$module" "${nodes}x$gpus" "$@"
cpus=4 # of an evaluation: threads of one process decode
if [[ "$module" == grain_jax.train ]]; then
  # With threads instead of loader processes, they are what needs the CPUs.
  cpus=$(JAX_PLATFORMS=cpu "${PYTHON:-python}" -m grain_jax.train --print_config "$@" 2>/dev/null |
    "${PYTHON:-python}" -c 'import json, sys
data = json.load(sys.stdin)["data"]
print(1 + (data["num_workers"] or data["num_threads"]))')
fi

read -r -a extra <<<"${SBATCH_ARGS:-}"
submit=(sbatch --job-name=grain --nodes="$nodes" --ntasks-per-node="$gpus"
  --gpus-per-node="$gpus" --cpus-per-task="$cpus" --signal=TERM@600 --requeue --open-mode=append
  --output=grain-%j.log ${extra[@]+"${extra[@]}"})
command=$(printf ' %q' "${PYTHON:-python}" -m "$module" --distributed "$@")

# 143: saved and stopped by SIGTERM, so the same command can go on.
job=$(
  cat <<EOF
#!/usr/bin/env bash
export SRUN_CPUS_PER_TASK="\${SLURM_CPUS_PER_TASK:-1}"
export JAX_PLATFORMS="\${JAX_PLATFORMS:-cuda}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="\${XLA_PYTHON_CLIENT_MEM_FRACTION:-.95}"
srun --kill-on-bad-exit=1${command}
code=\$?
if [[ \$code -eq 143 ]]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit \$code
EOF
)

if $dry_run; then
  printf '%s <<EOF\n%s\nEOF\n' "${submit[*]}" "$job"
else
  "${submit[@]}" <<<"$job"
fi
