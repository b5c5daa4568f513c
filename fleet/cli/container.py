"""``fleet container``: containers of the host the daemon runs on, those of tasks included."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet.api.client import EngineClient
from fleet.cli import clock
from fleet.cli.app import App, filters_of, part, pass_app
from fleet.cli.render import each, echo, inspect_each, list_options, print_rows, short_id

Json = dict[str, Any]

COLUMNS: Final = (
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedSince", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
)
_NAMES = click.argument("names", metavar="CONTAINER...", nargs=-1, required=True)


@click.group()
def container() -> None:
    """Manage containers of this host."""


@container.command()
@list_options
@click.option("-a", "--all", "everything", is_flag=True, help="Stopped containers too.")
@click.option("-n", "--last", type=int, default=None, metavar="N", help="The N containers made last.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten output.")
@pass_app
def ls(
    app: App,
    *,
    filters: tuple[str, ...],
    fmt: str | None,
    quiet: bool,
    everything: bool,
    last: int | None,
    no_trunc: bool,
) -> None:
    """List containers."""
    found = app.client.get(
        "/containers/json", all=True if everything else None, limit=last, filters=filters_of(filters)
    )
    print_rows([_row(item, full=no_trunc) for item in found or []], columns=COLUMNS, fmt=fmt, quiet=quiet)


def _row(item: Json, *, full: bool) -> Json:
    from datetime import UTC, datetime

    created = datetime.fromtimestamp(item.get("Created") or 0, UTC).isoformat()
    command = str(item.get("Command") or "")
    if not full and len(command) > 20:
        command = f"{command[:19]}…"
    return {
        "ID": short_id(item["Id"], full=full),
        "Image": item.get("Image", "") if full else str(item.get("Image", "")).partition("@")[0],
        "Command": f'"{" ".join(command.split())}"',
        "CreatedSince": clock.ago(created),
        "CreatedAt": created,
        "Status": item.get("Status", ""),
        "State": item.get("State", ""),
        "Ports": ", ".join(sorted({_port(port) for port in item.get("Ports") or ()})),
        "Names": ",".join(name.lstrip("/") for name in item.get("Names") or ()),
        "Labels": ",".join(f"{k}={v}" for k, v in sorted((item.get("Labels") or {}).items())),
    }


def _port(port: Json) -> str:
    private = f"{port.get('PrivatePort', 0)}/{port.get('Type', 'tcp')}"
    if not port.get("PublicPort"):
        return private
    return f"{port.get('IP') or '0.0.0.0'}:{port['PublicPort']}->{private}"


container.add_command(ls, "ps")
container.add_command(ls, "list")


@container.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help="'json' or a Go template.")
@_NAMES
@pass_app
def inspect(app: App, *, names: tuple[str, ...], fmt: str | None) -> int:
    """Show containers in full."""

    def get(client: EngineClient, name: str) -> Any:
        return client.get(f"/containers/{part(name)}/json")

    return inspect_each(app.client, names, get, fmt=fmt)


@container.command()
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option("--since", metavar="TIME", help="Only lines since a time, or a duration back such as 10m.")
@click.option("--until", metavar="TIME", help="Only lines before a time.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("--details", is_flag=True, help="Show what the log driver adds to each line.")
@click.argument("name", metavar="CONTAINER")
@pass_app
def logs(app: App, *, name: str, **options: Any) -> None:
    """Show the log of a container."""
    from fleet.cli.logs import container_logs

    container_logs(app, name, **options)


@container.command()
@_NAMES
@pass_app
def start(app: App, *, names: tuple[str, ...]) -> int:
    """Start stopped containers."""
    return each(names, lambda name: app.client.post(f"/containers/{part(name)}/start"))


def _stopping(app: App, names: tuple[str, ...], verb: str, *, time: int | None, signal: str | None) -> int:
    """A stop takes as long as the grace period, which the client's time limit must not cut."""
    query = {key: value for key, value in (("t", time), ("signal", signal)) if value is not None}
    with app.streaming_client() as client:
        return each(names, lambda name: client.post(f"/containers/{part(name)}/{verb}", **query))


@container.command()
@click.option("-t", "--time", type=int, default=None, metavar="SECONDS", help="Time from the signal to the kill.")
@click.option("-s", "--signal", default=None, metavar="SIGNAL", help="Signal to send first.")
@_NAMES
@pass_app
def stop(app: App, *, names: tuple[str, ...], time: int | None, signal: str | None) -> int:
    """Stop containers."""
    return _stopping(app, names, "stop", time=time, signal=signal)


@container.command()
@click.option("-t", "--time", type=int, default=None, metavar="SECONDS", help="Time from the signal to the kill.")
@click.option("-s", "--signal", default=None, metavar="SIGNAL", help="Signal to send first.")
@_NAMES
@pass_app
def restart(app: App, *, names: tuple[str, ...], time: int | None, signal: str | None) -> int:
    """Stop containers and start them again."""
    return _stopping(app, names, "restart", time=time, signal=signal)


@container.command()
@click.option("-s", "--signal", default="KILL", metavar="SIGNAL", help="Signal to send (default KILL).")
@_NAMES
@pass_app
def kill(app: App, *, names: tuple[str, ...], signal: str) -> int:
    """Send a signal to containers."""
    return each(names, lambda name: app.client.post(f"/containers/{part(name)}/kill", signal=signal))


@container.command()
@click.option("-f", "--force", is_flag=True, help="Kill a container that runs.")
@click.option("-v", "--volumes", is_flag=True, help="Remove its anonymous volumes too.")
@_NAMES
@pass_app
def rm(app: App, *, names: tuple[str, ...], force: bool, volumes: bool) -> int:
    """Remove containers."""
    query = {key: "1" for key, value in (("force", force), ("v", volumes)) if value}
    return each(names, lambda name: app.client.delete(f"/containers/{part(name)}", **query))


@container.command()
@_NAMES
@pass_app
def wait(app: App, *, names: tuple[str, ...]) -> int:
    """Wait until containers stop, and print their exit codes."""
    with app.streaming_client() as client:
        return each(
            names, lambda name: echo(str(client.post(f"/containers/{part(name)}/wait")["StatusCode"])), quiet=True
        )


@container.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def prune(app: App, *, force: bool) -> None:
    """Remove all stopped containers."""
    if not force:
        click.confirm("This removes all stopped containers. Continue?", abort=True, err=True)
    answer = app.client.post("/containers/prune") or {}
    for name in answer.get("ContainersDeleted") or ():
        echo(name)
    echo(f"Total reclaimed space: {clock.human_size(answer.get('SpaceReclaimed') or 0)}")
