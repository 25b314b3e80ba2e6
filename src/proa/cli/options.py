# SPDX-License-Identifier: Apache-2.0
"""The flags that ``run`` and ``create`` share. Source: docker run reference, "Options"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])  # Any: click commands take what their options say

# (names, help, metavar) of options that may be given again and again.
_LISTS: Sequence[tuple[tuple[str, ...], str, str]] = (
    (("--add-host",), "Add a custom host-to-IP mapping (host:ip)", "HOST:IP"),
    (("--annotation",), "Add an annotation", "KEY=VALUE"),
    (("-a", "--attach"), "Attach to STDIN, STDOUT or STDERR", "STREAM"),
    (("--cap-add",), "Add Linux capabilities", "CAP"),
    (("--cap-drop",), "Drop Linux capabilities", "CAP"),
    (("--device",), "Add a host device", "HOST[:PATH[:rwm]]"),
    (("--device-cgroup-rule",), "Add a rule to the cgroup allowed devices list", "RULE"),
    (("--dns",), "Set custom DNS servers", "IP"),
    (("--dns-option",), "Set DNS options", "OPTION"),
    (("--dns-search",), "Set custom DNS search domains", "DOMAIN"),
    (("-e", "--env"), "Set environment variables", "KEY=VALUE"),
    (("--env-file",), "Read in a file of environment variables", "FILE"),
    (("--expose",), "Expose a port or a range of ports", "PORT"),
    (("--group-add",), "Add additional groups to join", "GROUP"),
    (("-l", "--label"), "Set meta data", "KEY=VALUE"),
    (("--label-file",), "Read in a line delimited file of labels", "FILE"),
    (("--mount",), "Attach a filesystem mount", "SPEC"),
    (("--network-alias",), "Add network-scoped alias", "NAME"),
    (("-p", "--publish"), "Publish a container's port(s) to the host", "PORTS"),
    (("--security-opt",), "Security options", "OPTION"),
    (("--storage-opt",), "Storage driver options", "OPTION"),
    (("--sysctl",), "Sysctl options", "KEY=VALUE"),
    (("--tmpfs",), "Mount a tmpfs directory", "DIR[:OPTIONS]"),
    (("--ulimit",), "Ulimit options", "NAME=SOFT[:HARD]"),
    (("-v", "--volume"), "Bind mount a volume", "SOURCE:TARGET[:OPTIONS]"),
    (("--volumes-from",), "Mount volumes from the specified container(s)", "CONTAINER"),
    (("--log-opt",), "Log driver options", "KEY=VALUE"),
)

_TEXTS: Sequence[tuple[tuple[str, ...], str]] = (
    (("--cgroup-parent",), "Optional parent cgroup for the container"),
    (("--cgroupns",), "Cgroup namespace to use (host|private)"),
    (("--cidfile",), "Write the container ID to the file"),
    (("--cpus",), "Number of CPUs"),
    (("--cpuset-cpus",), "CPUs in which to allow execution (0-3, 0,1)"),
    (("--cpuset-mems",), "MEMs in which to allow execution (0-3, 0,1)"),
    (("--domainname",), "Container NIS domain name"),
    (("--entrypoint",), "Overwrite the default ENTRYPOINT of the image"),
    (("--health-cmd",), "Command to run to check health"),
    (("--health-interval",), "Time between running the check (ms|s|m|h) [30s]"),
    (("--health-on-failure",), "Action when the container is unhealthy (none|kill|restart|stop)"),
    (("--health-start-interval",), "Time between checks during the start period [5s]"),
    (("--health-start-period",), "Start period before failures count [0s]"),
    (("--health-timeout",), "Maximum time to allow one check to run [30s]"),
    (("-h", "--hostname"), "Container host name"),
    (("--ip",), "IPv4 address"),
    (("--ipc",), "IPC mode to use"),
    (("--isolation",), "Isolation: container, vm or vm:NAME"),
    (("--kernel",), "Kernel of a VM of its own: a file on the daemon's host"),
    (("--kernel-args",), "What follows on the command line of a VM's kernel"),
    (("--log-driver",), "Logging driver for the container"),
    (("--mac-address",), "Container MAC address"),
    (("-m", "--memory"), "Memory limit"),
    (("--memory-reservation",), "Memory soft limit"),
    (("--memory-swap",), "Swap limit equal to memory plus swap: -1 for unlimited"),
    (("--name",), "Assign a name to the container"),
    (("--pid",), "PID namespace to use"),
    (("--platform",), "Set platform if server is multi-platform capable"),
    (("--pull",), "Pull image before running (always|missing|never)"),
    (("--restart",), "Restart policy to apply when a container exits"),
    (("--runtime",), "Runtime to use for this container: crun, runc or vm"),
    (("--shm-size",), "Size of /dev/shm"),
    (("--stop-signal",), "Signal to stop the container"),
    (("-u", "--user"), "Username or UID (format: <name|uid>[:<group|gid>])"),
    (("--userns",), "User namespace to use"),
    (("--uts",), "UTS namespace to use"),
    (("--volume-driver",), "Optional volume driver for the container"),
    (("-w", "--workdir"), "Working directory inside the container"),
)

_NUMBERS: Sequence[tuple[tuple[str, ...], str]] = (
    (("--blkio-weight",), "Block IO (relative weight), between 10 and 1000"),
    (("--cpu-period",), "Limit CPU CFS period (microseconds)"),
    (("--cpu-quota",), "Limit CPU CFS quota (microseconds)"),
    (("-c", "--cpu-shares"), "CPU shares (relative weight)"),
    (("--health-retries",), "Consecutive failures needed to report unhealthy [3]"),
    (("--memory-swappiness",), "Tune container memory swappiness (0 to 100)"),
    (("--oom-score-adj",), "Tune host's OOM preferences (-1000 to 1000)"),
    (("--pids-limit",), "Tune container pids limit (-1 for unlimited)"),
    (("--stop-timeout",), "Timeout (in seconds) to stop a container"),
)

_SWITCHES: Sequence[tuple[tuple[str, ...], str]] = (
    (("--init",), "Run an init inside the container that forwards signals and reaps processes"),
    (("-i", "--interactive"), "Keep STDIN open even if not attached"),
    (("--no-healthcheck",), "Disable any container-specified HEALTHCHECK"),
    (("--oom-kill-disable",), "Disable OOM Killer"),
    (("--privileged",), "Give extended privileges to this container"),
    (("-P", "--publish-all"), "Publish all exposed ports to random ports"),
    (("-q", "--quiet"), "Suppress the pull output"),
    (("--read-only",), "Mount the container's root filesystem as read only"),
    (("--rm",), "Automatically remove the container and its anonymous volumes when it exits"),
    (("-t", "--tty"), "Allocate a pseudo-TTY"),
)


def create_options(command: F) -> F:
    """Add the flags of create to a command."""
    decorators: list[Callable[[F], F]] = [
        click.option(
            "--network", "--net", "networks", multiple=True, metavar="NETWORK", help="Connect to a network"
        )
    ]
    decorators += [
        click.option(*names, help=text, metavar=metavar, multiple=True) for names, text, metavar in _LISTS
    ]
    decorators += [click.option(*names, help=text, metavar="VALUE") for names, text in _TEXTS]
    decorators += [click.option(*names, help=text, type=int, metavar="N") for names, text in _NUMBERS]
    decorators += [click.option(*names, help=text, is_flag=True) for names, text in _SWITCHES]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command
