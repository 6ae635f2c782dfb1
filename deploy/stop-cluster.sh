#!/usr/bin/env bash
# Stop what deploy/start-cluster.sh started in a folder: workers first, then the scheduler.
set -euo pipefail

case "${1:-}" in
    -h | --help) echo "usage: deploy/stop-cluster.sh [FOLDER]   (default: dask-cluster)" && exit 0 ;;
esac
folder=${1:-dask-cluster}
if [ ! -e "$folder/pids" ]; then
    echo "stop-cluster.sh: error: no cluster was started in $folder (there is no $folder/pids)" >&2
    exit 2
fi
folder=$(cd "$folder" && pwd)

# Process ids come round again after a reboot: only a process whose command names this folder is ours.
is_ours() {
    [ -r "/proc/$1/cmdline" ] && grep -sqzxF -- "$folder/scheduler.json" "/proc/$1/cmdline"
}

for pid in $(tac "$folder/pids"); do
    if is_ours "$pid"; then
        kill -TERM -- "-$pid"
        for _ in $(seq 100); do
            is_ours "$pid" || break
            sleep 0.1
        done
        if is_ours "$pid"; then
            kill -KILL -- "-$pid"
        fi
    fi
done
rm -rf "$folder/pids" "$folder/scheduler.json" "$folder/scratch"
echo "stopped the cluster of $folder"
