#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh VENV [ROUNDS]: both hulls of proa and Debian's docker.io side by side, with one image, in one run.
# Starts both daemons in a temporary directory and leaves nothing behind. Prints the table.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
rounds=${2:-20}

work=$(mktemp -d /tmp/bench.XXXXXX)
daemon=
clean_up() {
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
        "$venv/bin/python" -m proa.daemon.purge --data-root "$work/data" --exec-root "$work/exec" || true
    fi
    bench/docker.sh stop "$work/docker" || true
    rm -rf "$work"
}
trap clean_up EXIT

docker=$(bench/docker.sh start "$work/docker")
proa=unix://$work/proa.sock
"$venv/bin/proa" daemon --host "$proa" --data-root "$work/data" --exec-root "$work/exec" >"$work/log" 2>&1 &
daemon=$!
for _ in $(seq 300); do
    "$venv/bin/proa" --host "$proa" version >/dev/null 2>&1 && break
    kill -0 "$daemon" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
docker --host "$docker" load --quiet --input "$venv/lib/proa/busybox.tar" >&2
"$venv/bin/proa" --host "$proa" load --quiet --input "$venv/lib/proa/busybox.tar" >&2
"$venv/bin/python" bench/run.py --rounds "$rounds" --peer "docker.io=$docker" --peer "proa=$proa" \
    --peer "proa-vm=$proa,isolation=vm"
