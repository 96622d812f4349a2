#!/usr/bin/env bash
# Everything once, small, in minutes on two CPU cores:  bash launch/demo.sh
# Sets up Python if need be, makes the sample set, follows its objects with the weights in the box, then trains
# DUL on its clips and follows the objects again; prints J&F.  Called again it goes on where it stopped.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
"$PYTHON" -m datasets.sample
"$PYTHON" -m launch.demo weights
EXP= RUN_ID= DATA= SEED= GPUS= NNODES= DEVICE= INIT= bash launch/train.sh sample  # whatever these are outside
exec "$PYTHON" -m launch.demo
