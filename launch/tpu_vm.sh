#!/usr/bin/env bash
# A Cloud TPU VM, one host or a pod slice: the same command on every worker.
#
#   launch/tpu_vm.sh [--dry-run] TPU_NAME ZONE [arguments of grain_jax.train ...]
#
# The code is copied to every worker and installed there with the extras "tpu" and "gcs". --workdir and
# --data.data_dir must be reachable from all workers (gs://bucket/folder, or a mounted disk), and
# are looked for there: before anything starts, here, and with --dry-run only here, the settings are
# checked, which needs grain_jax installed on this machine too. After a preemption, start it again:
# the run resumes from its last checkpoint. It outlives this terminal; to save and stop it:
# gcloud ... ssh --worker=all --command='kill $(cat ~/grain_jax/train.pid)'.
# In the environment: PROJECT, the Google Cloud project, if not the default one; PYTHON, 3.11 or
# 3.12 on the workers (default python3.11; on images without it: sudo apt-get install
# python3.11-venv); LOCAL_PYTHON, the interpreter on this machine (default python); MODULE, what
# runs (default grain_jax.train; grain_jax.evaluate takes its own arguments).
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
if (($# < 2)) || [[ "$1" == -* || "$2" == -* ]]; then
  echo "usage: $0 [--dry-run] TPU_NAME ZONE [arguments of grain_jax.train ...]" >&2
  if (($# >= 2)); then echo "TPU_NAME and ZONE come first; given: $1 $2" >&2; fi
  exit 2
fi
name=$1
zone=$2
shift 2
module=${MODULE:-grain_jax.train}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [[ "$module" == grain_jax.train ]]; then
  JAX_PLATFORMS=cpu "${LOCAL_PYTHON:-python}" -m grain_jax.train --print_config "$@" >/dev/null
  echo "Checked: settings. Data and workdir are on the workers, and are checked there." >&2
fi

where=(--zone="$zone" --worker=all)
if [[ -n "${PROJECT:-}" ]]; then where+=(--project="$PROJECT"); fi

run() {
  if $dry_run; then echo "$*"; else "$@"; fi
}

sources=("$root/grain_jax" "$root/configs" "$root/pyproject.toml" "$root/setup.cfg"
  "$root/README.md" "$root/LICENSE")
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="mkdir -p ~/grain_jax"
run gcloud compute tpus tpu-vm scp --recurse "${sources[@]}" "$name:~/grain_jax" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" \
  --command="cd ~/grain_jax && ${PYTHON:-python3.11} -m venv .venv && .venv/bin/pip install -q -e '.[tpu,gcs]'"
arguments=""
if (($#)); then arguments=$(printf ' %q' "$@"); fi
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="cd ~/grain_jax && \
{ JAX_PLATFORMS=tpu setsid nohup .venv/bin/python -m $module --distributed$arguments \
>train.log 2>&1 </dev/null & echo \$! >train.pid; } && tail -n +1 --pid=\$(cat train.pid) -F train.log"
