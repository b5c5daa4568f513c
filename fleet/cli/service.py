"""``fleet service``."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet.api.client import EngineClient
from fleet.cli.app import App, filters_of, part, pass_app
from fleet.cli.lazy import LazyCommands
from fleet.cli.render import FORMATS, each, echo, inspect_each, list_options, print_rows
from fleet.cli.service_rows import COLUMNS, service_rows
from fleet.cli.tasks import print_tasks, task_options

Json = dict[str, Any]

EXPLAIN_COLUMNS: Final = (
    ("Rank", "RANK"),
    ("Node", "NODE"),
    ("Weight", "WEIGHT"),
    ("ServiceTasks", "OF SERVICE"),
    ("Tasks", "TASKS"),
    ("Reserved", "RESERVED"),
    ("Failures", "FAILURES"),
    ("Why", "WHY"),
)


_ELSEWHERE: Final = {
    "create": "fleet.cli.service_change:create",
    "update": "fleet.cli.service_change:update",
    "rollback": "fleet.cli.service_change:rollback",
    "scale": "fleet.cli.service_change:scale",
    "exec": "fleet.cli.exec:service_exec",
    "start": "fleet.cli.service_power:start",
    "stop": "fleet.cli.service_power:stop",
    "restart": "fleet.cli.service_power:restart",
    "wait": "fleet.cli.service_power:wait",
}
"""The hundred flags of ``create`` take longer to build than the services to be listed."""


@click.group(cls=LazyCommands, elsewhere=_ELSEWHERE)
def service() -> None:
    """Manage services."""


@service.command()
@list_options
@pass_app
def ls(app: App, *, filters: tuple[str, ...], fmt: str | None, quiet: bool) -> None:
    """List services."""
    found = app.client.get("/services", status=True, filters=filters_of(filters)) or []
    print_rows(service_rows(found), columns=COLUMNS, fmt=fmt, quiet=quiet)


@service.command()
@task_options
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
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
    """List the tasks of one or more services."""
    ids = [app.client.get(f"/services/{part(name)}")["ID"] for name in names]
    wanted = {**(filters_of(filters) or {}), "service": ids}
    if "node" in wanted:
        wanted["node"] = [app.node_reference(node) for node in wanted["node"]]
    tasks = app.client.get("/tasks", filters=wanted) or []
    print_tasks(app.client, tasks, fmt=fmt, quiet=quiet, no_trunc=no_trunc, no_resolve=no_resolve)


@service.command()
@click.option("--pretty", is_flag=True, help="Print for people.")
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def inspect(app: App, *, names: tuple[str, ...], pretty: bool, fmt: str | None) -> int:
    """Show services in full."""
    if pretty and fmt:
        raise click.UsageError("--format cannot be combined with --pretty")

    def get(client: EngineClient, name: str) -> Any:
        return client.get(f"/services/{part(name)}", insertDefaults=True)

    if pretty:
        from fleet.cli.pretty import service_text

        return inspect_each(app.client, names, get, pretty=lambda item: service_text(item, app.client))
    return inspect_each(app.client, names, get, fmt=fmt)


@service.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help="'table', 'json', 'yaml' or a Go template for each node.")
@click.argument("name", metavar="SERVICE")
@pass_app
def explain(app: App, *, name: str, fmt: str | None) -> None:
    """Show where the next task of a service would go, why not elsewhere, and how its policy scaled it."""
    report = app.client.get(f"/fleet/v1/services/{part(name)}/placement")
    rows = [_verdict(number, node, chosen=report["Chosen"]) for number, node in enumerate(report["Nodes"], start=1)]
    print_rows(rows, columns=EXPLAIN_COLUMNS, fmt=fmt, quiet=False)
    if fmt not in (None, "table"):
        return
    if not any(row["ID"] == report["Chosen"] for row in rows):
        reason = report.get("Reason", "")
        echo(f"Another task would wait: {reason}" if reason.startswith("beyond") else "No node can take another task.")
    hosts = {node["ID"]: node["Hostname"] or node["ID"] for node in report["Nodes"]}
    if preempts := report.get("Preempts"):
        stops, place = ", ".join(preempts["Names"]), hosts.get(preempts["NodeID"], preempts["NodeID"])
        echo(f"For another task {stops} would stop on {place}, of lower priority.")
    for task in report.get("Preempted", []):
        verb = "was stopped" if task["HasEnded"] else "stops"
        echo(f"{task['Name']} {verb} on {hosts.get(task['NodeID'], task['NodeID'])} for a task of {task['Service']}.")
    for quota in report.get("Quotas", []):
        echo(quota[0].upper() + quota[1:])
    for task in report["Waiting"]:
        echo(f"{name}.{task['Slot'] or task['ID']} waits: {task['Err'] or 'not looked at yet'}")
    if scaling := report.get("Autoscale"):
        from fleet.cli.pretty import scaling_lines

        for line in scaling_lines(scaling):
            echo(line)


def _verdict(number: int, node: Json, *, chosen: str) -> Json:
    is_chosen, reasons = node["ID"] == chosen, "; ".join(node["Reasons"])
    return {
        "ID": node["ID"],
        "Rank": "-" if reasons else number,
        "Node": node["Hostname"] or node["ID"],
        "Weight": node["Score"],
        "ServiceTasks": node["ServiceTasks"],
        "Tasks": node["Tasks"],
        "Reserved": f"{node['ReservedPermille'] / 10:g}%",
        "Failures": node["Failures"],
        "Why": "; ".join((["chosen"] if is_chosen else node["Reasons"]) + node.get("Notes", [])),
    }


@service.command()
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def rm(app: App, *, names: tuple[str, ...]) -> int:
    """Remove services and stop their tasks."""
    return each(names, lambda name: app.client.delete(f"/services/{part(name)}"))


service.add_command(rm, "remove")


@service.command(name="logs")
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option("--since", metavar="TIME", help="Only lines since a time, or a duration back such as 10m.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines of each task.")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("--details", is_flag=True, help="Show what the log driver adds to each line.")
@click.option("--no-resolve", is_flag=True, help="Show IDs instead of names.")
@click.option("--no-task-ids", is_flag=True, help="Leave task IDs out.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten task IDs.")
@click.option("--raw", is_flag=True, help="Print the lines alone.")
@click.argument("name", metavar="SERVICE|TASK")
@pass_app
def logs(app: App, *, name: str, **options: Any) -> None:
    """Show the logs of a service or of one task."""
    from fleet.cli.logs import service_logs

    service_logs(app, name, **options)
