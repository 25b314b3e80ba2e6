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
. "$here/service.sh"

install() {
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then # else the package starts its service
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    "$here/../setup/apt.sh" docker.io iptables >&2
}

cgroup() { printf 'bench-docker-%s' "$(printf %s "$dir" | cksum | cut -d ' ' -f 1)"; } # dockerd does not remove its parent cgroup

start() {
    install
    # unshare execs, so the pid is dockerd's.
    unshare --net --mount --propagation private sh -c '
        ip link set lo up
        echo 1 >/proc/sys/net/ipv4/ip_forward
        exec dockerd --host "unix://$1/docker.sock" --data-root "$1/data" --exec-root "$1/exec" \
            --pidfile "$1/pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "$2" \
            --bip 10.213.0.1/24' \
        sh "$dir" "$(cgroup)" >"$dir/log" 2>&1 </dev/null &
    echo $! >"$dir/started"
    await_socket "$dir/docker.sock"
}

stop() {
    end_service
    find /sys/fs/cgroup -depth -type d -path "*/$(cgroup)*" -exec rmdir {} + 2>/dev/null || true
    rm -rf "$dir"
}

[ $# = 2 ] || { sed -n '3,4s/^# //p' "$0" >&2; exit 2; }
serve "$@"
