#!/bin/sh
# Eight GPUs of one machine: a process for each. GPUS=4 before the command takes fewer.
#
#   sh eight-gpus.sh mine.yaml run.dir=runs/mine
#   sh eight-gpus.sh mine.yaml run.dir=runs/mine --resume  # with any number of GPUs
#
# train.batch_tokens counts over all processes: the result is that of one GPU, sooner. What a GPU cannot hold whole is
# spread over all of them (train.parallel=auto; `shard` and `replicate` say so by name).
set -eu

GPUS="${GPUS:-8}"
# torchrun would give each process one CPU thread.
OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) / GPUS > 0 ? $(nproc) / GPUS : 1))}"
export OMP_NUM_THREADS

exec torchrun --standalone --nproc-per-node "$GPUS" -m tutelage train "$@"
