# SPDX-License-Identifier: Apache-2.0
"""``proa daemon``: this process becomes the engine."""

from __future__ import annotations

import os
import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def daemon(options: tuple[str, ...]) -> None:
    """Run the engine. ``proa daemon --help`` lists its options."""
    # A new program rather than an import: the command line stays light, and knows the engine only by its API.
    os.execv(sys.executable, [sys.executable, "-m", "proa.daemon", *options])
