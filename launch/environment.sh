# Sourced by the launchers: goes to the repository's root and sets PYTHON to a Python that satisfies
# requirements.txt: $PYTHON if you set it, the active one if it does, else .venv, which is made if need be.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

satisfies() { "$1" launch/check_requirements.py requirements.txt > /dev/null 2>&1; }

find_python() {
    local name
    for name in python3 python python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "error: no Python 3.10 or newer was found; install one (for example: apt-get install python3 python3-venv)" >&2
    exit 2
}

if [ -n "${PYTHON:-}" ]; then
    satisfies "$PYTHON" || { echo "error: PYTHON=$PYTHON does not satisfy requirements.txt" >&2; exit 2; }
else
    PYTHON=$(find_python) || exit 2
    if ! satisfies "$PYTHON"; then
        if ! { [ -x .venv/bin/python ] && satisfies .venv/bin/python; }; then
            echo "setting up .venv (downloads about 5 GB once, takes minutes) ..."
            [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || {
                echo "error: could not make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
                rm -rf .venv
                exit 2
            }
            .venv/bin/python -m pip install --quiet --disable-pip-version-check \
                -r requirements.txt -r requirements-optional.txt || exit 2
        fi
        PYTHON=$PWD/.venv/bin/python
    fi
fi
