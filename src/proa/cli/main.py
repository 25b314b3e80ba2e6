# SPDX-License-Identifier: Apache-2.0
"""The ``proa`` command: finds the subcommand's module, runs it, and turns errors into exit statuses.

Names, flags, output and exit statuses are those of the docker command. A subcommand's module is imported
only when it is called, because the command is started anew for every call.

Exit statuses: what the container's process returned; 125 when the daemon or the command line is at fault,
126 and 127 as shells use them; 1 for a failed operation. Source: docker run reference, "Exit status".
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import NoReturn

import click

from proa.client.errors import ApiError, ClientError

# name: (module below proa.cli, attribute, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("run", "run", "Create and run a new container from an image"),
    "create": ("create", "create", "Create a new container"),
    "exec": ("execute", "execute", "Execute a command in a running container"),
    "ps": ("listing", "ps", "List containers"),
    "logs": ("logs", "logs", "Fetch the logs of a container"),
    "attach": ("attach", "attach", "Attach to a running container"),
    "start": ("attach", "start", "Start one or more stopped containers"),
    "stop": ("lifecycle", "stop", "Stop one or more running containers"),
    "kill": ("lifecycle", "kill", "Kill one or more running containers"),
    "restart": ("lifecycle", "restart", "Restart one or more containers"),
    "pause": ("lifecycle", "pause", "Pause all processes within one or more containers"),
    "unpause": ("lifecycle", "unpause", "Unpause all processes within one or more containers"),
    "wait": ("lifecycle", "wait", "Block until containers stop, then print their exit codes"),
    "rm": ("lifecycle", "rm", "Remove one or more containers"),
    "rename": ("lifecycle", "rename", "Rename a container"),
    "fork": ("forking", "fork", "Make a running copy of a container that runs in a virtual machine"),
    "snapshot": ("snapshots", "snapshot", "Manage snapshots of containers that run in virtual machines"),
    "update": ("update", "update", "Update configuration of one or more containers"),
    "top": ("processes", "top", "Display the running processes of a container"),
    "stats": ("processes", "stats", "Display a live stream of resource usage"),
    "cp": ("copying", "cp", "Copy files between a container and this machine"),
    "diff": ("filesystem", "diff", "Inspect changes to a container's filesystem"),
    "export": ("filesystem", "export", "Export a container's filesystem as a tar archive"),
    "commit": ("filesystem", "commit", "Create a new image from a container's changes"),
    "port": ("listing", "port", "List port mappings of a container"),
    "pull": ("registries", "pull", "Download an image from a registry"),
    "push": ("registries", "push", "Upload an image to a registry"),
    "login": ("login", "login", "Authenticate to a registry"),
    "logout": ("login", "logout", "Log out from a registry"),
    "search": ("registries", "search", "Search Docker Hub for images"),
    "build": ("build", "build", "Build an image from a Dockerfile"),
    "builder": ("build", "builder", "Manage the build cache"),
    "images": ("images", "images", "List images"),
    "rmi": ("images", "rmi", "Remove one or more images"),
    "tag": ("images", "tag", "Create a tag TARGET that refers to SOURCE"),
    "history": ("images", "history", "Show the history of an image"),
    "load": ("archives", "load", "Load images from a tar archive or standard input"),
    "save": ("archives", "save", "Save images to a tar archive"),
    "import": ("archives", "import_", "Import a tarball to create an image"),
    "inspect": ("inspect", "inspect", "Return low-level information on objects"),
    "events": ("events", "events", "Get real time events from the daemon"),
    "container": ("groups", "container", "Manage containers"),
    "image": ("groups", "image", "Manage images"),
    "network": ("networks", "network", "Manage networks"),
    "volume": ("volumes", "volume", "Manage volumes"),
    "system": ("system", "system", "Manage proa"),
    "info": ("system", "info", "Display system-wide information"),
    "version": ("system", "version", "Show the version information"),
    "machine": ("machine", "machine", "Manage machines that carry an engine of their own"),
    "vm": ("vms", "vm", "Manage full virtual machines"),
    "compare": ("compare", "compare", "Measure both hulls with an image and say which to use"),
    "doctor": ("doctor", "doctor", "Say what this host can do, and what is missing"),
    "daemon": ("daemon", "daemon", "Run the engine"),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"proa.cli.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"proa.cli.{module}.{attribute} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "-H", "--host", metavar="URL", help="Daemon socket [PROA_HOST, DOCKER_HOST, unix:///run/proa/proa.sock]"
)
@click.option("-c", "--context", metavar="NAME", help="Docker context that names the daemon [DOCKER_CONTEXT]")
@click.option("--tls", is_flag=True, help="Use TLS")
@click.option("--tlsverify", is_flag=True, help="Use TLS and verify the daemon [DOCKER_TLS_VERIFY]")
@click.option(
    "--tlscacert", metavar="FILE", help="Trust certs signed only by this CA [DOCKER_CERT_PATH/ca.pem]"
)
@click.option("--tlscert", metavar="FILE", help="Path to TLS certificate file [DOCKER_CERT_PATH/cert.pem]")
@click.option("--tlskey", metavar="FILE", help="Path to TLS key file [DOCKER_CERT_PATH/key.pem]")
@click.version_option(package_name="proa", prog_name="proa", message="%(prog)s version %(version)s")
@click.pass_context
def proa(ctx: click.Context, /, **connecting: str | bool | None) -> None:
    """One engine for containers and virtual machines."""
    ctx.obj = connecting


def main() -> NoReturn:
    """Run the command line and exit."""
    # As cat and grep do: end quietly when nobody reads the output any more.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        status = proa.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.UsageError as error:
        error.show()
        status = 125
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.Abort:
        status = 130
    except KeyboardInterrupt:
        status = 130
    except ApiError as error:
        click.echo(f"Error response from daemon: {error}", err=True)
        status = 1
    except ClientError as error:
        click.echo(str(error), err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)
