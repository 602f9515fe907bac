#!/usr/bin/env bash
# Several GPU nodes under Slurm: one process a GPU, found and joined by JAX itself.
#
#   launch/slurm.sh [--dry-run] NODES GPUS_PER_NODE [arguments of grain_jax.train ...]
#
# Run it on the login node, in the folder that holds the environment and the data. Slurm sends
# SIGTERM ten minutes before the time limit; the run then saves, stops, and the job queues itself
# again. SBATCH_ARGS: more options of sbatch, such as "--partition=gpu
# --time=24:00:00 --cpus-per-task=16": data.num_workers are loader processes of each training process.
# PYTHON is the interpreter on the nodes.
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

read -r -a extra <<<"${SBATCH_ARGS:-}"
submit=(sbatch --job-name=grain --nodes="$nodes" --ntasks-per-node="$gpus"
  --gpus-per-node="$gpus" --signal=TERM@600 --requeue --open-mode=append
  --output=grain-%j.log ${extra[@]+"${extra[@]}"})
train=$(printf ' %q' "${PYTHON:-python}" -m grain_jax.train --distributed "$@")

# 143: saved and stopped by SIGTERM, so the same command can go on.
job=$(
  cat <<EOF
#!/usr/bin/env bash
export SRUN_CPUS_PER_TASK="\${SLURM_CPUS_PER_TASK:-1}"
srun --kill-on-bad-exit=1${train}
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
