# SPDX-License-Identifier: Apache-2.0
"""``proa login`` and ``logout``. Source: docker login and logout references."""

from __future__ import annotations

import sys

import click

from proa.cli import credentials
from proa.cli.context import get_client
from proa.client.client import Client
from proa.client.errors import ApiError
from proa.wire import routes
from proa.wire.registries import HUB_KEY, AuthConfig, AuthResponse, auth_key


@click.command()
@click.option("-u", "--username", default="", help="Username")
@click.option("-p", "--password", default="", help="Password")
@click.option("--password-stdin", is_flag=True, help="Take the password from stdin")
@click.argument("server", default="")
@click.pass_context
def login(ctx: click.Context, server: str, username: str, password: str, password_stdin: bool) -> None:
    """Authenticate to the registry SERVER (Docker Hub when there is none)."""
    key = auth_key(server)
    client = get_client(ctx)
    if password_stdin:
        if password:
            raise click.ClickException("--password and --password-stdin are mutually exclusive")
        if not username:
            raise click.ClickException("Must provide --username with --password-stdin")
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    elif password:
        click.echo("WARNING! Using --password via the CLI is insecure. Use --password-stdin.", err=True)
    if not username and not password and _log_in_again(client, key):
        return
    if not username or not password:
        if not sys.stdin.isatty():
            raise click.ClickException("Cannot perform an interactive login from a non TTY device")
        username = username or click.prompt("Username")
        password = click.prompt("Password", hide_input=True)
    answer = _ask(client, AuthConfig(username=username, password=password, serveraddress=key))
    warning = credentials.store(key, username, password, answer.identity_token)
    if warning:
        click.echo(f"\n{warning}", err=True)
    click.echo(answer.status)


@click.command()
@click.argument("server", default="")
def logout(server: str) -> None:
    """Log out from the registry SERVER (Docker Hub when there is none)."""
    key = auth_key(server)
    shown = HUB_KEY if key == HUB_KEY else server
    if credentials.erase(key):
        click.echo(f"Removing login credentials for {shown}")
    else:
        click.echo(f"Not logged in to {shown}")


def _log_in_again(client: Client, key: str) -> bool:
    """Try what is kept; False when there is nothing, or it is not valid any more."""
    kept = credentials.find(key)
    if kept is None:
        return False
    click.echo("Authenticating with existing credentials...", err=True)
    try:
        answer = _ask(client, kept)
    except ApiError as error:
        if error.status != 401:
            raise
        click.echo(f"Login did not succeed, error: {error}", err=True)
        return False
    click.echo(answer.status)
    return True


def _ask(client: Client, config: AuthConfig) -> AuthResponse:
    return client.call(routes.AUTH, body=config, returns=AuthResponse)
