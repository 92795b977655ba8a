#!/bin/sh
# Two machines of eight GPUs each, without a scheduler: start it on both, with the name of one of them as HEAD.
#
#   HEAD=node-0 sh two-nodes-torchrun.sh mine.yaml run.dir=/shared/runs/mine      # on node-0 and on node-1
#
# Both need the same files under the same names, and run.dir on a file system that they share. NODES=4 and GPUS=4 say
# otherwise; PORT is any free one of HEAD. NCCL_SOCKET_IFNAME=eth0 names the network where NCCL takes a wrong one.
set -eu

GPUS="${GPUS:-8}"
OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) / GPUS > 0 ? $(nproc) / GPUS : 1))}"
export OMP_NUM_THREADS

exec torchrun \
  --nnodes "${NODES:-2}" --nproc-per-node "$GPUS" \
  --rdzv-backend c10d --rdzv-endpoint "${HEAD:?name one of the machines}:${PORT:-29500}" --rdzv-id tutelage \
  -m tutelage train "$@"
