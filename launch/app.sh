#!/usr/bin/env bash
# Opens a page in the browser in which objects of a video are drawn, followed and corrected:  bash launch/app.sh [options]
# It is served to this machine alone.  bash launch/app.sh --help names the options.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
if ! "$PYTHON" -c 'import gradio' 2>/dev/null; then
    if [ "$(dirname "$PYTHON")" != "$PWD/.venv/bin" ]; then  # python or python3
        echo "error: the page needs gradio: $PYTHON -m pip install -r requirements-optional.txt" >&2
        exit 2
    fi
    echo "installing requirements-optional.txt into .venv ..."
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-optional.txt || exit 2
fi
exec "$PYTHON" -m launch.app "$@"
