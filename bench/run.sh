#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# run.sh VENV [ROUNDS [BULK]]: both hulls of proa, Debian's docker.io and podman side by side, with the same images, in one
# run: ROUNDS of single requests, BULK rounds of the rest (0 leaves it out, and podman with it). Starts all daemons in a
# temporary directory and leaves nothing behind. Prints the tables.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
rounds=${2:-20}
bulk=${3:-0}

work=$(mktemp -d /tmp/bench.XXXXXX)
daemon=
clean_up() {
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
        "$venv/bin/python" -m proa.daemon.purge --data-root "$work/data" --exec-root "$work/exec" || true
    fi
    bench/docker.sh stop "$work/docker" || true
    bench/podman.sh stop "$work/podman" || true
    rm -rf "$work"
}
trap clean_up EXIT

start_proa() {
    proa=unix://$work/proa.sock
    "$venv/bin/proa" daemon --host "$proa" --data-root "$work/data" --exec-root "$work/exec" >"$work/log" 2>&1 &
    daemon=$!
    for _ in $(seq 300); do
        "$venv/bin/proa" --host "$proa" version >/dev/null 2>&1 && return
        kill -0 "$daemon" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
        sleep 0.1
    done
}

docker=$(bench/docker.sh start "$work/docker")
docker --host "$docker" load --quiet --input "$venv/lib/proa/busybox.tar" >&2
peers=(--peer "docker.io=$docker,netns=$(cat "$work/docker/started")")
start_proa
"$venv/bin/proa" --host "$proa" load --quiet --input "$venv/lib/proa/busybox.tar" >&2
peers+=(--peer "proa=$proa" --peer "proa-vm=$proa,isolation=vm")
if [ "$bulk" != 0 ]; then
    setup/apt.sh wrk curl >&2
    podman=$(bench/podman.sh start "$work/podman")
    docker --host "$podman" load --quiet --input "$venv/lib/proa/busybox.tar" >&2
    peers+=(--peer "podman=$podman,netns=$(cat "$work/podman/started")")
    peers+=(--bulk "$bulk" --archive "$(bench/debian.sh "$venv/lib/bench")")
fi
"$venv/bin/python" bench/run.py --rounds "$rounds" "${peers[@]}"
