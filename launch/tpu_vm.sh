#!/usr/bin/env bash
# Every host of a TPU VM slice: copy this checkout, install, start the same command on all of them.
#   launch/tpu_vm.sh [--dry-run] --tpu=NAME --zone=ZONE [--project=NAME] [train flags...]
# The workdir must be a bucket (gs://...) or a shared disk: all hosts write one checkpoint together.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false tpu='' zone='' project='' flags=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    --tpu=*) tpu=${argument#*=} ;;
    --zone=*) zone=${argument#*=} ;;
    --project=*) project=${argument#*=} ;;
    *) flags+=("$argument") ;;
  esac
done
if [[ -z $tpu || -z $zone ]]; then
  echo "launch/tpu_vm.sh needs --tpu=NAME (the slice) and --zone=ZONE (where it is)." >&2
  exit 2
fi

where=("--zone=$zone" --worker=all)
[[ -z $project ]] || where+=("--project=$project")
run() { if $dry_run; then printf '%q ' "$@" && echo; else "$@"; fi; }

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$tpu:grain_jax.tar.gz" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" --command \
  "mkdir -p grain_jax && tar xzf grain_jax.tar.gz -C grain_jax && cd grain_jax && pip install -q -e '.[tpu]'"
run gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" --command \
  "cd grain_jax && JAX_PLATFORMS=tpu $(printf '%q ' python3 -m grain_jax.train --distributed "${flags[@]}")"
