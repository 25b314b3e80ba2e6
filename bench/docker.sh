#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# docker.sh start DIR   installs Debian's docker.io, starts its dockerd with all its files in DIR, prints the socket
# docker.sh stop DIR    ends it and removes DIR
#
# dockerd gets network and mount namespaces of its own: its bridge, its iptables rules (it sets the FORWARD
# policy to DROP), and its mounts end with them, and the host's stay as they were. Its containers' start costs
# the same there.
#
# On hybrid cgroups (v1 hierarchies beside /sys/fs/cgroup/unified) it runs as it is, with the cgroupfs driver.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

install() {
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then # else the package starts its service
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    "$here/../setup/apt.sh" docker.io iptables >&2
}

start() {
    install
    mkdir -p "$dir"
    # unshare execs, so the pid is dockerd's.
    unshare --net --mount --propagation private sh -c '
        ip link set lo up
        echo 1 >/proc/sys/net/ipv4/ip_forward
        exec dockerd --host "unix://$1/docker.sock" --data-root "$1/data" --exec-root "$1/exec" \
            --pidfile "$1/pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "$2" \
            --bip 10.213.0.1/24' \
        sh "$dir" "$cgroup" >"$dir/log" 2>&1 </dev/null &
    echo $! >"$dir/started"
    for _ in $(seq 300); do
        if [ -S "$dir/docker.sock" ] && DOCKER_HOST=unix://$dir/docker.sock docker version >/dev/null 2>&1; then
            echo "unix://$dir/docker.sock"
            return
        fi
        kill -0 "$(cat "$dir/started")" 2>/dev/null || break
        sleep 0.1
    done
    tail -5 "$dir/log" >&2
    stop
    exit 1
}

stop() {
    local pid
    pid=$(cat "$dir/started" 2>/dev/null) || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 150); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
    find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || true
    rm -rf "$dir"
}

[ $# = 2 ] || { sed -n '3,4s/^# //p' "$0" >&2; exit 2; }
mkdir -p "$2"
dir=$(cd "$2" && pwd)
cgroup=bench-docker-$(printf %s "$dir" | cksum | cut -d ' ' -f 1) # dockerd does not remove its parent cgroup
case $1 in
start | stop) "$1" ;;
*) exit 2 ;;
esac
