#!/usr/bin/env bash
# Train on all GPUs of one machine; a job that dies is started again and goes on where it was saved.
#   deploy/one-machine.sh NAME RECIPE [OPTIONS of ditlab train]
#   PROCESSES=2 deploy/one-machine.sh circles2 circles --steps 2000
# It gives up after two starts in a row that saved nothing new.
set -u
if [ $# -lt 2 ]; then
    echo "usage: $0 NAME RECIPE [OPTIONS of ditlab train]" >&2
    exit 2
fi
name=$1 recipe=$2
shift 2
processes=${PROCESSES:-$(nvidia-smi --list-gpus 2> /dev/null | grep -c . || true)}
[ "$processes" -ge 1 ] || processes=1
stopped=0
trap 'stopped=1; [ -n "${job:-}" ] && kill -TERM "$job" 2> /dev/null' INT TERM

saved() { cat "runs/$name/checkpoints/LATEST" 2> /dev/null; }

idle=0
while true; do
    before=$(saved)
    if [ -e "runs/$name/config.json" ]; then
        what=(--resume "runs/$name")
    else
        what=("$recipe" --name "$name" "$@")
    fi
    python -m torch.distributed.run --standalone --nproc-per-node "$processes" -m -- ditlab train "${what[@]}" &
    job=$!
    wait "$job"
    status=$?
    [ "$stopped" = 1 ] && { wait "$job"; exit 143; }
    [ "$status" = 0 ] && exit 0
    if [ "$(saved)" = "$before" ]; then idle=$((idle + 1)); else idle=0; fi
    if [ "$idle" -ge 2 ]; then
        echo "$0: two starts in a row saved nothing new: see what ditlab said above" >&2
        exit 1
    fi
    sleep 2
done
