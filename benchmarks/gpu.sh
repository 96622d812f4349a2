#!/usr/bin/env bash
# Everything worth running when a GPU is at hand, in one command:  bash benchmarks/gpu.sh [train.py arguments]
# Variables: REPEATS (of each measurement, default 3), STEPS (of the trainings, default 200 and 60).
# DEVICE=cpu is a dry run of the same steps, some of them smaller.
set -euo pipefail
. "$(dirname "$0")/../launch/environment.sh"
device=${DEVICE:-cuda} status=0 # a failure must not keep the rest from being measured
measure() { "$PYTHON" -m "benchmarks.$1" --device "$device" --repeats "${REPEATS:-3}" "${@:2}" || status=1; }
small() { [ "$device" != cpu ] || echo "$@"; }
"$PYTHON" -c "import torch; print('torch', torch.__version__, 'cuda', torch.version.cuda, torch.cuda.is_available())"
"$PYTHON" -m datasets.sample
echo; echo "== the device against the CPU"
measure devices $(small --steps 1 --frames 3)
echo; echo "== label propagation: the kernels' tests, then one frame by every way"
"$PYTHON" -m pytest -q tests/test_labelprop_triton.py || status=1
measure propagation $(small --cells 15 27)
echo; echo "== inference, stage by stage, in turn and overlapped"
"$PYTHON" -m pytest -q tests/test_labelprop_pipeline.py || status=1
measure inference --precision fp32 $(small --frames 5)
if [ "$device" != cpu ]; then
    measure inference --precision bf16
    measure inference --precision fp16
    measure inference --precision fp16 --compile
fi
echo; echo "== steps of training: the plain loop, ours, compiled, with activations computed again"
steps=${STEPS:-200} plot=
[ "$device" = cpu ] || ! "$PYTHON" -c "import matplotlib" 2> /dev/null || plot="--out docs"
"$PYTHON" -m benchmarks.training --device "$device" --steps $((steps < 20 ? 20 : steps)) $plot \
    $(small --ways plain ours --run ytvos method.crop_px=64 data.batch_size=2) || status=1
echo; echo "== a short training at the paper's size: clips/s, and the share of time that waits for data"
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
"$PYTHON" train.py --config configs/ytvos.yaml --run-dir "$run" --device "$device" \
    --set data.root=data/sample/JPEGImages/480p --set validation.root=null \
    --set "schedule.steps=${STEPS:-60}" --set optim.precision=auto --set log.picture_steps=1000 "$@"
echo; echo "== inference with that network on the sample set"
"$PYTHON" infer_vos.py --checkpoint "$run/last.pth" --dataset sample --data data/sample --out "$run/masks" \
    --device "$device" --no-vis $(small --sequences forest-beetles)
exit $status
