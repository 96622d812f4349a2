#!/usr/bin/env bash
# Everything worth running when a GPU is at hand, in one command:  bash benchmarks/gpu.sh
# DEVICE=cpu is a dry run of the same steps.
set -euo pipefail
. "$(dirname "$0")/../launch/environment.sh"
device=${DEVICE:-cuda}
"$PYTHON" -c "import torch; print('torch', torch.__version__, 'cuda', torch.version.cuda, torch.cuda.is_available())"
"$PYTHON" -m datasets.sample
echo; echo "== the device against the CPU"
"$PYTHON" benchmarks/devices.py --device "$device" --repeats "${REPEATS:-3}"
echo; echo "== label propagation: the kernels' tests, then one frame by every way"
status=0 # a failure here must not keep the rest from being measured
"$PYTHON" -m pytest -q tests/test_labelprop_triton.py || status=1
"$PYTHON" benchmarks/propagation_gpu.py --device "$device" --repeats "${REPEATS:-3}" \
    $([ "$device" = cpu ] && echo --geometry dul) || status=1
echo; echo "== inference, stage by stage, in turn and overlapped"
"$PYTHON" -m pytest -q tests/test_labelprop_pipeline.py || status=1
stages() { "$PYTHON" benchmarks/inference.py --device "$device" --repeats "${REPEATS:-3}" "$@" || status=1; }
stages --precision fp32
if [ "$device" != cpu ]; then
    stages --precision bf16
    stages --precision fp16
    stages --precision fp16 --compile
fi
echo; echo "== a short training at the paper's size: clips/s, and the share of time that waits for data"
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
"$PYTHON" train.py --config configs/ytvos.yaml --run-dir "$run" --device "$device" \
    --set data.root=data/sample/JPEGImages/480p --set validation.root=null \
    --set "schedule.steps=${STEPS:-60}" --set optim.precision=auto --set log.picture_steps=1000 "$@"
echo; echo "== inference with that network on the sample set"
"$PYTHON" infer_vos.py --checkpoint "$run/last.pth" --dataset sample --data data/sample --out "$run/masks" \
    --device "$device" --no-vis
exit $status
