# SPDX-License-Identifier: Apache-2.0
# Sourced by docker.sh and podman.sh: waiting for a daemon, and ending it. $dir is its directory, $dir/started has its pid,
# $dir/log what it said.

# await_socket SOCKET: print its URL once somebody answers there; end the daemon and fail when nobody does.
await_socket() {
    for _ in $(seq 300); do
        if [ -S "$1" ] && DOCKER_HOST=unix://$1 docker version >/dev/null 2>&1; then
            echo "unix://$1"
            return
        fi
        kill -0 "$(cat "$dir/started")" 2>/dev/null || break
        sleep 0.1
    done
    tail -5 "$dir/log" >&2
    stop
    exit 1
}

# end_service: ask, wait, kill. Does nothing when it was never started.
end_service() {
    local pid
    pid=$(cat "$dir/started" 2>/dev/null) || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 150); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

# serve COMMAND DIR: start or stop, as docker.sh and podman.sh define them.
serve() {
    mkdir -p "$2"
    dir=$(cd "$2" && pwd)
    case $1 in
    start | stop) "$1" ;;
    *) exit 2 ;;
    esac
}
