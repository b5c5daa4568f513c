"""``fleet swarm unlock``, ``unlock-key`` and ``sealing-key``: what managers' disks tell whoever copies them."""

from __future__ import annotations

import sys

import click

from fleet import errors
from fleet.cli import clock
from fleet.cli.app import App, pass_app
from fleet.cli.render import echo
from fleet.cli.swarm_settings import update_swarm

_KEY_MAX = 4096
_LOOK_S = 0.2


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


@click.command("sealing-key")
@click.option("--rotate", is_flag=True, help="Make a new key, and write again what lies there with the old one.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until that is done.")
@pass_app
def sealing_key(app: App, *, rotate: bool, detach: bool) -> None:
    """Tell of the key that the managers' state is encrypted with at rest (never the key), or rotate it."""
    if detach and not rotate:
        raise click.UsageError("--detach changes something only together with --rotate")
    if rotate:
        update_swarm(app, rotateSealingKey=True)
        said = None
        while not detach and (now := app.client.get("/swarm")).get("SealingKey", {}).get("RotationInProgress"):
            if (progress := _rotation_progress(app)) != said:
                click.echo(progress, err=True)
            said = progress
            clock.sleep(_LOOK_S)
    now = app.client.get("/swarm").get("SealingKey") or {}
    since = f"since {now['RotatedAt']}" if now.get("RotatedAt") else "from the beginning of this swarm"
    name = now.get("Digest") or "the first one"
    echo(
        f"Secrets are sealed with key {name}, {since}."
        if now.get("Digest")
        else f"Secrets are sealed with {name}, {since}."
    )
    if now.get("RotationInProgress"):
        echo(f"A new key is on its way: {_rotation_progress(app)}")


def _rotation_progress(app: App) -> str:
    managers = [node for node in app.client.get("/nodes") if node["Spec"]["Role"] == "manager"]
    keys = [(node.get("ManagerStatus") or {}).get("SealingKey", "") for node in managers]
    down = sorted(n["Description"]["Hostname"] for n in managers if n["Status"]["State"] == "down")
    waits = f"; down: {', '.join(down)} (start, demote or remove them)" if down else ""
    return f"{len(managers)} managers, {len(set(keys) - {''})} different keys known to them{waits}"
