"""``fleet service stop | start | restart | wait``: services that pause without losing their settings.

A stopped service is an ordinary one without tasks: replicated with none, or global with a constraint that no node meets. A label
remembers what it was, so any client can see it, and starting it again is an update like others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import click

from fleet import errors
from fleet.cli import clock
from fleet.cli.app import App, part, pass_app
from fleet.cli.render import echo
from fleet.cli.service_flags import wait_options
from fleet.cli.service_rows import mode_name
from fleet.cli.service_update import post_update
from fleet.cli.tasks import has_ended

__all__ = ["STOPPED_LABEL", "restart", "start", "stop", "wait"]

Json = dict[str, Any]

STOPPED_LABEL: Final = "fleet.service.stopped"
"""Its value: the number of replicas before, or ``global``."""
_NOWHERE: Final = "node.id == stopped"
_POLL_S: Final = 0.1


def stopped_spec(current: Json) -> Json | None:
    """The spec without tasks; None when it is stopped. Raises ``UserError`` for a job, which ends by itself."""
    spec = copy.deepcopy(current)
    labels = spec.setdefault("Labels", None) or {}
    if STOPPED_LABEL in labels:
        return None
    mode = spec.get("Mode") or {}
    if mode.get("Global") is not None:
        placement = spec["TaskTemplate"].get("Placement") or {}
        spec["TaskTemplate"]["Placement"] = {
            **placement,
            "Constraints": [*(placement.get("Constraints") or ()), _NOWHERE],
        }
        before = "global"
    elif mode.get("Replicated") is not None or not mode:
        replicas = (mode.get("Replicated") or {}).get("Replicas", 1)
        if not replicas:
            return None
        spec["Mode"] = {"Replicated": {"Replicas": 0}}
        before = str(replicas)
    else:
        raise errors.UserError(
            f"service {spec.get('Name')} is a {mode_name(spec)}, which ends by itself; remove it to end it at once"
        )
    spec["Labels"] = {**labels, STOPPED_LABEL: before}
    return spec


def started_spec(current: Json) -> Json | None:
    """The spec as it was before it was stopped; None when it was not. Raises ``UserError`` when nothing says what it was."""
    spec = copy.deepcopy(current)
    labels = dict(spec.get("Labels") or {})
    before = labels.pop(STOPPED_LABEL, None)
    mode = spec.get("Mode") or {}
    if before is None:
        if (mode.get("Replicated") or {}).get("Replicas") == 0:
            name = spec.get("Name")
            raise errors.UserError(
                f"service {name} was scaled to 0, not stopped; say how many: fleet service scale {name}=N"
            )
        return None
    spec["Labels"] = labels
    placement = spec["TaskTemplate"].get("Placement") or {}
    if before == "global":
        kept = [each for each in placement.get("Constraints") or () if each != _NOWHERE]
        spec["TaskTemplate"]["Placement"] = {**placement, "Constraints": kept}
    elif (mode.get("Replicated") or {}).get("Replicas", 0) == 0:  # else it was scaled meanwhile, and that holds
        if not before.isascii() or not before.isdigit():
            raise errors.UserError(
                f"service {spec.get('Name')}: label {STOPPED_LABEL}={before!r} is no number of replicas"
            )
        spec["Mode"] = {"Replicated": {"Replicas": int(before)}}
    return spec


def restarted_spec(current: Json) -> Json:
    """The spec whose tasks are all to be replaced, as its update settings say."""
    spec = copy.deepcopy(current)
    spec["TaskTemplate"]["ForceUpdate"] = int(spec["TaskTemplate"].get("ForceUpdate") or 0) + 1
    return spec


class _Unchanged(Exception):
    """There is nothing to write."""


def _changed(app: App, name: str, change: Callable[[Json], Json | None]) -> Json | None:
    """The service as it was; None when there was nothing to change."""

    def needed(spec: Json) -> Json:
        if (found := change(spec)) is None:
            raise _Unchanged
        return found

    try:
        return post_update(app, name, needed, registryAuthFrom="spec")
    except _Unchanged:
        return None


def _for_all(
    app: App,
    names: tuple[str, ...],
    flags: Json,
    change: Callable[[Json], Json | None],
    *,
    nothing: str,
    stops: bool = False,
) -> int:
    from fleet.cli import converge

    watches, code = [], 0
    for name in names:
        try:
            changed = _changed(app, name, change)
        except errors.FleetError as cause:
            click.echo(f"Error: {cause}", err=True)
            code = 1
            continue
        if changed is None:
            click.echo(f"{name} {nothing}", err=True)
            continue
        echo(name)
        watches.append(converge.Watch(changed["ID"], str(changed["Spec"].get("Name")), before=changed))
    if flags["detach"] or not watches:
        return code
    if stops:
        _wait_until_stopped(app, [watch.service_id for watch in watches], timeout_ns=flags["timeout"])
        return code
    waiting = {"quiet": flags["quiet"], "timeout_ns": flags["timeout"], "stable_ns": flags["stable"]}
    return converge.wait(app.client, watches, **waiting) or code


def _wait_until_stopped(app: App, service_ids: list[str], *, timeout_ns: int | None) -> None:
    """A global service that is stopped looks like one that fits no node, so what is waited for is the end of its tasks."""
    deadline = None if timeout_ns is None else clock.monotonic() + timeout_ns / 1e9
    while True:
        tasks = app.client.get("/tasks", filters={"service": service_ids}) or []
        left = [task for task in tasks if not has_ended(task)]
        if not left:
            return
        if deadline is not None and clock.monotonic() > deadline:
            raise errors.ConflictError(f"{len(left)} tasks have not stopped in time")
        clock.sleep(_POLL_S)


@click.command()
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def stop(app: App, *, names: tuple[str, ...], **flags: Any) -> int:
    """Stop all tasks of services; 'start' brings them back as they were."""
    return _for_all(app, names, flags, stopped_spec, nothing="is stopped already", stops=True)


@click.command()
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def start(app: App, *, names: tuple[str, ...], **flags: Any) -> int:
    """Start services that were stopped, with as many tasks as they had."""
    return _for_all(app, names, flags, started_spec, nothing="is not stopped")


@click.command()
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def restart(app: App, *, names: tuple[str, ...], **flags: Any) -> int:
    """Replace all tasks of services, a few at a time as their update settings say."""
    return _for_all(app, names, flags, restarted_spec, nothing="is as it was")


@click.command()
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def wait(app: App, *, names: tuple[str, ...], **flags: Any) -> int:
    """Wait until services are as asked for: exit code 0, or 1 with the reason when that will not be, or not in time."""
    from fleet.cli import converge

    found = [app.client.get(f"/services/{part(name)}") for name in names]
    watches = [converge.Watch(str(each["ID"]), str(each["Spec"]["Name"])) for each in found]
    return converge.wait(
        app.client, watches, quiet=flags["quiet"], timeout_ns=flags["timeout"], stable_ns=flags["stable"]
    )


for _command in (stop, start, restart, wait):
    for _option in reversed(wait_options()[1 if _command is wait else 0 :]):
        _option(_command)
