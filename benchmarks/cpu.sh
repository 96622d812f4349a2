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
[ -n "${DATA:-}" ] || "$PYTHON" -m datasets.sample
settings=()
for setting in "method.crop_px=128" "method.resize_px=[160, 240]" "optim.precision=auto" "data.workers=1" \
    "data.root=${DATA:-data/sample/JPEGImages/480p}" "validation.root=null" "schedule.steps=$steps" \
    "log.scalar_steps=$((steps / 2))" "log.picture_steps=100000" "$@"; do settings+=(--set "$setting"); done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# speed WAY PYTHON ...: trains once with this Python and notes the clips/s
speed() {
    rm -rf "$folder/run"
    "${@:2}" train.py --config configs/ytvos.yaml --run-dir "$folder/run" --device cpu "${settings[@]}" \
        > "$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
    grep -o "[0-9.]* clips/s" "$folder/log" | tail -1 | sed "s/^/$1 /" | tee -a "$folder/speeds"
}

for _ in $(seq "${REPEATS:-3}"); do
    speed returned env -u GLIBC_TUNABLES "$PYTHON"
    speed kept "$PYTHON"
    speed processes "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$cores"
done
"$PYTHON" - "$folder/speeds" << 'END'
import statistics
import sys

import torch
from benchmarks import timing

speeds: dict[str, list[float]] = {}
for way, speed, _ in map(str.split, open(sys.argv[1])):
    speeds.setdefault(way, []).append(float(speed))
print(f"\n{timing.machine(torch.device('cpu'))}, torch {torch.__version__}, medians of {len(speeds['kept'])}\n")
timing.head("way", "clips/s", "ratio")
medians = {way: statistics.median(found) for way, found in speeds.items()}
for way, median in medians.items():
    timing.row(way, f"{median:.2f}", f"{median / medians['returned']:.2f}")
END
