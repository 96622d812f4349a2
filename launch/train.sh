#!/usr/bin/env bash
# Trains configs/NAME.yaml in the foreground:  bash launch/train.sh NAME [section.key=value ...]
#
# Variables: EXP (folder of runs, default NAME), RUN_ID (default "default"), SEED, DATA (training data),
# GPUS (processes, default 1), DEVICE (auto, cpu, cuda), INIT (a checkpoint whose weights a new run starts from).
# Everything lies in runs/EXP/RUN_ID: checkpoints, TensorBoard events, and for every start train.log, the
# command, the git revision and the uncommitted changes.  Called again it goes on where it stopped.
#
# Several machines, on each of them, with this folder and the data on a disk that all of them share:
#   GPUS=8 NNODES=4 NODE_RANK=0..3 MASTER_ADDR=name-of-machine-0 [MASTER_PORT=29500] bash launch/train.sh NAME
# MAX_RESTARTS: how often a process that dies is started again, all going on from last.pth (default 3 with several
# machines, else 0).  The other machines' logs are train.node1.log, ...  In a SLURM allocation: launch/slurm.sh.
set -euo pipefail
configs=$(dirname "$0")/../configs
usage() { sed -n '2,12s/^# \{0,1\}//p' "$0"; echo "NAME: $(cd "$configs" && echo *.yaml | sed 's/\.yaml//g')"; }
[ $# -ge 1 ] || { usage >&2; exit 2; }
name=$1
shift
[ -f "$configs/$name.yaml" ] || { echo "error: configs/$name.yaml does not exist" >&2; usage >&2; exit 2; }
nodes=${NNODES:-1}
for count in "GPUS=${GPUS:-1}" "NNODES=$nodes"; do
    [[ ${count#*=} =~ ^[1-9][0-9]*$ ]] || { echo "error: $count must be a whole number, 1 or more" >&2; exit 2; }
done
if [ "$nodes" -gt 1 ] && { [ -z "${MASTER_ADDR:-}" ] || ! [ "${NODE_RANK:-$nodes}" -lt "$nodes" ] 2> /dev/null; }; then
    echo "error: NNODES=$nodes needs MASTER_ADDR, the name of machine 0, and NODE_RANK, from 0 to $((nodes - 1))" >&2
    exit 2
fi
. "$(dirname "$0")/environment.sh"

run=runs/${EXP:-$name}/${RUN_ID:-default}
settings=()
[ -z "${SEED:-}" ] || settings+=(--set "seed=$SEED")
[ -z "${DATA:-}" ] || settings+=(--set "data.root=$DATA")
[ -z "${INIT:-}" ] || settings+=(--init "$INIT")
for setting in "$@"; do settings+=(--set "$setting"); done

command=("$PYTHON") log=train.log
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # with it a machine that comes back waits for ever (torch 2.5 to 2.11)
if [ "$nodes" -gt 1 ]; then
    # Machine 0 hosts the rendezvous; torchrun itself decides which machine's processes are the first.
    host=1
    [ "$NODE_RANK" = 0 ] || host=0 log=train.node$NODE_RANK.log
    command+=(-m launch.torchrun --nnodes "$nodes" --nproc-per-node "${GPUS:-1}" --max-restarts "${MAX_RESTARTS:-3}"
        --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}" --rdzv-id "${run//\//_}"
        --rdzv-conf "is_host=$host,read_timeout=600")
elif [ "${GPUS:-1}" -gt 1 ]; then
    command+=(-m launch.torchrun --standalone --nproc-per-node "$GPUS" --max-restarts "${MAX_RESTARTS:-0}")
fi
command+=(train.py --config "configs/$name.yaml" --run-dir "$run" --device "${DEVICE:-auto}" ${settings[@]+"${settings[@]}"})

echo "run folder: $run   curves: $PYTHON -m tensorboard.main --logdir runs"
logged "$run" "$log" "${command[@]}"
