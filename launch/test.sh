#!/usr/bin/env bash
# Checks style (ruff) and runs all tests:  bash launch/test.sh [pytest arguments]
set -euo pipefail
. "$(dirname "$0")/environment.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m pytest "$@"
