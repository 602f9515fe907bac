#!/usr/bin/env bash
# One task of a Slurm step: launch/lib/process.sh under the task's number.
#
#   launch/lib/slurm_task.sh LOGS COMMAND [ARGUMENT ...]
#
# Slurm kills the other tasks when one ends badly, as they would wait for it. An orderly stop is no
# such end: others may still be saving, so it counts as 0, and the file of process.sh says 143.
set -uo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/lib/common.sh
. "$folder/common.sh"

need_words "LOGS COMMAND [ARGUMENT ...]" 2 "$@"
with_signals bash "$folder/process.sh" auto "$@"
if ((status == SAVED)); then status=0; fi
exit "$status"
