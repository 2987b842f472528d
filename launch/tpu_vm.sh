#!/usr/bin/env bash
# Runs a command on every host of a Cloud TPU VM slice.
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu_vm.sh setup
#   TPU=my-slice ZONE=us-central2-b launch/tpu_vm.sh train --config.train.steps=1000
#
# setup copies this checkout to the hosts and installs it; train and eval pass further flags on.
set -euo pipefail

: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}"
CONFIG=${CONFIG:-configs/lm_paper.py}      # a path in the checkout
WORKDIR=${WORKDIR:-/mnt/shared/runs/paper} # on a file system that all hosts mount
CODE=${CODE:-infini_jax_code}              # the checkout's folder in each host's home

on_every_host() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

action=${1:?setup, train or eval}
shift
case "$action" in
  setup)
    archive=$(mktemp)
    trap 'rm -f "$archive"' EXIT
    git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:infini_jax.tar.gz" --zone="$ZONE" --worker=all
    on_every_host "mkdir -p $CODE && tar -xzf infini_jax.tar.gz -C $CODE && cd $CODE &&
      python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu]'"
    ;;
  train | eval)
    # On a TPU VM nothing in the environment shows that there are other hosts: auto asks.
    printf -v flags ' %q' --config="$CONFIG" --workdir="$WORKDIR" --processes=auto "$@"
    on_every_host "cd $CODE && .venv/bin/python -u $action.py$flags"
    ;;
  *)
    echo "launch/tpu_vm.sh: $action is none of setup, train, eval" >&2
    exit 2
    ;;
esac
