#!/usr/bin/env bash
# Inside a Slurm job: the step, and what follows from how it ended. Started by launch/slurm.sh.
#
#   launch/lib/slurm_job.sh LOGS COMMAND [ARGUMENT ...]
#
# Saved on SIGTERM (the time limit, a preemption): the job queues itself again. A step that hung or
# lost a process is started again in the same job, RETRIES times in a row. Anything else ends it.
set -uo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/lib/common.sh
. "$folder/common.sh"

need_words "LOGS COMMAND [ARGUMENT ...]" 2 "$@"
logs=$1/$SLURM_JOB_ID
shift
mkdir -p "$logs"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
while true; do
  rm -f "$logs"/process-*.status
  SECONDS=0
  srun --kill-on-bad-exit=1 bash "$folder/slurm_task.sh" "$logs" "$@"
  code=$?
  # The step's own status is the highest of its tasks, so that a task killed over another's mistake
  # would hide it. A task that was killed has left none.
  statuses=()
  for file in "$logs"/process-*.status; do
    if [[ -f "$file" ]]; then statuses+=("$(<"$file")"); fi
  done
  if ((${#statuses[@]} == 0)); then statuses=("$code"); fi
  if ((code != 0)); then statuses+=("$AGAIN"); fi # where all that is known are ends without fault
  judge "${statuses[@]}"
  if [[ "$verdict" != again ]]; then exit "$verdict"; fi
  if [[ " ${statuses[*]} " == *" $SAVED "* ]]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit "$SAVED"
  fi
  one_more_try "$SECONDS" || exit "$AGAIN"
done
