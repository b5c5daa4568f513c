"""Logs of containers, services and tasks: reads the framed stream and names where each line comes from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TextIO
from urllib.parse import unquote

import click

from fleet import errors
from fleet.api.client import EngineError
from fleet.cli import clock
from fleet.cli.app import App, part, pass_app
from fleet.cli.tasks import Names

__all__ = ["container_logs", "frames", "logs", "service_logs"]

FRAME_MAX: Final = 16 * 1024 * 1024
"""Bytes one frame may announce; the daemon's are a line each."""
_TASK_ID: Final = "com.docker.swarm.task.id"
_NODE_ID: Final = "com.docker.swarm.node.id"


def frames(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(stream, payload) from Docker's 8-byte headers: stream 1 stdout, 2 stderr, three zeros, length big-endian.

    Raises ``UnavailableError`` when the stream ends inside a frame or is not framed.
    """
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 8:
            length = int.from_bytes(buffer[4:8], "big")
            if buffer[0] > 3 or any(buffer[1:4]) or length > FRAME_MAX:
                raise errors.UnavailableError("the daemon sent a log stream that is not framed as expected")
            if len(buffer) < 8 + length:
                break
            yield buffer[0], bytes(buffer[8 : 8 + length])
            del buffer[: 8 + length]
    if buffer:
        raise errors.UnavailableError("the log stream ended in the middle of a line")


def _query(options: Mapping[str, Any], *, details: bool) -> dict[str, object]:
    tail = str(options["tail"])
    if tail != "all" and not tail.isdecimal():
        raise errors.UserError(f"--tail {tail!r}: expected a number of lines, or 'all'")
    return {
        "stdout": True,
        "stderr": True,
        "follow": True if options["follow"] else None,
        "timestamps": True if options["timestamps"] else None,
        "details": True if details else None,
        "since": clock.since_query(options["since"], flag="--since"),
        "until": clock.since_query(options.get("until"), flag="--until"),
        "tail": tail,
    }


def _write(stream: int, text: str) -> None:
    target: TextIO = sys.stderr if stream == 2 else sys.stdout
    target.write(text)
    target.flush()


def container_logs(app: App, name: str, **options: Any) -> None:
    """Print a container's log; standard error goes to standard error."""
    tty = ((app.client.get(f"/containers/{part(name)}/json").get("Config")) or {}).get("Tty")
    query = _query(options, details=bool(options.get("details")))
    with app.streaming_client().stream("GET", f"/containers/{part(name)}/logs", query=query) as chunks:
        if tty:
            for chunk in chunks:
                _write(1, chunk.decode(errors="replace"))
            return
        for stream, payload in frames(chunks):
            _write(stream, payload.decode(errors="replace"))


def service_logs(app: App, name: str, **options: Any) -> None:
    """Print the log of a service's tasks, or of one task."""
    try:
        found = app.client.get(f"/services/{part(name)}", insertDefaults=False)
        path, tty = f"/services/{found['ID']}/logs", _tty(found["Spec"]["TaskTemplate"])
    except EngineError as cause:
        if cause.status != 404:
            raise
        try:
            found = app.client.get(f"/tasks/{part(name)}")
        except EngineError as second:
            if second.status != 404:
                raise
            raise errors.NotFoundError(f"no such task or service: {name}") from second
        path, tty = f"/tasks/{found['ID']}/logs", _tty(found["Spec"])
    raw = options["raw"]
    writer = _Writer(app, options)
    with app.streaming_client().stream("GET", path, query=_query(options, details=not raw)) as chunks:
        if tty:
            for chunk in chunks:
                _write(1, chunk.decode(errors="replace"))
            return
        for stream, payload in frames(chunks):
            text = payload.decode(errors="replace")
            _write(stream, text if raw else writer.line(text))


def _tty(template: Mapping[str, Any]) -> bool:
    return bool((template.get("ContainerSpec") or {}).get("TTY"))


class _Writer:
    """Turns ``[TIME ]k=v,k=v text`` into ``web.1.abc@node | text``; names are looked up once each."""

    def __init__(self, app: App, options: Mapping[str, Any]) -> None:
        self.client = app.client
        self.options = options
        self.names = Names(app.client, resolve=not options["no_resolve"])
        self.tasks: dict[str, str] = {}
        self.width = 0

    def line(self, text: str) -> str:
        """One line with its origin in front. A line without details is passed on as it is."""
        time, rest = text.split(" ", 1) if self.options["timestamps"] and " " in text else ("", text)
        details, separator, message = rest.partition(" ")
        fields = _details(details) if separator else {}
        if _TASK_ID not in fields:
            return text
        prefix = self._prefix(fields[_TASK_ID], fields.get(_NODE_ID, ""))
        self.width = max(self.width, len(prefix))
        shown = " ".join(
            filter(None, (time, details if self.options["details"] else "", message if message.strip("\n") else ""))
        )
        shown = shown if shown.endswith("\n") else f"{shown}\n"
        return f"{prefix.ljust(self.width)}    | {shown}"

    def _prefix(self, task_id: str, node_id: str) -> str:
        if task_id not in self.tasks:
            self.tasks[task_id] = self._task(task_id)
        return f"{self.tasks[task_id]}@{self.names.node(node_id)}"

    def _task(self, task_id: str) -> str:
        if self.options["no_resolve"]:
            return task_id
        shown = "" if self.options["no_task_ids"] else f".{task_id if self.options['no_trunc'] else task_id[:12]}"
        try:
            return f"{self.names.task(self.client.get(f'/tasks/{task_id}'))}{shown}"
        except EngineError:
            return task_id


def _details(text: str) -> dict[str, str]:
    pairs = (field.partition("=") for field in text.split(","))
    return {unquote(key): unquote(value) for key, separator, value in pairs if separator}


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option("--since", metavar="TIME", help="Only lines since a time, or a duration back such as 10m.")
@click.option("--until", metavar="TIME", help="Only lines before a time (containers only).")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.argument("name", metavar="CONTAINER|SERVICE|TASK")
@pass_app
def logs(app: App, *, name: str, **options: Any) -> None:
    """Show logs of a container of this host; if there is none of that name, of a service or task."""
    try:
        container_logs(app, name, **options)
    except EngineError as cause:
        if cause.status != 404:
            raise
        options.pop("until")
        more = {"details": False, "no_resolve": False, "no_task_ids": False, "no_trunc": False, "raw": False}
        try:
            service_logs(app, name, **options, **more)
        except (errors.NotFoundError, errors.UnavailableError, EngineError) as second:
            if isinstance(second, EngineError) and second.status != 503:
                raise
            raise errors.NotFoundError(f"no such container, service or task: {name}") from second
