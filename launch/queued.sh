#!/usr/bin/env bash
# A run on a queued resource of Cloud TPU: waits for the TPU, runs, and returns after a preemption.
#
#   launch/queued.sh [--dry-run] TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION [arguments of grain_jax.train ...]
#
# Requests the TPU where there is no request of this name, waits until it is there, installs, and
# runs as launch/tpu_vm.sh does. Where the TPU is taken away, the request is deleted and made anew,
# and the run resumes from its newest checkpoint: --workdir must outlive the TPU. The same command
# again, after this terminal is gone, continues where that is. At the end of the run the TPU stays,
# and is paid for, unless DELETE=true; to delete it: gcloud compute tpus queued-resources delete
# TPU_NAME --zone=ZONE --force. --dry-run checks the settings, prints the commands and runs none.
# In the environment: QUEUE_ARGS, more options of the request (default --spot; "" for on-demand, or
# --reserved); POLL, seconds between two looks at the queue (default 60); DELETE; and those of
# launch/tpu_vm.sh. RETRIES does not count preemptions.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib/common.sh
. "$folder/lib/common.sh"

take_dry_run "$@"
shift "$taken"
if (($# < 4)) || [[ "$1 $2 $3 $4" == -* || "$1 $2 $3 $4" == *\ -* ]]; then
  echo "usage: $0 [--dry-run] TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION [arguments of grain_jax.train ...]" >&2
  if (($# >= 4)); then echo "no option may stand before these; given: $1 $2 $3 $4" >&2; fi
  exit 2
fi
name=$1
zone=$2
type=$3
version=$4
shift 4
where=(--zone="$zone")
if [[ -n "${PROJECT:-}" ]]; then where+=(--project="$PROJECT"); fi
read -r -a extra <<<"${QUEUE_ARGS---spot}"
queue=(gcloud compute tpus queued-resources)

request() {
  run_or_print "${queue[@]}" create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$version" ${extra[@]+"${extra[@]}"}
}
remove() {
  run_or_print "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
}

started=$(bash "$folder/tpu_vm.sh" --dry-run run "$name" "$zone" "$@") # which checks the settings
if $dry_run; then
  request
  bash "$folder/tpu_vm.sh" --dry-run install "$name" "$zone"
  echo "$started"
  exit
fi

state=-
look() { # at the queue, for `state`: "" without a request of this name
  local before=$state
  state=$("${queue[@]}" describe "$name" "${where[@]}" --format="value(state.state)" 2>/dev/null) || state=""
  if [[ "$state" != "$before" ]]; then echo "Launcher: $name is ${state:-not requested yet}." >&2; fi
}

installed=false
while true; do
  look
  case $state in
  "")
    installed=false
    request
    ;;
  ACTIVE)
    if ! $installed && [[ "$(bash "$folder/tpu_vm.sh" going "$name" "$zone")" != *yes* ]]; then
      bash "$folder/tpu_vm.sh" install "$name" "$zone" || {
        sleep "${POLL:-60}"
        continue
      }
    fi
    installed=true
    status=0
    bash "$folder/tpu_vm.sh" run "$name" "$zone" "$@" || status=$?
    judge "$status"
    if [[ "$verdict" != again ]]; then
      if [[ "${DELETE:-false}" == true ]]; then remove; fi
      exit "$verdict"
    fi
    for ((i = 0; i < 5; i++)); do # the state follows a preemption after a while
      sleep "${POLL:-60}"
      look
      if [[ "$state" != ACTIVE ]]; then continue 2; fi
    done
    exit "$status" # stopped by somebody, or tried often enough
    ;;
  SUSPENDED | FAILED)
    installed=false
    remove
    ;;
  *) sleep "${POLL:-60}" ;;
  esac
done
