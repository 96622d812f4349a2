#!/usr/bin/env bash
# How fast this CPU trains DUL, three ways in turn:  bash benchmarks/cpu.sh [section.key=value ...]
#   returned   one process; freed memory goes back to the system, as glibc has it by default
#   kept       one process; freed memory is kept, as the launchers have it (launch/environment.sh)
#   processes  the same with a process a core: GPUS=CORES DEVICE=cpu bash launch/train.sh
# Prints the clips/s of the second half of each run, then the medians and their ratios to "returned".
# Variables: REPEATS (default 3), STEPS of a run (default 20), DATA (default: the made sample set's frames).
set -euo pipefail
. "$(dirname "$0")/../launch/environment.sh"
steps=${STEPS:-20} cores=$("$PYTHON" -c "import os; print(len(os.sched_getaffinity(0)))")
data=${DATA:-data/sample/JPEGImages/480p}
[ -n "${DATA:-}" ] || "$PYTHON" -m datasets.sample
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# speed WAY COMMAND ... -- [section.key=value ...]
speed() {
    local way=$1 settings=()
    shift
    local command=()
    while [ "$1" != -- ]; do command+=("$1"); shift; done
    shift
    for setting in "method.crop_px=128" "method.resize_px=[160, 240]" "optim.precision=auto" "data.root=$data" \
        "data.workers=1" "validation.root=null" "schedule.steps=$steps" "log.scalar_steps=$((steps / 2))" \
        "log.picture_steps=100000" "$@"; do settings+=(--set "$setting"); done
    rm -rf "$folder/run"
    "${command[@]}" train.py --config configs/ytvos.yaml --run-dir "$folder/run" --device cpu "${settings[@]}" > "$folder/log" 2>&1 \
        || { cat "$folder/log" >&2; exit 1; }
    grep -o "[0-9.]* clips/s" "$folder/log" | tail -1 | sed "s/^/$way /" | tee -a "$folder/speeds"
}

for _ in $(seq "${REPEATS:-3}"); do
    speed returned env -u GLIBC_TUNABLES "$PYTHON" -- "$@"
    speed kept "$PYTHON" -- "$@"
    speed processes "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$cores" -- "$@"
done
"$PYTHON" - "$folder/speeds" << 'END'
import statistics
import sys
from pathlib import Path

import torch
from benchmarks import timing

speeds: dict[str, list[float]] = {}
for way, speed, _ in (line.split() for line in Path(sys.argv[1]).read_text().splitlines()):
    speeds.setdefault(way, []).append(float(speed))
print(f"\n{timing.machine(torch.device('cpu'))}, torch {torch.__version__}, medians of {len(speeds['kept'])}\n")
timing.head("way", "clips/s", "ratio")
for way, found in speeds.items():
    median = statistics.median(found)
    timing.row(way, f"{median:.2f}", f"{median / statistics.median(speeds['returned']):.2f}")
END
