#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# demo.sh VENV: the main job, end to end, on an engine of its own that it ends again: the same command in a
# container and in a virtual machine, then the comparison of the two. One round of compare, to be quick;
# DEMO_RUNS=10 gives medians and spreads.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$1
proa=$venv/bin/proa
root=/var/lib/proa-demo
run=/run/proa-demo
export PROA_HOST=unix://$run/proa.sock

mkdir -p "$root" "$run"
"$proa" daemon --host "$PROA_HOST" --data-root "$root" --exec-root "$run" 2>"$run/daemon.log" &
daemon=$!
finish() {
    status=$?
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    "$venv/bin/python" -m proa.daemon.purge --data-root "$root" --exec-root "$run" || true
    [ "$status" = 0 ] || { echo "the demo failed; the engine's log:" >&2; tail -n 20 "$run/daemon.log" >&2; }
    exit "$status"
}
trap finish EXIT

for _ in $(seq 300); do
    "$proa" version >/dev/null 2>&1 && break
    kill -0 "$daemon" 2>/dev/null || exit 1
    sleep 0.1
done

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
show() { say "$@"; shift; "$proa" "$@"; }

show proa load -i "$venv/lib/proa/busybox.tar"
show proa run --rm busybox sh -c 'echo "a container, on kernel $(uname -r)"'
show proa run --rm --isolation vm busybox sh -c 'echo "a virtual machine, on kernel $(uname -r)"'
show proa compare --runs "${DEMO_RUNS:-1}" busybox -- sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'
echo
echo "To use it:  make install;  proa daemon &;  proa load -i $venv/lib/proa/busybox.tar;  proa run --rm busybox echo hi"
