"""``fleet swarm unlock`` and ``unlock-key``: managers whose keys on disk are locked (autolock)."""

from __future__ import annotations

import sys

import click

from fleet import errors
from fleet.cli.app import App, pass_app
from fleet.cli.render import echo
from fleet.cli.swarm_settings import update_swarm

_KEY_MAX = 4096


@click.command()
@pass_app
def unlock(app: App) -> None:
    """Unlock this manager; the key is asked for, or read from standard input."""
    if sys.stdin.isatty():
        key = click.prompt("Please enter unlock key", hide_input=True, err=True)
    else:
        key = sys.stdin.readline(_KEY_MAX)
    if not key.strip():
        raise errors.UserError("no unlock key was given")
    app.client.post("/swarm/unlock", {"UnlockKey": key.strip()})


@click.command("unlock-key")
@click.option("-q", "--quiet", is_flag=True, help="Only display the key.")
@click.option(
    "--rotate", is_flag=True, help="Make a new key; managers that are down need the old one until they have started."
)
@pass_app
def unlock_key(app: App, *, quiet: bool, rotate: bool) -> None:
    """Show the key that unlocks managers, or make a new one."""
    if rotate:
        update_swarm(app, rotateManagerUnlockKey=True)
        if not quiet:
            echo("Successfully rotated manager unlock key.\n")
    show_unlock_key(app, quiet=quiet)


def show_unlock_key(app: App, *, quiet: bool = False) -> None:
    """Raises ``UserError`` when managers are not locked."""
    key = app.client.get("/swarm/unlockkey").get("UnlockKey") or ""
    if not key:
        raise errors.UserError("no unlock key is set: managers are not locked (fleet swarm update --autolock=true)")
    if quiet:
        echo(key)
        return
    echo(
        "To unlock a swarm manager after it restarts, run the `fleet swarm unlock`\ncommand and provide the following key:\n"
    )
    echo(f"    {key}\n")
    echo(
        "Remember to store this key in a password manager, since without it you\nwill not be able to restart the manager."
    )
