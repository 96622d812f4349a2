#!/usr/bin/env bash
# Checks style (ruff) and types (mypy), and runs all tests:  bash launch/test.sh [pytest arguments]
# RUFF=no leaves both checks out, for a Python without these two.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
if [ "${RUFF:-}" = no ]; then
    echo "style and types are not checked: RUFF=no"
elif "$PYTHON" -m ruff --version > /dev/null 2>&1 && "$PYTHON" -m mypy --version > /dev/null 2>&1; then
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
else
    echo "error: the checks need ruff and mypy: $PYTHON -m pip install ruff mypy, or RUFF=no for the tests alone" >&2
    exit 2
fi
"$PYTHON" -m pytest "$@"
