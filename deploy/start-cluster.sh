#!/usr/bin/env bash
# Start a Dask scheduler and some single-threaded workers on this machine, and wait until all of them answer.
set -euo pipefail

usage() {
    cat <<'END'
usage: deploy/start-cluster.sh [--workers N] [--host ADDRESS] [--port PORT] [--memory-limit SIZE]
                               [--tls-ca FILE --tls-cert FILE --tls-key FILE] [FOLDER]

  FOLDER                gets scheduler.json, the process ids and the logs (default: dask-cluster)
  --workers N           worker processes of one thread each (default: one a core)
  --host ADDRESS        address to listen at (default: 127.0.0.1, this machine only)
  --port PORT           port of the scheduler; 0 takes any free one (default: 8786)
  --memory-limit SIZE   memory a worker may use, such as 4GB (default: an equal share of the machine)
  --tls-ca FILE         certificate (PEM) of the authority whose certificates are let in; with the two below
  --tls-cert FILE       certificate (PEM) of this cluster: encrypt all connections
  --tls-key FILE        private key (PEM) of --tls-cert

Whoever reaches the port can run code as this user, with TLS whoever has a certificate of that authority: see
docs/CLUSTER.md before giving another --host.
PYTHON=/path/to/python chooses the interpreter (default: .venv of this checkout, else python3).
END
}

fail() {
    echo "start-cluster.sh: error: $1" >&2
    exit "${2:-2}"
}

workers=$(getconf _NPROCESSORS_ONLN)
host=127.0.0.1
port=8786
memory_limit=auto
tls_ca=
tls_cert=
tls_key=
folder=
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage && exit 0 ;;
        --workers | --host | --port | --memory-limit | --tls-ca | --tls-cert | --tls-key)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case "$1" in
                --workers) workers=$2 ;;
                --host) host=$2 ;;
                --port) port=$2 ;;
                --memory-limit) memory_limit=$2 ;;
                --tls-ca) tls_ca=$2 ;;
                --tls-cert) tls_cert=$2 ;;
                --tls-key) tls_key=$2 ;;
            esac
            shift 2
            ;;
        -*) fail "unknown flag $1; --help shows the flags" ;;
        *)
            [ -z "$folder" ] || fail "two folders are given, $folder and $1; take one"
            folder=$1
            shift
            ;;
    esac
done
[[ $workers =~ ^[1-9][0-9]*$ ]] || fail "--workers: $workers is not a whole number from 1 on"
[[ $port =~ ^[0-9]+$ ]] || fail "--port: $port is not a port number"
tls=()
if [ -n "$tls_ca$tls_cert$tls_key" ]; then
    [ -n "$tls_ca" ] && [ -n "$tls_cert" ] && [ -n "$tls_key" ] || fail "TLS takes all of --tls-ca, --tls-cert and --tls-key"
    for file in "$tls_ca" "$tls_cert" "$tls_key"; do
        [ -r "$file" ] || fail "TLS: there is no file $file that this user can read"
    done
    tls=(--protocol tls --tls-ca-file "$tls_ca" --tls-cert "$tls_cert" --tls-key "$tls_key")
fi

checkout=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$checkout/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
"$python" -c 'import pyimgano_dask' || fail "$python has no pyimgano_dask; install it, or name another with PYTHON="

mkdir -p "${folder:=dask-cluster}"
folder=$(cd "$folder" && pwd)
scheduler_file=$folder/scheduler.json
[ ! -e "$folder/pids" ] || fail "a cluster was started in $folder; stop it with deploy/stop-cluster.sh $folder"
rm -f "$scheduler_file"

# Each process leads a group of its own (setsid), so that stopping it stops what it started.
start() {
    local log=$folder/$1.log
    shift
    setsid "$python" -m dask "$@" --host "$host" --no-dashboard --dashboard-address "$host:0" \
        --scheduler-file "$scheduler_file" "${tls[@]}" >"$log" 2>&1 </dev/null &
    echo $! >>"$folder/pids"
}

give_up() {
    "$checkout/deploy/stop-cluster.sh" "$folder" >/dev/null
    fail "$1; $folder/$2.log says: $(grep -m 1 'Errno' "$folder/$2.log" || tail -n 1 "$folder/$2.log")" 1
}

start scheduler scheduler --port "$port"
start workers worker --nworkers "$workers" --nthreads 1 --memory-limit "$memory_limit" --local-directory "$folder/scratch"

for _ in $(seq 300); do
    [ ! -s "$scheduler_file" ] || break
    kill -0 "$(head -n 1 "$folder/pids")" 2>/dev/null || give_up "the scheduler ended" scheduler
    sleep 0.1
done
[ -s "$scheduler_file" ] || give_up "the scheduler does not answer" scheduler
"$python" - "$scheduler_file" "$workers" "$tls_ca" "$tls_cert" "$tls_key" >"$folder/check.log" 2>&1 <<'END' || give_up "not all workers answer" workers
import sys

from distributed import Client
from distributed.security import Security

scheduler_file, workers, ca, cert, key = sys.argv[1:]
files = dict(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True) if ca else {}
with Client(scheduler_file=scheduler_file, timeout=15, set_as_default=False, security=Security(**files)) as client:
    client.wait_for_workers(int(workers), timeout=60)
    print(client.scheduler.address)
END
echo "$workers workers at $(tail -n 1 "$folder/check.log")"
echo "inspect with:  pyimgano-infer --scheduler $scheduler_file${tls_ca:+ --tls-ca $tls_ca --tls-cert $tls_cert --tls-key $tls_key} ..."
echo "stop with:     deploy/stop-cluster.sh $folder"
