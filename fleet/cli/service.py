"""``fleet service``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from fleet import errors
from fleet.api.client import EngineClient
from fleet.cli import references
from fleet.cli.app import App, filters_of, part, pass_app, retry_conflicts
from fleet.cli.exec import service_exec
from fleet.cli.pinning import pinned
from fleet.cli.render import FORMATS, each, echo, inspect_each, list_options, print_rows, print_warnings, short_id
from fleet.cli.service_flags import Parsed, create_options, image_name, update_options, wait_options
from fleet.cli.service_power import restart, start, stop, wait
from fleet.cli.service_spec import autoscale_bounds, create_spec, mode_name, scale_spec, update_spec
from fleet.cli.service_update import inherited, post_update
from fleet.cli.tasks import print_tasks, task_options

Json = dict[str, Any]

_ENV_FILE_MAX: Final = 1024 * 1024

COLUMNS: Final = (
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Mode", "MODE"),
    ("Replicas", "REPLICAS"),
    ("Image", "IMAGE"),
    ("Ports", "PORTS"),
)

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


@click.group()
def service() -> None:
    """Manage services."""


@service.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@create_options
@click.argument("image", type=Parsed(image_name, name="IMAGE"))
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_app
def create(app: App, *, image: str, command: tuple[str, ...], **flags: Any) -> int:
    """Create a service that runs IMAGE [COMMAND [ARG...]]."""
    flags["env"] = (*_env_files(flags["env_file"], app.environment), *inherited(flags["env"], app.environment))
    flags = references.resolve(app.client, flags)
    spec = create_spec(flags, image=image, arguments=command)
    headers = _auth_headers(app, image, wanted=flags["with_registry_auth"])
    if not flags["no_resolve_image"]:
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = pinned(app, image, headers=headers)
    answer = retry_conflicts(lambda: app.client.request("POST", "/services/create", json_body=spec, headers=headers))
    print_warnings(answer)
    echo(answer["ID"])
    return _wait(app, [(answer["ID"], spec["Name"] or short_id(answer["ID"]), None)], flags)


@service.command()
@update_options
@click.argument("name", metavar="SERVICE")
@pass_app
def update(app: App, *, name: str, **flags: Any) -> int:
    """Change a service.

    Its tasks are replaced as its update configuration says; a change of labels or replicas replaces none.
    """
    if flags["rollback"]:
        given = [key for key in ("image", "args", "force", "replicas") if flags[key]]
        if given:
            raise click.UsageError(f"--rollback goes back as a whole and cannot be combined with --{given[0]}")
        return _rollback(app, name, flags)
    if flags["image"] and not flags["no_resolve_image"]:
        login = _auth_headers(app, flags["image"], wanted=flags["with_registry_auth"])
        flags["image"] = pinned(app, flags["image"], headers=login)
    flags["env_add"] = inherited(flags["env_add"], app.environment)
    flags = references.resolve(app.client, flags, suffix="_add")

    def change(spec: Json) -> Json:
        return update_spec(spec, flags)

    def headers(spec: Json) -> dict[str, str]:
        image = str((spec["TaskTemplate"].get("ContainerSpec") or {}).get("Image", ""))
        return _auth_headers(app, image, wanted=flags["with_registry_auth"])

    current = post_update(app, name, change, headers=headers, registryAuthFrom="spec")
    echo(name)
    return _wait(app, [_watched(current)], flags)


def _watched(current: Json) -> tuple[str, str, Json | None]:
    return current["ID"], str(current["Spec"].get("Name", "")), current


@service.command()
@click.argument("name", metavar="SERVICE")
@pass_app
def rollback(app: App, *, name: str, **flags: Any) -> int:
    """Go back to the specification before the last update."""
    return _rollback(app, name, flags)


def _rollback(app: App, name: str, flags: Mapping[str, Any]) -> int:
    current = post_update(app, name, lambda spec: spec, rollback="previous")
    echo(name)
    return _wait(app, [_watched(current)], flags, rollback_wanted=True)


def _scale_argument(text: str) -> tuple[str, int]:
    name, separator, count = text.partition("=")
    if not separator or not name or not count.isdecimal() or int(count) >= 2**31:
        raise errors.UserError(f"{text!r} is not a scale; expected SERVICE=NUMBER")
    return name, int(count)


@service.command()
@click.argument(
    "scales", metavar="SERVICE=REPLICAS...", nargs=-1, required=True, type=Parsed(_scale_argument, name="SCALE")
)
@pass_app
def scale(app: App, *, scales: tuple[tuple[str, int], ...], **flags: Any) -> int:
    """Set the number of tasks of one or more services."""
    watched = []
    for name, replicas in scales:
        current = post_update(app, name, lambda spec, wanted=replicas: scale_spec(spec, wanted))  # type: ignore[misc]
        echo(f"{name} scaled to {replicas}")
        watched.append(_watched(current))
    return _wait(app, watched, flags)


for _command in (scale, rollback):
    for _option in reversed(wait_options()):
        _option(_command)


@service.command()
@list_options
@pass_app
def ls(app: App, *, filters: tuple[str, ...], fmt: str | None, quiet: bool) -> None:
    """List services."""
    found = app.client.get("/services", status=True, filters=filters_of(filters)) or []
    print_rows(service_rows(found), columns=COLUMNS, fmt=fmt, quiet=quiet)


def service_rows(found: Iterable[Json]) -> list[Json]:
    """Rows of ``service ls``, by name."""
    return [_row(item) for item in sorted(found, key=lambda item: str(item["Spec"].get("Name", "")))]


def _row(item: Json) -> Json:
    spec = item["Spec"]
    status = item.get("ServiceStatus") or {}
    running, desired = status.get("RunningTasks", 0), status.get("DesiredTasks", 0)
    replicas = f"{running}/{desired}"
    job = (spec.get("Mode") or {}).get("ReplicatedJob")
    if job is not None:
        replicas += f" ({status.get('CompletedTasks', 0)}/{job.get('TotalCompletions', 1)} completed)"
    if bounds := autoscale_bounds(spec):
        replicas += f" (auto {bounds[0]}-{bounds[1]})"
    most = (spec["TaskTemplate"].get("Placement") or {}).get("MaxReplicas")
    if most:
        replicas += f" (max {most} per node)"
    image = str((spec["TaskTemplate"].get("ContainerSpec") or {}).get("Image", ""))
    return {
        "ID": short_id(item["ID"]),
        "Name": spec.get("Name", ""),
        "Mode": mode_name(spec),
        "Replicas": replicas,
        "Image": image.partition("@")[0],
        "Ports": ", ".join(_port(port) for port in (item.get("Endpoint") or {}).get("Ports") or ()),
    }


def _port(port: Json) -> str:
    published = port.get("PublishedPort", 0)
    return f"*:{published}->{port['TargetPort']}/{port.get('Protocol', 'tcp')}" if published else ""


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
for _each in (service_exec, stop, start, restart, wait):
    service.add_command(_each)


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


# --- waiting, environment and registry logins -------------------------------------------------------------------------


def _wait(
    app: App,
    watched: list[tuple[str, str, Json | None]],
    flags: Mapping[str, Any],
    *,
    rollback_wanted: bool = False,
) -> int:
    if flags["detach"]:
        return 0
    from fleet.cli.converge import Watch, wait

    watches = [
        Watch(service_id, name, before=before, rollback_wanted=rollback_wanted) for service_id, name, before in watched
    ]
    return wait(app.client, watches, quiet=flags["quiet"], timeout_ns=flags["timeout"], stable_ns=flags["stable"])


def _env_files(paths: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    from fleet.compose.env_file import parse_env_file

    lines: list[str] = []
    for path in paths:
        try:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(_ENV_FILE_MAX + 1)
        except (OSError, UnicodeDecodeError) as cause:
            raise errors.UserError(f"--env-file: cannot read {path}: {cause}") from cause
        if len(text) > _ENV_FILE_MAX:
            raise errors.TooLargeError(f"--env-file {path}: larger than {_ENV_FILE_MAX} characters")
        try:
            found = parse_env_file(text, environment=environment)
        except errors.UserError as cause:
            raise errors.UserError(f"--env-file {path}{cause}") from cause
        lines += [f"{name}={value}" for name, value in found.items() if value is not None]
    return lines


def _auth_headers(app: App, image: str, *, wanted: bool) -> dict[str, str]:
    if not wanted:
        return {}
    from fleet.cli.registry_auth import auth_headers

    return auth_headers(image, app.environment)
