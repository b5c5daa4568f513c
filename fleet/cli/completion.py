"""``fleet completion``: scripts that let the shell complete commands and flags."""

from __future__ import annotations

import click

from fleet.cli.render import echo

VARIABLE = "_FLEET_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print a completion script for SHELL.

    For example: fleet completion bash > /etc/bash_completion.d/fleet
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click knows the shells that the argument accepts"
    echo(found(ctx.find_root().command, {}, "fleet", VARIABLE).source())
