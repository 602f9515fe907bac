#!/usr/bin/env bash
# What the other launchers check before anything starts: a training's settings, data and run folder.
#
#   launch/check.sh MODULE DEVICES [arguments of MODULE ...]
#
# DEVICES, which the mesh must fit: a number, or 2x8 for two nodes of 8; "" where it is not known.
# What is found goes to stderr, with the trainer's exit status. Nothing is written.
set -euo pipefail

# shellcheck source=launch/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

need_words "MODULE DEVICES [arguments of MODULE ...]" 2 "$@"
module=$1
devices=$2
shift 2
if [[ "$module" != grain_jax.train ]]; then
  echo "Note: not checked here; $module checks what it is given when it starts." >&2
  exit 0
fi
JAX_PLATFORMS=cpu "${PYTHON:-python}" -m grain_jax.train --check --check_devices="$devices" "$@" >&2
