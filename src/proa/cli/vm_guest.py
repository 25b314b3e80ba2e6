# SPDX-License-Identifier: Apache-2.0
"""``proa vm`` at a machine that runs: console, screen, commands in it. Source: docs/reference/vm.md."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

import click

from proa.cli.context import get_client
from proa.cli.copying import Kind, copy, report
from proa.cli.table import print_rows
from proa.cli.terminal import is_terminal, pump, raw_terminal
from proa.cli.times import format_size
from proa.wire import vm_routes as routes
from proa.wire.detach import parse_detach_keys
from proa.wire.vms import Vm, VmExec, VmExecResult, VmStats, VmVnc

# GNU's format: busybox's tar, which small guests have, does not read the long names of pax.
_GUEST = Kind(
    noun="virtual machine",
    stat=routes.VM_ARCHIVE_INFO,
    get=routes.VM_ARCHIVE,
    put=routes.VM_PUT_ARCHIVE,
    tar_format=tarfile.GNU_FORMAT,
)
CONSOLE_KEYS = "ctrl-]"  # as virsh; the daemon looks for ctrl-p,ctrl-q as well


@click.command()
@click.option(
    "--detach-keys", default=CONSOLE_KEYS, help="Keys that leave the console [ctrl-]; ctrl-p,ctrl-q]"
)
@click.argument("name")
@click.pass_context
def console(ctx: click.Context, name: str, detach_keys: str) -> None:
    """Connect to the serial console of a running machine."""
    try:
        keys = parse_detach_keys(detach_keys)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    hijacked = get_client(ctx).hijack(routes.VM_CONSOLE, tty=True, id=name)
    if is_terminal(0):
        click.echo(f"Connected to {name}; {detach_keys} or ctrl-p,ctrl-q leaves.", err=True)
    with raw_terminal(wanted=True):
        pump(hijacked, stdin=True, detach_keys=keys)
    hijacked.close()


@click.command()
@click.argument("name")
@click.pass_context
def logs(ctx: click.Context, name: str) -> None:
    """Print what is kept of the serial console."""
    with get_client(ctx).stream(routes.VM_LOGS, id=name) as answer:
        sys.stdout.buffer.write(answer.read())


@click.command()
@click.argument("name")
@click.argument("file")
@click.pass_context
def screenshot(ctx: click.Context, name: str, file: str) -> None:
    """Write the screen of a machine to FILE as PNG; - is the standard output."""
    with get_client(ctx).stream(routes.VM_SCREENSHOT, id=name) as answer:
        content = answer.read()
    if file == "-":
        sys.stdout.buffer.write(content)
    else:
        Path(file).write_bytes(content)


@click.command()
@click.argument("name")
@click.pass_context
def vnc(ctx: click.Context, name: str) -> None:
    """Let a VNC client in: print where, and a password for the next minute."""
    found = get_client(ctx).call(routes.VM_VNC, returns=VmVnc, id=name)
    click.echo(f"{found.host}:{found.port} password {found.password} (for {found.valid_seconds} s)")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def stats(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Print what running machines take of the host."""
    client = get_client(ctx)
    rows = []
    for name in names:
        found = client.call(routes.VM_STATS, returns=VmStats, id=name)
        rows.append(
            {
                "Name": name,
                "Cpu": f"{found.cpu_ns / 1e9:.1f} s",
                "Memory": format_size(found.memory_bytes),
                "Io": f"{format_size(found.read_bytes)} / {format_size(found.write_bytes)}",
            }
        )
    print_rows(rows, (("NAME", "Name"), ("CPU TIME", "Cpu"), ("MEMORY", "Memory"), ("DISK I/O", "Io")), None)


@click.command()
@click.argument("name")
@click.pass_context
def port(ctx: click.Context, name: str) -> None:
    """List the published ports of a running machine."""
    found = get_client(ctx).call(routes.VM_INSPECT, returns=Vm, id=name)
    for key, bindings in sorted((found.ports or {}).items()):
        for binding in bindings:
            click.echo(f"{key} -> {binding.host_ip}:{binding.host_port}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-l", "--user", default="", help="User to log in as [the one that cloud-init made]")
@click.argument("name")
@click.argument("command", nargs=-1)
@click.pass_context
def ssh(ctx: click.Context, name: str, user: str, command: tuple[str, ...]) -> None:
    """Log in to a running machine by ssh, at its address on its first network."""
    found = get_client(ctx).call(routes.VM_INSPECT, returns=Vm, id=name)
    if not found.networks:
        raise click.ClickException(f"{name} is {found.state} and has no address")
    user = user or (found.config.cloud_init.user if found.config.cloud_init else "")
    address = found.networks[0].address.partition("/")[0]
    # Every machine has a new key, and addresses are used again: what ssh remembers would be another's.
    words = [
        "ssh",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ]
    try:
        os.execvp("ssh", [*words, f"{user}@{address}" if user else address, *command])
    except FileNotFoundError:
        raise click.ClickException("ssh is not installed: apt install openssh-client") from None


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.option("-e", "--env", multiple=True, metavar="KEY=VALUE", help="Set environment variables")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input, read to its end first")
@click.option("-t", "--tty", is_flag=True, help="Refused: ssh and console have a terminal")
@click.option("--timeout", type=int, default=60, help="Seconds to wait for it [60]")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(
    ctx: click.Context,
    name: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    interactive: bool,
    tty: bool,
    timeout: int,
) -> None:
    """Run COMMAND in a guest by its qemu-guest-agent, and print what it wrote when it has ended."""
    if tty:
        raise click.ClickException(
            f"the guest agent has no terminals: use `proa vm ssh {name}` or `proa vm console {name}`"
        )
    body = VmExec(
        cmd=list(command),
        env=list(env) or None,
        stdin=sys.stdin.buffer.read() if interactive else b"",
        timeout=timeout,
    )
    done = get_client(ctx).call(routes.VM_EXEC, body=body, returns=VmExecResult, id=name)
    sys.stdout.buffer.write(done.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(done.stderr)
    if done.truncated:
        click.echo("(the guest agent kept only the beginning of the output)", err=True)
    raise click.exceptions.Exit(done.exit_code)


@click.command()
@click.option("-a", "--archive", is_flag=True, help="Archive mode (copy all uid/gid information)")
@click.option("-L", "--follow-link", is_flag=True, help="Always follow symbol link in SRC_PATH")
@click.option(
    "-q", "--quiet", is_flag=True, default=None, help="Suppress the last line [when stdout is no terminal]"
)
@click.argument("source")
@click.argument("target")
@click.pass_context
def cp(
    ctx: click.Context, source: str, target: str, archive: bool, follow_link: bool, quiet: bool | None
) -> None:
    """Copy files between a guest (NAME:PATH), by its qemu-guest-agent, and this machine; - is a tar on stdin
    or stdout."""
    size = copy(get_client(ctx), _GUEST, source, target, archive=archive, follow=follow_link)
    report(size, source, target, quiet=quiet)


COMMANDS = (cp, console, logs, screenshot, vnc, stats, port, ssh, exec_)
