# Sourced by the launchers: goes to the repository's root and sets PYTHON to a Python that can run the project:
# $PYTHON if you set it; else the active one if it has all of requirements.txt, or .venv if that has; else the
# active one as it is if it will do; else .venv, which is made or completed.  Defines logged.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# On a CPU a step of training allocates gigabytes.  By default glibc gives them back to the system and takes them again
# page by page, which was nearly half of a step's time (benchmarks/cpu.sh); here it keeps them, in large pages where the
# system has them.  Other C libraries ignore this.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4000000000:glibc.malloc.trim_threshold=16000000000:glibc.malloc.top_pad=268435456}

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

# Sets fit (0: has everything, 3: will do, other: will not) and differences.
check() {
    fit=0
    differences=$("$1" launch/check_requirements.py requirements.txt 2>/dev/null) || fit=$?
}

make_venv() {
    echo "setting up .venv (downloads about 5 GB once, takes minutes) ..."
    [ -x .venv/bin/python ] || "$active" -m venv .venv || {
        echo "error: could not make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
        rm -rf .venv
        exit 2
    }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        -r requirements.txt -r requirements-optional.txt || exit 2
}

if [ -n "${PYTHON:-}" ]; then
    check "$PYTHON"
    case $fit in
        0 | 3) ;;
        *) printf 'error: PYTHON=%s does not satisfy requirements.txt\n%s\n' "$PYTHON" "$differences" >&2; exit 2 ;;
    esac
else
    active=$(find_python) || exit 2
    for PYTHON in "$active" "$PWD/.venv/bin/python"; do
        check "$PYTHON"
        [ "$fit" != 0 ] || break
    done
    if [ "$fit" != 0 ]; then
        check "$active"
        if [ "$fit" = 3 ]; then PYTHON=$active; else make_venv; fi
    fi
fi
[ "$fit" != 3 ] || printf 'note: %s is used as it is:\n%s\n' "$PYTHON" "$(sed 's/^/    /' <<< "$differences")" >&2

# logged FOLDER LOG COMMAND ...: becomes the command.  Its words go to FOLDER/LOG, too; command, git revision and
# uncommitted changes to FOLDER/commands.txt.
logged() {
    local folder=$1 log=$2
    shift 2
    mkdir -p "$folder"
    # Written at once: several machines may start at the same moment.
    printf 'date: %s\ncommand: %s\nrevision: %s\n%s\n\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(printf '%q ' "$@")" \
        "$(git rev-parse HEAD 2>/dev/null || echo unknown)" "$(git diff HEAD 2>/dev/null)" >> "$folder/commands.txt"
    # The program takes this shell's place, so that signals reach it; tee outlives them to log its last words.
    exec "$@" > >(trap '' INT TERM USR1; exec tee -a "$folder/$log") 2>&1
}
