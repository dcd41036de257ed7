#!/usr/bin/env bash
# A run on several nodes without a scheduler: start this script on each node, with the same
# arguments. All nodes must see the run's folder.
#
#     HEAD=node-1 NODES=2 PROCESSES=8 examples/cluster/torchrun.sh run.yaml runs/first [OPTIONS]
#
# The nodes connect to HEAD at PORT. When a node dies, the ranks on the others end because their
# connections break, or else after train.rank_timeout, and this script ends with them. Start it
# again on every node to resume from the newest checkpoint. torchrun kills the ranks 30 seconds after
# it receives SIGTERM; to stop a run with more time to save, signal the ranks themselves.
set -euo pipefail

exec torchrun \
    --nnodes "$NODES" \
    --nproc-per-node "$PROCESSES" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:${PORT:-29400}" \
    --rdzv-id "${JOB:-bytelm}" \
    --max-restarts 0 \
    -m bytelm train "$1" --out "$2" --resume --allow-fresh-start "${@:3}"
