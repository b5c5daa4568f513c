"""``fleet task move``: asks a manager, follows what comes of it, and ends with an error when the task is not there at the end."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet import errors
from fleet.api.client import EngineError
from fleet.cli import clock
from fleet.cli.app import App, part, pass_app
from fleet.cli.stages import StageLines

__all__ = ["move", "move_task"]

POLL_S: Final = 0.25
UNREACHABLE_S: Final = 30.0
"""How long no manager may answer while the command waits."""
_ENDS: Final = ("moved", "stayed", "returned", "lost")


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Ask for it and do not wait.")
@click.option(
    "--checkpoint", is_flag=True, help="Keep the processes' memory (needs CRIU; refused where it cannot be done)."
)
@click.option("-q", "--quiet", is_flag=True, help="Print the id of the task in its place only.")
@click.argument("task", metavar="TASK")
@click.argument("host", metavar="HOST")
@pass_app
def move(app: App, *, task: str, host: str, detach: bool, checkpoint: bool, quiet: bool) -> None:
    """Move a task of a replicated service to another node, with its data.

    TASK is an id, a name, or SERVICE.SLOT (web.1). Its volumes of that node and what its container wrote are copied while it
    runs; then it is stopped, what changed is copied, and another task of its slot starts with the data on that node. Never do
    two run. If anything fails before that, the data is used where it is: by the task, which runs on, or by another in its place
    if it was stopped already. Directories of the host (bind mounts) stay.
    """
    move_task(app, task, host, checkpoint=checkpoint, detach=detach, quiet=quiet)


def move_task(app: App, task: str, host: str, *, checkpoint: bool, detach: bool, quiet: bool) -> None:
    """Raises ``EngineError`` when the task is not moved in the end, with what became of it. An interrupt ends the watching
    alone."""
    body = {"To": app.node_reference(host), "Checkpoint": checkpoint}
    report = app.client.post(f"/fleet/v1/tasks/{part(task)}/move", body)
    name = report["Name"].rpartition(".")[0]
    if detach:
        click.echo(f"{name} is to move to {report['ToName']}; fleet service ps tells how far it is")
        return
    began_s = clock.monotonic()
    screen = StageLines(quiet=quiet)
    try:
        report = _follow(app, report, screen)
    finally:
        screen.end()
    successor, message = report.get("Successor") or {}, report["Message"]
    match report["Stage"]:
        case "moved":
            seconds = clock.monotonic() - began_s
            text = f"{name} is on {report['ToName']} with its data, in {seconds:.1f} s: task {successor['ID']}"
            click.echo(successor["ID"] if quiet else f"{text} (stopped, copied and started; no checkpoint)")
        case "stayed":
            raise EngineError(f"{name} was not moved and runs where it was: {message}", status=409)
        case "returned":
            raise EngineError(
                f"{name} was not moved; task {successor['ID']} runs where it was, with its data: {message}", status=409
            )
        case _:
            raise EngineError(
                f"{name} was not moved, and no task uses its data ({message}): look at fleet service ps", status=500
            )


def _follow(app: App, report: dict[str, Any], screen: StageLines) -> dict[str, Any]:
    path, silent_s = f"/fleet/v1/tasks/{report['ID']}/move", 0.0
    while report["Stage"] not in _ENDS:
        screen.show(str(report["Stage"]), str(report["Message"]))
        clock.sleep(POLL_S)
        try:
            report, silent_s = app.client.get(path), 0.0
        except (EngineError, errors.UnavailableError) as cause:
            if isinstance(cause, EngineError) and cause.status < 500:
                raise
            silent_s += POLL_S
            if silent_s > UNREACHABLE_S:
                raise
    return report
