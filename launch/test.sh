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
# All tests run in a process a core, where pytest-xdist is installed; a selection is done sooner in one.
if [ $# = 0 ] && "$PYTHON" -c "import xdist" 2> /dev/null; then
    set -- -n logical --maxprocesses 8 --dist worksteal
fi
"$PYTHON" -m pytest "$@"
