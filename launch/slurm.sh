#!/usr/bin/env bash
# Trains configs/NAME.yaml in a SLURM allocation:  sbatch [options] launch/slurm.sh NAME [section.key=value ...]
#
# Submitted from the repository's root, which all nodes share.  The variables are those of launch/train.sh:
#   EXP=big sbatch --nodes 4 --gpus-per-node 8 --cpus-per-task 64 --time 24:00:00 launch/slurm.sh ytvos
# A node runs one task, which starts a process for each of its GPUs (GPUS=N: N processes).  Two minutes before the time
# is up (SIGUSR1), and on preemption (SIGTERM), training saves and the job goes back to the queue, to go on from last.pth.
#SBATCH --job-name=train
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
if [ -z "${SLURM_JOB_ID:-}" ] || [ ! -f launch/train.sh ]; then
    echo "error: submit this from the repository's root: sbatch launch/slurm.sh NAME; without SLURM: launch/train.sh" >&2
    exit 2
fi
. launch/environment.sh # here, so that the nodes do not make .venv at the same time
read -r MASTER_ADDR <<< "$(scontrol show hostnames "$SLURM_JOB_NODELIST")" # the first line
export PYTHON MASTER_ADDR NNODES=$SLURM_NNODES GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-1}}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))} # several jobs may share a node

srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    bash -c 'NODE_RANK=$SLURM_NODEID exec bash launch/train.sh "$@"' train.sh "$@" &
step=$! stopped=
stop() { stopped=$1 woken=yes; kill -TERM "$step" || true; } # srun passes it on
trap 'stop SIGUSR1' USR1
trap 'stop SIGTERM' TERM
woken=yes
while [ "$woken" = yes ]; do # by a signal, after which srun still waits for the last save
    woken=no status=0
    wait "$step" || status=$?
done
if [ -n "$stopped" ] && [ "$status" != 0 ] && [[ $(scontrol show job "$SLURM_JOB_ID") != *JobState=CANCELLED* ]]; then
    echo "$stopped: back to the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
