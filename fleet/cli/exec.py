"""``fleet exec`` and ``fleet attach``."""

from __future__ import annotations

from typing import Any

import click

from fleet import errors
from fleet.api.client import EngineError
from fleet.cli.app import App, part, pass_app
from fleet.cli.container_flags import EXEC_SETTINGS

Json = dict[str, Any]


_OPTIONS = (
    click.option("-d", "--detach", is_flag=True, help="Run in the background."),
    click.option("--detach-keys", default=None, metavar="KEYS", help="Keys that detach (default ctrl-p,ctrl-q)."),
    click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Environment variable."),
    click.option("--env-file", multiple=True, metavar="FILE", help="File of environment variables."),
    click.option("-i", "--interactive", is_flag=True, help="Keep standard input open."),
    click.option("--privileged", is_flag=True, help="Every privilege."),
    click.option("-t", "--tty", is_flag=True, help="A terminal."),
    click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="User."),
    click.option("-w", "--workdir", default="", metavar="PATH", help="Working directory."),
)


def _exec_options(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("exec", context_settings=EXEC_SETTINGS)
@_exec_options
@click.argument("name", metavar="CONTAINER")
@click.argument("command", metavar="COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_app
def exec_(app: App, *, name: str, command: tuple[str, ...], **flags: Any) -> int:
    """Run a command in a running container; ends with its exit code."""
    return _execute(app, name, command, flags)


@click.command("exec", context_settings=EXEC_SETTINGS)
@_exec_options
@click.argument("name", metavar="SERVICE[.SLOT]|TASK")
@click.argument("command", metavar="COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_app
def service_exec(app: App, *, name: str, command: tuple[str, ...], **flags: Any) -> int:
    """Run a command in a task of a service, on whichever node that is; ends with its exit code.

    Of a service without a slot the first task that runs is taken.
    """
    return _execute(app, _container_of(app, name), command, flags)


def _container_of(app: App, name: str) -> str:
    """Id of the container of a task that runs: of a service, a slot of it (``web.2``, ``web.2.<task id>``), or by task id."""
    service, _, slot = name.partition(".")
    try:
        found = app.client.get("/tasks", filters={"service": [service], "desired-state": ["running"]}) or []
    except EngineError as cause:
        if cause.status != 404:
            raise
        found = []
    if not found and not slot:
        found = app.client.get("/tasks", filters={"id": [name]}) or []
    number = slot.partition(".")[0]
    tasks = [task for task in found if not number or number in (str(task.get("Slot", "")), task.get("NodeID"))]
    if not tasks:
        raise errors.NotFoundError(f"no task of a service is called {name}; see 'fleet service ps {service}'")
    running = [task for task in tasks if (task.get("Status") or {}).get("State") == "running"]
    if not running:
        states = ", ".join(sorted({str((task.get("Status") or {}).get("State")) for task in tasks}))
        raise errors.ConflictError(f"no task of {name} runs: {states}; see 'fleet service ps {service}'")
    first = min(running, key=lambda task: (task.get("Slot") or 0, str(task["ID"])))
    return str(first["Status"]["ContainerStatus"]["ContainerID"])


def _execute(app: App, name: str, command: tuple[str, ...], flags: Json) -> int:
    import sys

    from fleet.cli.container_body import _environment
    from fleet.cli.terminal import Streams, connect, signals_forwarded, terminal_size

    detach = flags["detach"]
    if flags["tty"] and flags["interactive"] and not detach and not sys.stdin.isatty():
        raise errors.UserError("cannot attach stdin to a TTY-enabled container because stdin is not a terminal")
    body: Json = {
        "User": flags["user"],
        "Privileged": flags["privileged"],
        "Tty": flags["tty"],
        "AttachStdin": flags["interactive"] and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "DetachKeys": flags["detach_keys"] or "",
        "Env": _environment(flags, app.environment),
        "WorkingDir": flags["workdir"],
        "Cmd": list(command),
    }
    size = terminal_size() if flags["tty"] else None
    if size is not None:
        body["ConsoleSize"] = list(size)
    exec_id = str(app.client.post(f"/containers/{part(name)}/exec", body)["Id"])
    start: Json = {"Detach": detach, "Tty": flags["tty"]}
    if detach:
        app.client.post(f"/exec/{exec_id}/start", start)
        return 0
    if size is not None:
        start["ConsoleSize"] = list(size)
    session = connect(app, f"/exec/{exec_id}/start", body=start)
    talk = Streams(session, stdin=flags["interactive"], is_tty=flags["tty"], keys=flags["detach_keys"])
    resize = f"/exec/{exec_id}/resize" if flags["tty"] else None
    with signals_forwarded(app, kill=None, resize=resize) as send_size:
        send_size()
        talk.talk()
    if talk.detached:
        return 0
    return int(app.client.get(f"/exec/{exec_id}/json").get("ExitCode") or 0)


@click.command()
@click.option("--detach-keys", default=None, metavar="KEYS", help="Keys that detach (default ctrl-p,ctrl-q).")
@click.option("--no-stdin", is_flag=True, help="Do not attach standard input.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Forward signals to the container.")
@click.argument("name", metavar="CONTAINER")
@pass_app
def attach(app: App, *, name: str, detach_keys: str | None, no_stdin: bool, sig_proxy: bool) -> int:
    """Join this terminal to a running container; ends with its exit code."""
    import sys

    from fleet.cli.run import Waiting, joined

    found = app.client.get(f"/containers/{part(name)}/json")
    state, config = found.get("State") or {}, found.get("Config") or {}
    for word, sentence in (
        ("Paused", "you cannot attach to a paused container, unpause it first"),
        ("Restarting", "you cannot attach to a restarting container, wait until it is running"),
    ):
        if state.get(word):
            raise errors.ConflictError(sentence)
    if not state.get("Running"):
        raise errors.ConflictError("you cannot attach to a stopped container, start it first")
    stdin = bool(config.get("OpenStdin")) and not no_stdin
    if stdin and config.get("Tty") and not sys.stdin.isatty():
        raise errors.UserError("cannot attach stdin to a TTY-enabled container because stdin is not a terminal")
    waiting = Waiting(app, str(found["Id"]), "not-running")
    streams = [*(["Stdin"] if stdin else []), "Stdout", "Stderr"]
    if joined(app, str(found["Id"]), config, streams=streams, keys=detach_keys, proxy=sig_proxy):
        click.echo("read escape sequence", err=True)
        return 0
    return waiting.code()
