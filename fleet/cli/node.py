"""``fleet node``."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet import errors
from fleet.api.client import EngineClient
from fleet.cli.app import App, filters_of, part, pass_app, retry_conflicts
from fleet.cli.rebalance import rebalance
from fleet.cli.render import FORMATS, each, echo, inspect_each, list_options, print_rows
from fleet.cli.tasks import print_tasks, task_options

Json = dict[str, Any]

COLUMNS: Final = (
    ("ID", "ID"),
    ("Hostname", "HOSTNAME"),
    ("Status", "STATUS"),
    ("Availability", "AVAILABILITY"),
    ("ManagerStatus", "MANAGER STATUS"),
    ("EngineVersion", "ENGINE VERSION"),
)
TAINT_PREFIX: Final = "fleet.taint."
TAINT_HELP: Final = (
    "Keep tasks away that do not tolerate it: no-schedule, prefer-no-schedule, or no-execute (running ones too)."
)


@click.group()
def node() -> None:
    """Manage nodes of the swarm."""


@node.command()
@list_options
@pass_app
def ls(app: App, *, filters: tuple[str, ...], fmt: str | None, quiet: bool) -> None:
    """List nodes; the one this daemon is carries a star."""
    found = app.client.get("/nodes", filters=filters_of(filters)) or []
    own = "" if quiet else (app.info().get("Swarm") or {}).get("NodeID", "")
    rows = [_row(item, own=own, star=not fmt or fmt == "table") for item in found]
    print_rows(sorted(rows, key=lambda row: str(row["Hostname"])), columns=COLUMNS, fmt=fmt, quiet=quiet)


def _row(item: Json, *, own: str, star: bool) -> Json:
    description = item.get("Description") or {}
    manager = item.get("ManagerStatus")
    status = ""
    if manager is not None:
        status = "Leader" if manager.get("Leader") else str(manager.get("Reachability", "")).capitalize()
    return {
        "ID": f"{item['ID']} *" if star and own == item["ID"] else item["ID"],
        "Hostname": description.get("Hostname", ""),
        "Status": str((item.get("Status") or {}).get("State", "")).capitalize(),
        "Availability": str(item["Spec"].get("Availability", "")).capitalize(),
        "ManagerStatus": status,
        "EngineVersion": (description.get("Engine") or {}).get("EngineVersion", ""),
        "Self": own == item["ID"],
        "TLSStatus": "Ready",
    }


@node.command()
@click.option("--pretty", is_flag=True, help="Print for people.")
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@click.argument("names", metavar="self|NODE...", nargs=-1, required=True)
@pass_app
def inspect(app: App, *, names: tuple[str, ...], pretty: bool, fmt: str | None) -> int:
    """Show nodes in full."""
    if pretty and fmt:
        raise click.UsageError("--format cannot be combined with --pretty")

    def get(client: EngineClient, name: str) -> Any:
        return client.get(f"/nodes/{part(app.node_reference(name))}")

    if pretty:
        from fleet.cli.pretty import node_text

        return inspect_each(app.client, names, get, pretty=node_text)
    return inspect_each(app.client, names, get, fmt=fmt)


def _change(app: App, name: str, change: Json, *, add: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> None:
    retry_conflicts(lambda: _change_once(app, name, change, add=add, remove=remove))


def _change_once(app: App, name: str, change: Json, *, add: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> None:
    current = app.client.get(f"/nodes/{part(app.node_reference(name))}")
    labels = dict(current["Spec"].get("Labels") or {})
    for label in remove:
        if labels.pop(label, None) is None:
            taint = label.removeprefix(TAINT_PREFIX)
            kind = "label" if taint == label else "taint"
            raise click.UsageError(f"--{kind}-rm {taint}: node {name} has no such {kind}")
    for pair in add:
        key, _, value = pair.partition("=")
        if not key:
            raise click.UsageError(f"--label-add {pair!r} has no name; expected NAME=VALUE")
        labels[key] = value
    spec = {**current["Spec"], "Labels": labels, **change}
    app.client.post(f"/nodes/{current['ID']}/update", spec, version=current["Version"]["Index"])


def _taint_label(text: str) -> str:
    """``KEY[=VALUE]:EFFECT`` as the label ``fleet.taint.KEY=VALUE:EFFECT``."""
    name, colon, effect = text.rpartition(":")
    key, _, value = name.partition("=")
    label = f"{TAINT_PREFIX}{key}"
    if not colon:
        raise click.UsageError(
            f"--taint-add {text!r} has no effect; expected KEY[=VALUE]:EFFECT, such as {text}:no-schedule"
        )
    from fleet.model.taints import parse_taint  # only those who give the flag pay for it

    try:
        parse_taint(label, f"{value}:{effect}")
    except errors.UserError as cause:
        raise click.UsageError(f"--taint-add {text!r}: {str(cause).partition(': ')[2]}") from cause
    return f"{label}={value}:{effect}"


@node.command()
@click.option("--availability", type=click.Choice(["active", "pause", "drain"]), help="Whether tasks run there.")
@click.option("--role", type=click.Choice(["worker", "manager"]), help="Role of the node.")
@click.option("--label-add", multiple=True, metavar="NAME=VALUE", help="Add or change a label.")
@click.option("--label-rm", multiple=True, metavar="NAME", help="Remove a label.")
@click.option("--taint-add", multiple=True, metavar="KEY[=VALUE]:EFFECT", help=TAINT_HELP)
@click.option("--taint-rm", multiple=True, metavar="KEY", help="Remove a taint.")
@click.argument("name", metavar="NODE")
@pass_app
def update(
    app: App,
    *,
    name: str,
    availability: str | None,
    role: str | None,
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
    taint_add: tuple[str, ...],
    taint_rm: tuple[str, ...],
) -> None:
    """Change a node. Taints are labels of it that keep away tasks of services that do not tolerate them."""
    label_add = (*label_add, *map(_taint_label, taint_add))
    label_rm = (*label_rm, *(f"{TAINT_PREFIX}{key}" for key in taint_rm))
    change = {key: value for key, value in (("Availability", availability), ("Role", role)) if value}
    if not change and not label_add and not label_rm:
        raise click.UsageError("nothing to change; expected --availability, --role, --label-add, --taint-add ...")
    _change(app, name, change, add=label_add, remove=label_rm)
    echo(name)


@node.command()
@click.argument("names", metavar="NODE...", nargs=-1, required=True)
@pass_app
def promote(app: App, *, names: tuple[str, ...]) -> int:
    """Make nodes managers."""
    return _set_role(app, names, "manager", "promoted to a manager in the swarm")


@node.command()
@click.argument("names", metavar="NODE...", nargs=-1, required=True)
@pass_app
def demote(app: App, *, names: tuple[str, ...]) -> int:
    """Make managers workers."""
    return _set_role(app, names, "worker", "demoted in the swarm")


def _set_role(app: App, names: tuple[str, ...], role: str, said: str) -> int:
    def change(name: str) -> None:
        retry_conflicts(lambda: change_once(name))

    def change_once(name: str) -> None:
        current = app.client.get(f"/nodes/{part(app.node_reference(name))}")
        if current["Spec"].get("Role") == role:
            echo(f"Node {name} is already a {role}.")
            return
        spec = {**current["Spec"], "Role": role}
        app.client.post(f"/nodes/{current['ID']}/update", spec, version=current["Version"]["Index"])
        echo(f"Node {name} {said}.")

    return each(names, change, quiet=True)


@node.command()
@click.option("-f", "--force", is_flag=True, help="Remove a node that is not down.")
@click.argument("names", metavar="NODE...", nargs=-1, required=True)
@pass_app
def rm(app: App, *, names: tuple[str, ...], force: bool) -> int:
    """Remove nodes from the swarm."""
    query = {"force": "1"} if force else {}
    return each(names, lambda name: app.client.delete(f"/nodes/{part(name)}", **query))


@node.command()
@task_options
@click.argument("names", metavar="[NODE...]", nargs=-1)
@pass_app
def ps(
    app: App,
    *,
    names: tuple[str, ...],
    filters: tuple[str, ...],
    fmt: str | None,
    quiet: bool,
    no_trunc: bool,
    no_resolve: bool,
) -> None:
    """List the tasks on nodes (default: self)."""
    ids = [app.client.get(f"/nodes/{part(app.node_reference(name))}")["ID"] for name in names or ("self",)]
    tasks = app.client.get("/tasks", filters={**(filters_of(filters) or {}), "node": ids}) or []
    print_tasks(app.client, tasks, fmt=fmt, quiet=quiet, no_trunc=no_trunc, no_resolve=no_resolve)


node.add_command(rebalance)
