#!/usr/bin/env bash
# A run on a queued resource of Cloud TPU: waits for the TPU, runs, and returns after a preemption.
#
#   launch/queued.sh [--dry-run] TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION [arguments of grain_jax.train ...]
#
# Requests the TPU where there is no request of this name, waits until it is there, installs, and
# runs as launch/tpu_vm.sh does. Where the TPU is taken away, the request is deleted and made anew,
# and the run resumes from its newest checkpoint: --workdir must outlive the TPU. The same command
# again, after this terminal is gone, continues where that is. At the end of the run the TPU stays,
# and is paid for, unless DELETE=true, which deletes it where this gives up, too; to delete it: gcloud compute tpus queued-resources delete
# TPU_NAME --zone=ZONE --force. --dry-run checks the settings, prints the commands and runs none.
# In the environment: QUEUE_ARGS, more options of the request (default --spot; "" for on-demand, or
# --reserved); POLL, seconds between two looks at the queue (default 60); DELETE; and those of
# launch/tpu_vm.sh. RETRIES does not count preemptions; it does count requests that fail or are
# refused, and installations that fail, in a row.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib/common.sh
. "$folder/lib/common.sh"

take_arguments "TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION [arguments of grain_jax.train ...]" 4 "$@"
shift "$taken"
name=$1
zone=$2
type=$3
version=$4
shift 4
in_zone "$zone"
read -r -a extra <<<"${QUEUE_ARGS---spot}"
queue=(gcloud compute tpus queued-resources)

request() {
  run_or_print "${queue[@]}" create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$version" ${extra[@]+"${extra[@]}"}
}
remove() {
  run_or_print "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
}

need_workdir "the disks of the TPU" "$@"
started=$(bash "$folder/tpu_vm.sh" --dry-run run "$name" "$zone" "$@") # which checks the settings
if $dry_run; then
  request
  bash "$folder/tpu_vm.sh" --dry-run install "$name" "$zone"
  echo "$started"
  exit
fi

state=-
answered=false
finish() { # STATUS: ends, with the TPU deleted or a word that it is not
  if ! $answered || [[ -z "$state" ]]; then exit "$1"; fi
  if [[ "${DELETE:-false}" == true ]] && remove; then exit "$1"; fi
  echo "Launcher: $name is not deleted, and a TPU is paid for as long as it is there. To delete it:" \
    "$(shell_words "${queue[@]}" delete "$name" "${where[@]}" --force)" >&2
  exit "$1"
}

failures=0 # in a row, without a TPU that was installed between
failed() { # WHAT: waits before it is tried again, or gives up
  failures=$((failures + 1))
  if ((failures > RETRIES)); then
    echo "Launcher: $1; that is failure number $failures in a row (RETRIES=$RETRIES), so it gives up." >&2
    finish "$AGAIN"
  fi
  echo "Launcher: $1; it tries again in ${POLL:-60} s, number $failures of $RETRIES." >&2
  sleep "${POLL:-60}"
}

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
look() { # at the queue, for `state`: "" without a request of this name, "unknown" without an answer
  local before=$state
  state=$("${queue[@]}" describe "$name" "${where[@]}" --format="value(state.state)" 2>"$errors") || {
    state=unknown
    if grep -q NOT_FOUND "$errors"; then state=""; fi
  }
  if [[ "$state" == unknown ]]; then cat "$errors" >&2; fi
  if [[ "$state" != "$before" ]]; then echo "Launcher: $name is ${state:-not requested yet}." >&2; fi
}

installed=false
while true; do
  look
  if [[ "$state" == unknown ]]; then
    # One that was seen before is still there: only the way to it is gone for a while.
    if $answered; then sleep "${POLL:-60}"; else failed "the queue could not be looked at"; fi
    continue
  fi
  answered=true
  case $state in
  "")
    installed=false
    request || failed "the request was refused"
    ;;
  ACTIVE)
    if ! $installed; then
      if [[ "$(bash "$folder/tpu_vm.sh" going "$name" "$zone")" != *yes* ]]; then
        bash "$folder/tpu_vm.sh" install "$name" "$zone" || {
          failed "the installation on $name failed"
          continue
        }
      fi
      installed=true
      failures=0
    fi
    status=0
    SECONDS=0
    bash "$folder/tpu_vm.sh" run "$name" "$zone" "$@" || status=$?
    judge "$status"
    if [[ "$verdict" != again ]]; then finish "$verdict"; fi
    if ((SECONDS >= 3600)); then failures=0; fi
    for ((i = 0; i < 5; i++)); do # the state follows a preemption after a while
      sleep "${POLL:-60}"
      look
      if [[ "$state" != ACTIVE ]]; then continue 2; fi
    done
    if ((status == UNREACHED)); then
      failed "$name is ACTIVE and not all of its workers were reached"
    elif ((status == SAVED)); then # somebody has stopped it, and may continue there
      DELETE=false finish "$status"
    else
      finish "$status"
    fi
    ;;
  SUSPENDED)
    installed=false
    if remove; then sleep "${POLL:-60}"; else failed "the request could not be deleted"; fi
    ;;
  FAILED)
    installed=false
    "${queue[@]}" describe "$name" "${where[@]}" --format="yaml(state)" >&2 || true # why
    remove || true
    failed "the request has failed, as said above"
    ;;
  *) sleep "${POLL:-60}" ;;
  esac
done
