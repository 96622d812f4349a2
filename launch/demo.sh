#!/usr/bin/env bash
# Everything once, small, in minutes on two CPU cores:  bash launch/demo.sh
# Sets up Python if need be, makes the sample set, trains DUL on it, follows its objects, prints J&F.
# Called again it goes on where it stopped.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
"$PYTHON" -m datasets.sample
EXP= RUN_ID= DATA= SEED= GPUS= bash launch/train.sh sample  # whatever these are outside
exec "$PYTHON" -m launch.demo
