#!/bin/sh
# One GPU (or none): a single process.
#
#   sh one-gpu.sh mine.yaml run.dir=runs/mine
#   sh one-gpu.sh mine.yaml run.dir=runs/mine --resume     # goes on where a signal or a crash ended it
#
# CUDA_VISIBLE_DEVICES=3 before the command chooses among several GPUs.
set -eu

exec tutelage train "$@"
