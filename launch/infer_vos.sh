#!/usr/bin/env bash
# Segments a data set with a trained network:  bash launch/infer_vos.sh davis|ytvos|sample [infer_vos.py arguments]
#
# Variables: EXP (default ytvos), RUN_ID (default "default"), SNAPSHOT (best, last; default best) name the
# checkpoint runs/EXP/RUN_ID/SNAPSHOT.pth; KEY (feature layer, default the network's first); DATA (default
# data/davis2017, data/ytvos, data/sample); VER (a word for this run, default SNAPSHOT).
# Masks, overlays and J&F lie in results/<data set>/EXP_RUN_ID_VER.  Called again it goes on where it stopped.
#
#   EXP=sample bash launch/infer_vos.sh sample
#   EXP=ytvos RUN_ID=second KEY=res4 DATA=/big/DAVIS bash launch/infer_vos.sh davis --no-vis
set -euo pipefail
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }
case ${1:-} in
    davis) data=data/davis2017 ;;
    ytvos | sample) data=data/$1 ;;
    *) usage >&2; exit 2 ;;
esac
. "$(dirname "$0")/environment.sh"
dataset=$1
shift
exp=${EXP:-ytvos} run_id=${RUN_ID:-default} snapshot=${SNAPSHOT:-best}
checkpoint=runs/$exp/$run_id/$snapshot.pth
if [ ! -f "$checkpoint" ]; then
    echo "error: $checkpoint does not exist; train it (bash launch/train.sh) or set EXP, RUN_ID, SNAPSHOT" >&2
    echo "there are: $(find runs -name '*.pth' 2>/dev/null | sort | tr '\n' ' ')" >&2
    exit 2
fi
options=()
[ -z "${KEY:-}" ] || options+=(--key "$KEY")
exec "$PYTHON" infer_vos.py --checkpoint "$checkpoint" --dataset "$dataset" --data "${DATA:-$data}" \
    --out "results/$dataset/${exp}_${run_id}_${VER:-$snapshot}" ${options[@]+"${options[@]}"} "$@"
