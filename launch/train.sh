#!/usr/bin/env bash
# Trains configs/NAME.yaml in the foreground:  bash launch/train.sh NAME [section.key=value ...]
#
# Variables: EXP (folder of runs, default NAME), RUN_ID (default "default"), SEED, DATA (training data),
# GPUS (processes, default 1), DEVICE (auto, cpu, cuda), INIT (a checkpoint whose weights a new run starts from).
# Everything lies in runs/EXP/RUN_ID: checkpoints, TensorBoard events, and for every start train.log, the
# command, the git revision and the uncommitted changes.  Called again it goes on where it stopped.
set -euo pipefail
configs=$(dirname "$0")/../configs
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; echo "NAME: $(cd "$configs" && echo *.yaml | sed 's/\.yaml//g')"; }
[ $# -ge 1 ] || { usage >&2; exit 2; }
name=$1
shift
[ -f "$configs/$name.yaml" ] || { echo "error: configs/$name.yaml does not exist" >&2; usage >&2; exit 2; }
. "$(dirname "$0")/environment.sh"

run=runs/${EXP:-$name}/${RUN_ID:-default}
settings=()
[ -z "${SEED:-}" ] || settings+=(--set "seed=$SEED")
[ -z "${DATA:-}" ] || settings+=(--set "data.root=$DATA")
[ -z "${INIT:-}" ] || settings+=(--init "$INIT")
for setting in "$@"; do settings+=(--set "$setting"); done

command=("$PYTHON")
[ "${GPUS:-1}" -le 1 ] || command+=(-m torch.distributed.run --standalone --nproc-per-node "$GPUS")
command+=(train.py --config "configs/$name.yaml" --run-dir "$run" --device "${DEVICE:-auto}" ${settings[@]+"${settings[@]}"})

echo "run folder: $run   curves: $PYTHON -m tensorboard.main --logdir runs"
logged "$run" train.log "${command[@]}"
