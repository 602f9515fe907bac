#!/usr/bin/env bash
# shellcheck disable=SC2034 # those that source this file read what it sets
# What the launchers share: which exit statuses start a run again, signals, quoting. Sourced, not run.
#
# In the environment, the same names in all launchers:
#   PYTHON        the interpreter where the run is (default python; python3.11 on TPU VMs)
#   LOCAL_PYTHON  the interpreter that checks settings on this machine (default PYTHON; TPU VMs and
#                 GKE: python)
#   MODULE        what runs (default grain_jax.train; grain_jax.evaluate takes its own arguments)
#   RETRIES       how often in a row a run that hung or lost a process is started again (default 3;
#                 counted anew after a start that lasted an hour). 0: never
#   LOGS          folder with a log for each process, process-0.log and so on (default logs; on GKE
#                 the logs are those of the pods)
#   GRACE         seconds that processes get to end after another one has failed, and are then killed
#                 (default 90: JAX notices within 45 that another is gone); Slurm and GKE do this
#                 themselves
#   PROJECT       the Google Cloud project, if not the default one

set +o posix # in which a shell forgets the status of a process that it has waited for

MODULE=${MODULE:-grain_jax.train}
RETRIES=${RETRIES:-3}
LOGS=${LOGS:-logs}
GRACE=${GRACE:-90}
if [[ ! "$GRACE" =~ ^[1-9][0-9]*$ ]]; then
  echo "GRACE=$GRACE: expected whole seconds, from 1 on." >&2
  exit 2
fi
if [[ ! "$RETRIES" =~ ^[0-9]+$ ]]; then
  echo "RETRIES=$RETRIES: expected a whole number, 0 to start nothing again." >&2
  exit 2
fi

AGAIN=75  # of grain_jax: a step hung, or another process left; the same command resumes
SAVED=143 # SIGTERM: saved and stopped
UNREACHED=255 # of ssh, and of launch/tpu_vm.sh: not all machines could be told what to do

dry_run=false
take_arguments() { # USAGE COUNT "$@": as `need_words`, after --dry-run; then shift "$taken" words
  local words=$1 count=$2
  shift 2
  taken=0
  if [[ "${1:-}" == --dry-run ]]; then
    dry_run=true
    taken=1
    shift
  fi
  need_words "[--dry-run] $words" "$count" "$@"
}

# Ends with 2 and the usage where fewer than COUNT words are given, or an option is among the first.
need_words() { # USAGE COUNT [words ...]
  local count=$2 word
  usage=$1
  shift 2
  if (($# < count)); then end_with_usage; fi
  for word in "${@:1:count}"; do
    if [[ "$word" == -* ]]; then
      end_with_usage "no option may stand before these; given: ${*:1:count}"
    fi
  done
}

end_with_usage() { # [what was given]
  echo "usage: $0 $usage" >&2
  if (($#)); then echo "$*" >&2; fi
  exit 2
}

shell_words() { # each argument on one line, quoted where a shell would need it
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_.,:=/+@~-]+$ ]] || word=$(printf '%q' "$word")
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# Ends with 2 where a training is given no --workdir, for machines whose disks go with them.
need_workdir() { # WHERE [arguments of MODULE ...]
  local where=$1 word
  shift
  if [[ "$MODULE" != grain_jax.train ]]; then return; fi
  for word in "$@"; do
    if [[ "$word" == --workdir || "$word" == --workdir=?* ]]; then return; fi
  done
  echo "No --workdir is given, so the run would be saved on $where, and a preempted one would start" \
    "again at step 0. Give one that outlives it and that all processes reach:" \
    "--workdir=gs://BUCKET/FOLDER, or a folder on a mounted disk." >&2
  exit 2
}

# Ends with 2 where the settings of a training are wrong; the rest only its own machines can check.
check_settings() { # WHERE they are [arguments of MODULE ...]
  local there=$1
  shift
  if [[ "$MODULE" != grain_jax.train ]]; then return; fi
  JAX_PLATFORMS=cpu "${LOCAL_PYTHON:-python}" -m grain_jax.train --print_config "$@" >/dev/null
  echo "Checked: settings. Data and workdir are $there, and are checked there." >&2
}

in_zone() { # ZONE: where gcloud looks, in `where`
  where=(--zone="$1")
  if [[ -n "${PROJECT:-}" ]]; then where+=(--project="$PROJECT"); fi
}

run_or_print() {
  if $dry_run; then
    shell_words "$@"
    echo
  else
    "$@"
  fi
}

# What the statuses of all processes mean together, in `verdict`: the status that ends the run, or
# "again". A mistake of the user (2) in one process outweighs what it did to the others; so does any
# other end that a second start would only repeat. 75 and ends by a signal (killed, out of memory,
# crashed, preempted) start it again; 130, Ctrl-C, does not.
judge() {
  local status
  verdict=0
  for status in "$@"; do
    if ((status == 2)); then
      verdict=2
      return
    fi
  done
  for status in "$@"; do
    if ((status != 0 && status != AGAIN)) && ((status <= 128 || status == 130)); then
      verdict=$status
      return
    fi
  done
  for status in "$@"; do
    if ((status != 0)); then verdict=again; fi
  done
}

# Whether to start again after a start that lasted $1 seconds; counts in `tries`.
tries=0
one_more_try() {
  if (($1 >= 3600)); then tries=0; fi
  if ((tries >= RETRIES)); then
    echo "Launcher: started $((tries + 1)) times in a row, and it ended each time (RETRIES=$RETRIES)." >&2
    return 1
  fi
  tries=$((tries + 1))
  echo "Launcher: starts it again, number $tries of $RETRIES; it resumes from its newest checkpoint." >&2
}

wait_for() { # PID: waits for its end, signals or not; its exit status is in `status`
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done # a signal ends `wait`, not the process
  status=0
  wait "$1" || status=$? # of a process that has ended: its own status, which no signal replaces
}

# Runs a command that gets the signals which this script gets, SIGTERM where its terminal closes. On
# SIGUSR1 it is killed with all that it has started, as one that stands still hears no other signal.
# Its status is in `status`, the last signal in `signalled` ("" for none).
signalled=""
with_signals() {
  local child=""
  trap 'signalled=INT; if [[ -n "$child" ]]; then kill -INT "$child" 2>/dev/null || true; fi' INT
  trap 'signalled=TERM; if [[ -n "$child" ]]; then kill -TERM "$child" 2>/dev/null || true; fi' TERM HUP
  trap 'if [[ -n "$child" ]]; then kill -KILL -- "-$child" 2>/dev/null || true; fi' USR1
  set -m # a group of its own, in which Ctrl-C is not ignored
  "$@" &
  child=$!
  set +m
  if [[ -n "$signalled" ]]; then kill -"$signalled" "$child" 2>/dev/null || true; fi
  wait_for "$child"
  trap - INT TERM HUP USR1
}
