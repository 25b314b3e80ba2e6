#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# podman.sh start DIR   installs Debian's podman, starts its API service with all its files in DIR, prints the socket
# podman.sh stop DIR    ends it and removes DIR
#
# As docker.sh: the service gets network and mount namespaces of its own, which end with it. crun refuses hybrid
# cgroups (v1 hierarchies beside v2), so it runs runc there. Podman gives containers higher limits than a host without
# CAP_SYS_RESOURCE can, so they are taken out of the bundle before the runtime sees it (one sed, some 2 ms).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/service.sh"

configure() {
    local runtime=crun
    [ -d /sys/fs/cgroup/unified ] && runtime=runc
    cat >"$dir/$runtime" <<'END'
#!/bin/sh
previous=
for word; do
    case $previous in
    --bundle | -b) sed -i 's/"rlimits":\[[^]]*\],//' "$word/config.json" ;;
    --process | -p) sed -i 's/"rlimits":\[[^]]*\],//' "$word" ;;
    esac
    previous=$word
done
END
    echo "exec $(command -v $runtime) \"\$@\"" >>"$dir/$runtime"
    chmod +x "$dir/$runtime"
    printf 'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "permissive"\n' >"$dir/registries.conf"
    cat >"$dir/containers.conf" <<END
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "$runtime"
[engine.runtimes]
$runtime = ["$dir/$runtime"]
[network]
default_subnet = "10.214.0.0/24"
network_config_dir = "$dir/networks"
END
}

start() {
    "$here/../setup/apt.sh" podman netavark aardvark-dns crun runc conmon iptables >&2
    configure
    unshare --net --mount --propagation private sh -c '
        ip link set lo up
        echo 1 >/proc/sys/net/ipv4/ip_forward
        export CONTAINERS_CONF=$1/containers.conf CONTAINERS_REGISTRIES_CONF=$1/registries.conf
        exec podman --root "$1/data" --runroot "$1/run" --tmpdir "$1/tmp" \
            system service --time 0 "unix://$1/podman.sock"' \
        sh "$dir" >"$dir/log" 2>&1 </dev/null &
    echo $! >"$dir/started"
    await_socket "$dir/podman.sock"
}

stop() {
    end_service
    rm -rf "$dir"
}

[ $# = 2 ] || { sed -n '3,4s/^# //p' "$0" >&2; exit 2; }
serve "$@"
