"""``fleet container move``: asks a manager, shows how far it is, and says at the end what was moved."""

from __future__ import annotations

import json
from typing import Any

import click

from fleet import errors
from fleet.api.client import EngineError
from fleet.cli import clock
from fleet.cli.app import App, part, pass_app
from fleet.cli.stages import StageLines
from fleet.cli.task_move import move_task

__all__ = ["move"]

_LINE_MAX = 1 << 20


@click.command()
@click.option("--from", "source", default="", metavar="NODE", help="The node it is on (default: this host).")
@click.option("--no-start", is_flag=True, help="Leave it stopped on the other host.")
@click.option("--keep", is_flag=True, help="Leave the container, stopped, and its volumes here too.")
@click.option(
    "--checkpoint", is_flag=True, help="Keep the processes' memory (needs CRIU; refused where it cannot be done)."
)
@click.option(
    "--allow-host-access",
    is_flag=True,
    help="Also a container that gets at its host (privileged, bind mounts, devices, host namespaces).",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the id only.")
@click.argument("name", metavar="CONTAINER")
@click.argument("host", metavar="HOST")
@pass_app
def move(
    app: App,
    *,
    name: str,
    host: str,
    source: str,
    no_start: bool,
    keep: bool,
    checkpoint: bool,
    allow_host_access: bool,
    quiet: bool,
) -> None:
    """Move a container to another host of the swarm, with its files, volumes, image and configuration.

    Its files are copied while it runs; then it is stopped, what changed is copied, and it is started on the other host. If
    anything fails it is started here again. Its processes begin anew: their memory and connections, and the log so far, do
    not come along. Run it on a manager.

    A task of a service, by its container's name or id or as SERVICE.SLOT, moves the same way: see fleet task move.
    """
    found = app.client.get("/fleet/v1/tasks", named=name)
    if found:
        if source or no_start or keep or allow_host_access:
            raise click.UsageError(
                f"{name} is a task of a service: --from, --no-start, --keep and --allow-host-access are for other containers"
            )
        move_task(app, found[0]["ID"], host, checkpoint=checkpoint, detach=False, quiet=quiet)
        return
    body = {
        "To": app.node_reference(host),
        "Source": app.node_reference(source),
        "Start": not no_start,
        "Keep": keep,
        "Checkpoint": checkpoint,
        "HostAccess": allow_host_access,
    }
    done: dict[str, Any] | None = None
    with (
        app.streaming_client() as client,
        client.stream(
            "POST",
            f"/fleet/v1/containers/{part(name)}/move",
            body=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        ) as chunks,
    ):
        screen = StageLines(quiet=quiet)
        for line in _lines(chunks):
            if "error" in line:
                screen.end()
                raise EngineError(str(line["error"]), status=int(line.get("status", 500)))
            if "done" in line:
                done = line["done"]
                break
            screen.show(str(line.get("stage", "")), _bytes(line))
        screen.end()
    if done is None:
        raise errors.UnavailableError(
            f"the daemon ended before the move did: look where {name} is with fleet container ls on both hosts"
        )
    click.echo(done["id"] if quiet else _summary(done))


def _lines(chunks: Any) -> Any:
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        *whole, buffer = buffer.split(b"\n")
        for line in whole:
            if line:
                yield json.loads(line)
        if len(buffer) > _LINE_MAX:
            raise errors.RuntimeFault("the daemon answered something that is no progress of a move")


def _bytes(line: dict[str, Any]) -> str:
    """How much of a stage came, if it says so."""
    if line.get("bytes") is None:
        return ""
    text = clock.human_size(int(line["bytes"]))
    return f"{text} of about {clock.human_size(int(line['total']))}" if line.get("total") else text


def _summary(done: dict[str, Any]) -> str:
    volumes = done.get("volumes") or []
    text = f"{done['name']} is on {done['to']}, {'started' if done['started'] else 'not started'}: "
    text += f"{clock.human_size(done['bytes'])}"
    if volumes:
        text += f" with {len(volumes)} volume{'s' if len(volumes) > 1 else ''}"
    text += f" in {done['seconds']:.1f} s"
    if done["standstill_s"]:
        text += (
            f"; stopped, copied and started (no checkpoint): stood still for {done['standstill_s']:.2f} s, "
            f"in which {clock.human_size(done['bytes_while_stopped'])} were copied"
        )
    if done.get("skipped"):
        text += f"; {done['skipped']} sockets and device files were left behind"
    if done.get("kept"):
        text += "; kept here too, stopped and without restart policy"
    return text
