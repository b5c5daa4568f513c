"""``fleet container``: containers of the host the daemon runs on, those of tasks included."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet import errors
from fleet.api.client import EngineClient
from fleet.cli import clock
from fleet.cli.app import App, filters_of, part, pass_app
from fleet.cli.render import FORMATS, each, echo, inspect_each, list_options, print_rows, print_warnings, short_id

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
@click.option("-l", "--latest", is_flag=True, help="The container made last.")
@click.option("-s", "--size", is_flag=True, help="Show sizes.")
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
    latest: bool,
    size: bool,
    no_trunc: bool,
) -> None:
    """List containers."""
    wants_size = size or ".Size" in (fmt or "")
    found = app.client.get(
        "/containers/json",
        all=True if everything else None,
        limit=1 if latest else last,
        size=True if wants_size else None,
        filters=filters_of(filters),
    )
    columns = (*COLUMNS, ("Size", "SIZE")) if size else COLUMNS
    print_rows(
        [_row(item, full=no_trunc) for item in found or []], columns=columns, fmt=fmt, quiet=quiet, full=no_trunc
    )


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
        "CreatedAt": clock.go_time(datetime.fromtimestamp(item.get("Created") or 0, UTC).astimezone()),
        "RunningFor": clock.ago(created),
        "Size": _size(item),
        "Mounts": ",".join(str(m.get("Name") or m.get("Source") or "") for m in item.get("Mounts") or ()),
        "Networks": ",".join(sorted((item.get("NetworkSettings") or {}).get("Networks") or ())),
        "LocalVolumes": str(sum(m.get("Driver") == "local" for m in item.get("Mounts") or ())),
        "Status": item.get("Status", ""),
        "State": item.get("State", ""),
        "Ports": ", ".join(sorted({_port(port) for port in item.get("Ports") or ()})),
        "Names": ",".join(name.lstrip("/") for name in item.get("Names") or ()),
        "Labels": ",".join(f"{k}={v}" for k, v in sorted((item.get("Labels") or {}).items())),
    }


def _size(item: Json) -> str:
    shown = clock.human_size(item.get("SizeRw") or 0)
    return f"{shown} (virtual {clock.human_size(item['SizeRootFs'])})" if item.get("SizeRootFs") else shown


def _port(port: Json) -> str:
    private = f"{port.get('PrivatePort', 0)}/{port.get('Type', 'tcp')}"
    if not port.get("PublicPort"):
        return private
    return f"{port.get('IP') or '0.0.0.0'}:{port['PublicPort']}->{private}"


container.add_command(ls, "ps")
container.add_command(ls, "list")


@container.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@click.option("-s", "--size", is_flag=True, help="With sizes.")
@_NAMES
@pass_app
def inspect(app: App, *, names: tuple[str, ...], fmt: str | None, size: bool) -> int:
    """Show containers in full."""

    def get(client: EngineClient, name: str) -> Any:
        return client.get(f"/containers/{part(name)}/json", **({"size": True} if size else {}))

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
@click.option("-a", "--attach", is_flag=True, help="Attach output and forward signals.")
@click.option("-i", "--interactive", is_flag=True, help="Attach standard input.")
@click.option("--detach-keys", default=None, metavar="KEYS", help="Keys that detach (default ctrl-p,ctrl-q).")
@_NAMES
@pass_app
def start(app: App, *, names: tuple[str, ...], attach: bool, interactive: bool, detach_keys: str | None) -> int:
    """Start stopped containers."""
    if not (attach or interactive):
        return each(names, lambda name: app.client.post(f"/containers/{part(name)}/start"))
    if len(names) > 1:
        raise errors.UserError("you cannot start and attach multiple containers at once")
    from fleet.cli.run import Waiting, joined

    found = app.client.get(f"/containers/{part(names[0])}/json")
    config, key = found.get("Config") or {}, str(found["Id"])
    stdin = interactive and bool(config.get("OpenStdin"))
    removed = (found.get("HostConfig") or {}).get("AutoRemove")
    waiting = Waiting(app, key, "removed" if removed else "next-exit")
    streams = [*(["Stdin"] if stdin else []), "Stdout", "Stderr"]

    def begin() -> None:
        app.client.post(f"/containers/{key}/start")

    if joined(app, key, config, streams=streams, keys=detach_keys, proxy=True, begin=begin):
        return 0
    return waiting.code()


@container.command()
@_NAMES
@pass_app
def pause(app: App, *, names: tuple[str, ...]) -> int:
    """Freeze all processes of containers."""
    return each(names, lambda name: app.client.post(f"/containers/{part(name)}/pause"))


@container.command()
@_NAMES
@pass_app
def unpause(app: App, *, names: tuple[str, ...]) -> int:
    """Let frozen processes go on."""
    return each(names, lambda name: app.client.post(f"/containers/{part(name)}/unpause"))


@container.command()
@click.argument("name", metavar="CONTAINER")
@click.argument("new_name", metavar="NEW_NAME")
@pass_app
def rename(app: App, *, name: str, new_name: str) -> None:
    """Give a container another name."""
    if not new_name.strip():
        raise errors.UserError("neither old nor new names may be empty")
    app.client.post(f"/containers/{part(name)}/rename", name=new_name)


@container.command()
@click.argument("name", metavar="CONTAINER")
@pass_app
def diff(app: App, *, name: str) -> None:
    """Show what changed in a container's file system: C changed, A added, D deleted."""
    for change in app.client.get(f"/containers/{part(name)}/changes") or ():
        echo(f"{'CAD'[int(change['Kind'])]} {change['Path']}")


