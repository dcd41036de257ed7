#!/usr/bin/env bash
# A run on several nodes without a scheduler: start this on each of them, with the same arguments.
# The run's folder has to be one that all nodes see.
#
#     HEAD=node-1 NODES=2 PROCESSES=8 examples/cluster/torchrun.sh run.yaml runs/first [OPTIONS]
#
# HEAD is the node where the others meet, at PORT. Where a node dies, the ranks of the others end by
# their broken connections (after train.rank_timeout where none breaks) and this script with them.
# Started again everywhere, it goes on from the newest checkpoint. torchrun answers SIGTERM with 30
# seconds; to stop a run with more time to save, signal its ranks.
set -euo pipefail

exec torchrun \
    --nnodes "$NODES" \
    --nproc-per-node "$PROCESSES" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:${PORT:-29400}" \
    --rdzv-id "${JOB:-bytelm}" \
    --max-restarts 0 \
    -m bytelm train "$1" --out "$2" --resume --allow-fresh-start "${@:3}"
