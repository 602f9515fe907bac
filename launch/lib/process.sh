#!/usr/bin/env bash
# One process of a run: its log under its index, its exit status in a file, the screen for the lead.
#
#   launch/lib/process.sh INDEX LOGS COMMAND [ARGUMENT ...]
#
# INDEX: a number, or "auto": the task of a Slurm step, or the worker of a TPU VM. Appends all output
# to LOGS/process-INDEX.log; that of process 0 is shown too. Of another that fails, the last lines
# are. LOGS/process-INDEX.status has the exit status once it has ended.
set -euo pipefail
# shellcheck source=launch/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_words "INDEX|auto LOGS COMMAND [ARGUMENT ...]" 3 "$@"
index=$1
logs=$2
shift 2
if [[ "$index" == auto ]]; then
  index=${SLURM_PROCID:-}
  if [[ -z "$index" ]]; then
    index=$(curl -sf -H "Metadata-Flavor: Google" \
      "http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number") || {
      echo "Which process this is, neither Slurm nor the metadata of a TPU VM say; give its number." >&2
      exit 2
    }
  fi
fi
if [[ ! "$index" =~ ^[0-9]+$ ]]; then
  echo "INDEX: given $index, expected a number or auto." >&2
  exit 2
fi

mkdir -p "$logs"
log=$logs/process-$index.log
rm -f "$logs/process-$index.status"
exec 3>&2
if ((index == 0)); then
  exec > >(trap '' INT TERM HUP && exec tee -a "$log") 2>&1 # which ends when its input does
  shown=${!:-}
else
  exec >>"$log" 2>&1
  shown=""
fi
printf '== %s on %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(uname -n)" "$(shell_words "$@")"
with_signals "$@"
printf '== %s: exit status %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$status"
echo "$status" >"$logs/process-$index.status"
if [[ -n "$shown" ]]; then
  exec >&3 2>&3
  # Until the last line is out; but not for ever, as something the run has left may hold the pipe.
  (sleep 5 && kill -KILL "$shown") >/dev/null 2>&1 3>&- &
  wait "$shown" 2>/dev/null || true
  kill $! 2>/dev/null || true
elif ((status != 0 && status != SAVED)); then
  echo "Process $index ended with exit status $status; the last lines of $log:" >&3
  tail -n 20 "$log" | sed '$d' >&3
fi
exit "$status"