@container.command()
@click.argument("name", metavar="CONTAINER")
@click.argument("wanted", metavar="[PORT[/PROTOCOL]]", default="")
@pass_app
def port(app: App, *, name: str, wanted: str) -> None:
    """Show where ports of a container are published."""
    found = app.client.get(f"/containers/{part(name)}/json")
    ports = (found.get("NetworkSettings") or {}).get("Ports") or {}

    def shown(binding: Json) -> str:
        address = str(binding.get("HostIp") or "0.0.0.0")
        return f"{f'[{address}]' if ':' in address else address}:{binding.get('HostPort', '')}"

    if wanted:
        key = wanted if "/" in wanted else f"{wanted}/tcp"
        if not ports.get(key):
            raise errors.NotFoundError(f"no public port '{key}' published for {name}")
        for binding in ports[key]:
            echo(shown(binding))
        return
    for key in sorted(ports, key=lambda text: (int(text.partition("/")[0]), text)):
        for binding in ports[key] or ():
            echo(f"{key} -> {shown(binding)}")


@container.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", metavar="CONTAINER")
@click.argument("options", metavar="[ps OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@pass_app
def top(app: App, *, name: str, options: tuple[str, ...]) -> None:
    """Show the processes of a container."""
    query = {"ps_args": " ".join(options)} if options else {}
    found = app.client.get(f"/containers/{part(name)}/top", **query)
    titles = found["Titles"]
    columns = [(title, title) for title in titles]
    print_rows([dict(zip(titles, row, strict=False)) for row in found["Processes"] or ()], columns=columns)


_UPDATE = (
    "blkio-weight", "cpu-period", "cpu-quota", "cpu-rt-period", "cpu-rt-runtime", "cpu-shares", "cpus", "cpuset-cpus",
    "cpuset-mems", "memory", "memory-reservation", "memory-swap", "pids-limit", "restart",
)  # fmt: skip
_UPDATE_SHORT: Final = {"cpu-shares": "-c", "memory": "-m"}
_UPDATE_TEXT: Final = ("cpus", "cpuset-cpus", "cpuset-mems", "memory", "memory-reservation", "memory-swap", "restart")


def _update_options(command: Any) -> Any:
    for name in reversed(_UPDATE):
        names = [f"--{name}", *([_UPDATE_SHORT[name]] if name in _UPDATE_SHORT else [])]
        kind: Any = str if name in _UPDATE_TEXT else int
        command = click.option(*names, default=None, type=kind, help=f"New {name.replace('-', ' ')}.")(command)
    return command


@container.command()
@_update_options
@_NAMES
@pass_app
def update(app: App, *, names: tuple[str, ...], **flags: Any) -> int:
    """Change limits and the restart policy of containers."""
    from fleet.cli.container_body import resources, restart_policy

    if all(value is None for value in flags.values()):
        raise click.UsageError("you must provide one or more flags when using this command")
    body = {key: value for key, value in resources(flags).items() if value not in (0, "") and key != "MemorySwappiness"}
    if flags["restart"]:
        body["RestartPolicy"] = restart_policy(flags["restart"])
    return each(names, lambda name: print_warnings(app.client.post(f"/containers/{part(name)}/update", body)))


_TIME = click.option(
    "-t",
    "--time",
    "--timeout",
    "time",
    type=int,
    default=None,
    metavar="SECONDS",
    help="Time from the signal to the kill.",
)
_SIGNAL = click.option("-s", "--signal", default=None, metavar="SIGNAL", help="Signal to send first.")


def _stopping(app: App, names: tuple[str, ...], verb: str, *, time: int | None, signal: str | None) -> int:
    """A stop takes as long as the grace period, which the client's time limit must not cut."""
    query = {key: value for key, value in (("t", time), ("signal", signal)) if value is not None}
    with app.streaming_client() as client:
        return each(names, lambda name: client.post(f"/containers/{part(name)}/{verb}", **query))


@container.command()
@_TIME
@_SIGNAL
@_NAMES
@pass_app
def stop(app: App, *, names: tuple[str, ...], time: int | None, signal: str | None) -> int:
    """Stop containers."""
    return _stopping(app, names, "stop", time=time, signal=signal)


@container.command()
@_TIME
@_SIGNAL
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
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Such as until=24h or label=a.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def prune(app: App, *, filters: tuple[str, ...], force: bool) -> None:
    """Remove all stopped containers."""
    if not force:
        click.confirm("This removes all stopped containers. Continue?", abort=True, err=True)
    chosen = filters_of(filters)
    answer = app.client.post("/containers/prune", **({"filters": chosen} if chosen else {})) or {}
    if answer.get("ContainersDeleted"):
        echo("Deleted Containers:")
    for name in answer.get("ContainersDeleted") or ():
        echo(name)
    echo(f"Total reclaimed space: {clock.human_size(answer.get('SpaceReclaimed') or 0)}")


class _Elsewhere(click.Command):
    """A command of another module, imported when it is called."""

    def __init__(self, name: str, where: str, text: str) -> None:
        super().__init__(name, short_help=text, help=text)
        self._where = where

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        import importlib

        module, _, attribute = self._where.partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found.make_context(info_name, args, parent=parent, **extra)


for _name, _where, _text in (
    ("run", "fleet.cli.run:run", "Create a container and start it."),
    ("create", "fleet.cli.run:create", "Create a container without starting it."),
    ("exec", "fleet.cli.exec:exec_", "Run a command in a running container."),
    ("attach", "fleet.cli.exec:attach", "Join this terminal to a running container."),
    ("cp", "fleet.cli.copy:cp", "Copy files between a container and this machine."),
    ("export", "fleet.cli.copy:export", "Write a container's file system as a tar archive."),
    ("move", "fleet.cli.move:move", "Move a container to another host of the swarm."),
    ("stats", "fleet.cli.stats:stats", "Show what containers use."),
):
    container.add_command(_Elsewhere(_name, _where, _text))
