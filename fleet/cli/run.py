"""``fleet run`` and ``fleet container create``; ``start -a`` and ``attach`` share the way streams are joined."""

from __future__ import annotations

import sys
import threading
from typing import Any

import click

from fleet import errors
from fleet.api.client import EngineError
from fleet.cli.app import App, part, pass_app
from fleet.cli.container_flags import ELSEWHERE, EXEC_SETTINGS, GoFlagsCommand, container_options
from fleet.cli.render import echo, print_warnings

__all__ = ["Waiting", "create", "joined", "run"]

Json = dict[str, Any]


class Waiting:
    """``POST /containers/ID/wait`` under way: asked before the start, so that no end is missed."""

    def __init__(self, app: App, container_id: str, condition: str) -> None:
        self._answer: Json = {}
        self._error: BaseException | None = None
        asked = threading.Event()

        def work() -> None:
            import json

            try:
                with app.streaming_client().stream(
                    "POST", f"/containers/{container_id}/wait", query={"condition": condition}
                ) as chunks:
                    asked.set()
                    self._answer = json.loads(b"".join(chunks) or b"{}")
            except Exception as cause:  # noqa: BLE001 - told by code()
                self._error = cause
            finally:
                asked.set()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        asked.wait(timeout=30)

    def code(self) -> int:
        """Blocks until the container ended. Raises ``RuntimeFault`` when nobody can tell."""
        self._thread.join()
        if self._error is not None:
            raise errors.RuntimeFault(f"error waiting for container: {self._error}") from self._error
        problem = (self._answer.get("Error") or {}).get("Message")
        if problem:
            raise errors.RuntimeFault(str(problem))
        return int(self._answer.get("StatusCode") or 0)


def _fail(cause: Exception, code: int, *, command: str) -> int:
    click.echo(f"Error: {cause}", err=True)
    if code == 125 and isinstance(cause, errors.UserError):
        click.echo(f"See 'fleet {command} --help'.", err=True)
    return code


def start_code(text: str) -> int:
    """Docker's rule: 127 the command is not there, 126 it cannot be run, 125 anything else."""
    lowered = text.lower()
    if any(words in lowered for words in ("executable file not found", "no such file or directory", "not found in")):
        return 127
    if any(
        words in lowered for words in ("permission denied", "is a directory", "not executable", "exec format error")
    ):
        return 126
    return 125


def _pull(app: App, image: str, flags: Json) -> None:
    from urllib.parse import urlencode

    from fleet.cli.image import _split
    from fleet.cli.progress import follow
    from fleet.cli.registry_auth import auth_headers

    repository, tag = _split(image)
    pairs = {"fromImage": repository, "tag": tag or "latest", "platform": flags["platform"] or ""}
    target = f"/images/create?{urlencode({k: v for k, v in pairs.items() if v})}"
    headers = auth_headers(image, app.environment)
    with app.streaming_client().stream("POST", target, body=b"", headers=headers) as chunks:
        follow(chunks, quiet=flags["quiet"], err=True)  # where it does not mix with the container's output


def _create(app: App, flags: Json, *, image: str, command: tuple[str, ...], detach: bool) -> tuple[str, Json]:
    """(id, body) of a new container; the image is pulled if it must be."""
    from pathlib import Path

    from fleet.cli.container_body import create_body, write_cidfile
    from fleet.cli.terminal import terminal_size

    if flags["pull"] not in ("always", "missing", "never"):
        raise errors.UserError(
            f'invalid pull option: \'{flags["pull"]}\': must be one of "always", "missing" or "never"'
        )
    for name in ELSEWHERE:
        if flags[name.lstrip("-").replace("-", "_")]:
            why = "give it with -v /run/fleet/fleet.sock:..." if "socket" in name else "it is for hosts with Windows"
            raise errors.UserError(f'"{name}" is not supported by fleet: {why}')
    body = create_body(flags, image=image, command=command, environment=app.environment, detach=detach)
    size = terminal_size() if flags["tty"] else None
    if size is not None:
        body["HostConfig"]["ConsoleSize"] = list(size)
    if flags["cidfile"] and Path(flags["cidfile"]).exists():
        raise errors.UserError(
            f"container ID file found, make sure the other container isn't running or delete {flags['cidfile']}"
        )
    query = {key: flags[key] for key in ("name", "platform") if flags[key]}

    def post() -> Json:
        answer: Json = app.client.post("/containers/create", body, **query)
        return answer

    if flags["pull"] == "always":
        _pull(app, image, flags)
    try:
        answer = post()
    except EngineError as cause:
        if cause.status != 404 or flags["pull"] != "missing" or "image" not in str(cause).lower():
            raise
        if not flags["quiet"]:
            click.echo(f"Unable to find image '{image}' locally", err=True)
        _pull(app, image, flags)
        answer = post()
    print_warnings(answer)
    if flags["cidfile"]:
        write_cidfile(flags["cidfile"], str(answer["Id"]))
    return str(answer["Id"]), body


