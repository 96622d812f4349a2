#!/usr/bin/env bash
# Checks style (ruff) and runs all tests:  bash launch/test.sh [pytest arguments]
# RUFF=no leaves the check of style out, for a Python without ruff.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
if [ "${RUFF:-}" = no ]; then
    echo "style is not checked: RUFF=no"
elif "$PYTHON" -m ruff --version > /dev/null 2>&1; then
    "$PYTHON" -m ruff check .
else
    echo "error: the check of style needs ruff: $PYTHON -m pip install ruff, or RUFF=no for the tests alone" >&2
    exit 2
fi
"$PYTHON" -m pytest "$@"
