#!/usr/bin/env bash
# A run on several nodes without a scheduler: start this script on each node, with the same
# arguments. All nodes must see the run's folder.
#
#     HEAD=node-1 NODES=2 PROCESSES=8 examples/cluster/torchrun.sh run.yaml runs/first [OPTIONS]
#
# The nodes connect to HEAD at PORT. When a rank or a node dies, torchrun starts the ranks of the
# others again, and the run resumes from its newest checkpoint: with NODES=2 once the node is back
# (start the script there again), with NODES=1:2 after half a minute with those that are left. The
# node that returns is taken in. HEAD itself has to live: start all again after it died.
#
# RESTARTS  failures that each node answers with a restart (3)
# GRACE     seconds that the ranks have to save after torchrun received SIGTERM (300)
set -euo pipefail

# Without it a node that returns waits in vain: torchrun on the first node does not tell its address
# again (seen with torch 2.14; see also https://github.com/pytorch/pytorch/issues/135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes "$NODES" \
    --nproc-per-node "$PROCESSES" \
    --max-restarts "${RESTARTS:-3}" \
    --shutdown-timeout "${GRACE:-300}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:${PORT:-29400}" \
    --rdzv-id "${JOB:-bytelm}" \
    -m bytelm train "$1" --out "$2" --resume --allow-fresh-start "${@:3}"
