"""Tables of tasks, for ``service ps``, ``node ps`` and ``stack ps``: newest first in each slot, history indented."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import click

from fleet.api.client import EngineClient, EngineError
from fleet.cli import clock
from fleet.cli.render import LIST_FORMATS, print_rows, short_id

__all__ = ["Names", "has_ended", "print_tasks", "state_of", "task_options"]

Json = dict[str, Any]

COLUMNS: Final = (
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Image", "IMAGE"),
    ("Node", "NODE"),
    ("DesiredState", "DESIRED STATE"),
    ("CurrentState", "CURRENT STATE"),
    ("Error", "ERROR"),
    ("Ports", "PORTS"),
)
ERROR_WIDTH: Final = 100
_ENDED: Final = frozenset({"complete", "shutdown", "failed", "rejected", "remove", "orphaned"})


def state_of(task: Mapping[str, Any]) -> str:
    """What the API says of a task now; empty when it says nothing."""
    return str((task.get("Status") or {}).get("State", "")).lower()


def has_ended(task: Mapping[str, Any]) -> bool:
    """It runs no more, and never will."""
    return state_of(task) in _ENDED


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--filter, --format, --no-resolve, --no-trunc, --quiet."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="Only display task IDs."),
        click.option("--no-trunc", is_flag=True, help="Do not shorten output."),
        click.option("--no-resolve", is_flag=True, help="Show IDs instead of names."),
        click.option("--format", "fmt", metavar="FORMAT", help=LIST_FORMATS),
        click.option("-f", "--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Show only what matches."),
    ):
        command = option(command)
    return command


class Names:
    """Names of nodes and services by id; each is asked for once, all nodes in one call."""

    def __init__(self, client: EngineClient, *, resolve: bool = True) -> None:
        self._client = client
        self._resolve = resolve
        self._nodes: dict[str, str] | None = None
        self._services: dict[str, str] = {}

    def node(self, node_id: str) -> str:
        """Host name; the id when it is gone."""
        if not self._resolve or not node_id:
            return node_id
        if self._nodes is None:
            try:
                found = self._client.get("/nodes") or []
            except EngineError:
                found = []
            self._nodes = {n["ID"]: (n.get("Description") or {}).get("Hostname") or n["ID"] for n in found}
        return self._nodes.get(node_id, node_id)

    def service(self, service_id: str) -> str:
        """Name; the id when it is gone."""
        if not self._resolve or not service_id:
            return service_id
        if service_id not in self._services:
            try:
                self._services[service_id] = self._client.get(f"/services/{service_id}")["Spec"]["Name"]
            except EngineError:
                self._services[service_id] = service_id
        return self._services[service_id]

    def task(self, task: Json) -> str:
        """``web.1``; for a global service ``web.NODEID``."""
        service = self.service(task.get("ServiceID", ""))
        if not service:  # a container attached to a network has a task and no service
            return str(task["ID"])
        return f"{service}.{task.get('Slot') or task.get('NodeID') or task['ID']}"


def _order(task: Json) -> tuple[str, int, str]:
    return (
        str(task.get("ServiceID", "")),
        int(task.get("Slot") or 0),
        "" if task.get("Slot") else task.get("NodeID", ""),
    )


def sorted_tasks(tasks: Iterable[Json], names: Names) -> list[Json]:
    """By service, then slot (or node), newest first."""
    newest_first = sorted(tasks, key=lambda t: str(t.get("CreatedAt", "")), reverse=True)
    return sorted(newest_first, key=lambda t: (names.service(t.get("ServiceID", "")), *_order(t)[1:]))


def print_tasks(
    client: EngineClient,
    tasks: Sequence[Json],
    *,
    fmt: str | None = None,
    quiet: bool = False,
    no_trunc: bool = False,
    no_resolve: bool = False,
) -> None:
    """The table, as ``docker service ps`` has it."""
    names = Names(client, resolve=not no_resolve)
    rows, previous = [], None
    for task in sorted_tasks(tasks, names):
        name = names.task(task)
        rows.append(_row(task, names, name=f" \\_ {name}" if name == previous and not fmt else name, full=no_trunc))
        previous = name
    print_rows(rows, columns=COLUMNS, fmt=fmt, quiet=quiet, full=no_trunc)


def _row(task: Json, names: Names, *, name: str, full: bool) -> Json:
    status = task.get("Status") or {}
    spec = (task.get("Spec") or {}).get("ContainerSpec") or {}
    image = str(spec.get("Image", ""))
    error = str(status.get("Err") or "")
    if error and not full and len(error) > ERROR_WIDTH:
        error = f"{error[: ERROR_WIDTH - 1]}…"
    ports = ((status.get("PortStatus") or {}).get("Ports")) or ()
    return {
        "ID": short_id(task["ID"], full=full),
        "Name": name,
        "Image": image if full else image.partition("@")[0],
        "Node": names.node(task.get("NodeID", "")),
        "DesiredState": str(task.get("DesiredState", "")).capitalize(),
        "CurrentState": f"{str(status.get('State', '')).capitalize()} {clock.ago(status.get('Timestamp')).lower()}".rstrip(),
        "Error": f'"{error}"' if error else "",
        "Ports": ",".join(
            f"*:{p.get('PublishedPort', 0)}->{p['TargetPort']}/{p.get('Protocol', 'tcp')}" for p in ports
        ),
    }