@click.command(cls=GoFlagsCommand, context_settings=EXEC_SETTINGS)
@container_options
@click.argument("image", metavar="IMAGE")
@click.argument("command", metavar="[COMMAND] [ARG]...", nargs=-1, type=click.UNPROCESSED)
@pass_app
def create(app: App, *, image: str, command: tuple[str, ...], **flags: Any) -> int:
    """Create a container without starting it."""
    try:
        container_id, _ = _create(app, flags, image=image, command=command, detach=False)
    except errors.UserError as cause:
        return _fail(cause, 125, command="create")
    echo(container_id)
    return 0


@click.command(cls=GoFlagsCommand, context_settings=EXEC_SETTINGS)
@container_options
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the ID.")
@click.option("--detach-keys", default=None, metavar="KEYS", help="Keys that detach (default ctrl-p,ctrl-q).")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Forward signals to the container.")
@click.argument("image", metavar="IMAGE")
@click.argument("command", metavar="[COMMAND] [ARG]...", nargs=-1, type=click.UNPROCESSED)
@pass_app
def run(app: App, *, image: str, command: tuple[str, ...], **flags: Any) -> int:
    """Create a container and start it; ends with its exit code.

    125: fleet itself failed; 126: the command cannot be run; 127: the command is not there.
    """
    try:
        if flags["tty"] and flags["interactive"] and not flags["detach"] and not sys.stdin.isatty():
            raise errors.UserError("cannot attach stdin to a TTY-enabled container because stdin is not a terminal")
        container_id, body = _create(app, flags, image=image, command=command, detach=flags["detach"])
    except (errors.FleetError, OSError) as cause:
        return _fail(cause, 125, command="run")
    try:
        return _started(app, container_id, body, flags)
    except (errors.FleetError, OSError) as cause:
        return _fail(cause, 125, command="run")


def _started(app: App, container_id: str, body: Json, flags: Json) -> int:
    wanted = [key for key in ("Stdin", "Stdout", "Stderr") if body[f"Attach{key}"]]
    waiting = None
    if wanted:
        waiting = Waiting(app, container_id, "removed" if flags["rm"] else "next-exit")

    def begin() -> None:
        app.client.post(f"/containers/{container_id}/start")

    try:
        if waiting is None:
            begin()
            echo(container_id)
            return 0
        detached = joined(
            app, container_id, body, streams=wanted, keys=flags["detach_keys"], proxy=flags["sig_proxy"], begin=begin
        )
    except EngineError as cause:
        return _fail(cause, start_code(str(cause)), command="run")
    return 0 if detached else waiting.code()


def joined(
    app: App, container_id: str, config: Json, *, streams: list[str], keys: str | None, proxy: bool, begin: Any = None
) -> bool:
    """Attach, ``begin()``, and talk until the output ends. True if the user detached."""
    from fleet.cli.terminal import Streams, connect, signals_forwarded

    query = {"stream": "1", **{name.lower(): "1" for name in streams}}
    if keys:
        query["detachKeys"] = keys
    path = f"/containers/{part(container_id)}"
    session = connect(app, f"{path}/attach", query=query)
    is_tty = bool(config.get("Tty"))
    try:
        talk = Streams(session, stdin="Stdin" in streams, is_tty=is_tty, keys=keys)
        kill = f"{path}/kill" if proxy and not is_tty else None
        with signals_forwarded(app, kill=kill, resize=f"{path}/resize" if is_tty else None) as send_size:
            if begin is not None:
                begin()
            send_size()
            talk.talk()
    finally:
        session.sock.close()
    return talk.detached
