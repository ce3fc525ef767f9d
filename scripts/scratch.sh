#!/bin/sh
# scratch.sh COMMAND…: run COMMAND with a data folder of its own and without the settings of whoever runs it, so that a
# test or linter writes nothing to ./var and reaches nothing real; the demo provider is the echo, whose words are known.
set -eu

. "$(dirname "$0")/clean_env.sh"

AILB_DATA_DIR=$(mktemp -d)
export AILB_DATA_DIR AILB_DEMO=echo
trap 'rm -rf "$AILB_DATA_DIR"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$@"
