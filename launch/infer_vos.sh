#!/usr/bin/env bash
# Segments a data set with a trained network:  bash launch/infer_vos.sh davis|ytvos|sample [infer_vos.py arguments]
#
# Variables: SNAPSHOT (best, last, best_LAYER; default best) with EXP (default ytvos) and RUN_ID (default "default")
# names the checkpoint runs/EXP/RUN_ID/SNAPSHOT.pth; SNAPSHOT may also be a file.  Where nothing was trained and none of
# the three is set, it is data/weights/dul_resnet18.safetensors.  KEY (feature layer, default the network's first);
# DATA (default data/davis2017, data/ytvos, data/sample); VER (a word for this run).
# Masks, overlays, J&F, infer.log and commands.txt lie in results/<data set>/EXP_RUN_ID_SNAPSHOT[_VER]; of a file, in
# results/<data set>/[EXP_][RUN_ID_]NAME[_VER].  Called again it goes on where it stopped.  ytvos ends with Annotations.zip.
#
#   EXP=sample bash launch/infer_vos.sh sample
#   EXP=ytvos RUN_ID=second KEY=res4 DATA=/big/DAVIS bash launch/infer_vos.sh davis --no-vis
#   SNAPSHOT=/downloads/epoch060_score0.693_res4.pth VER=all bash launch/infer_vos.sh ytvos
set -euo pipefail
usage() { sed -n '2,14s/^# \{0,1\}//p' "$0"; }
case ${1:-} in
    davis) data=data/davis2017 ;;
    ytvos | sample) data=data/$1 ;;
    *) usage >&2; exit 2 ;;
esac
. "$(dirname "$0")/environment.sh"
dataset=$1
shift
weights=data/weights/dul_resnet18.safetensors
name=${EXP:-ytvos}_${RUN_ID:-default}_${SNAPSHOT:-best}
checkpoint=runs/${EXP:-ytvos}/${RUN_ID:-default}/${SNAPSHOT:-best}.pth
if [ -f "${SNAPSHOT:-}" ]; then
    checkpoint=$SNAPSHOT
    name=$(basename "$checkpoint")
    name=${EXP:+${EXP}_}${RUN_ID:+${RUN_ID}_}${name%.*}
elif [ ! -f "$checkpoint" ] && [ -z "${EXP:-}${RUN_ID:-}${SNAPSHOT:-}" ] && [ -f "$weights" ]; then
    echo "$checkpoint does not exist: using the weights in the box, $weights"
    checkpoint=$weights name=dul_resnet18
elif [ ! -f "$checkpoint" ]; then
    case ${SNAPSHOT:-} in */* | *.*) checkpoint=$SNAPSHOT ;; esac
    echo "error: $checkpoint does not exist; train it (bash launch/train.sh) or set EXP, RUN_ID, SNAPSHOT" >&2
    echo "there are: $(find runs -name '*.pth' 2>/dev/null | sort | tr '\n' ' ')" >&2
    exit 2
fi
out=results/$dataset/$name${VER:+_$VER}
echo "results: $out"
logged "$out" infer.log "$PYTHON" infer_vos.py --checkpoint "$checkpoint" --dataset "$dataset" \
    --data "${DATA:-$data}" --out "$out" ${KEY:+--key "$KEY"} "$@"
