"""``fleet stack``: Compose files as stacks. The cluster knows no stacks: they are objects that carry a label."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import click

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.cli import clock
from fleet.cli.app import App, filters_of, part, pass_app
from fleet.cli.render import LIST_FORMATS, echo, list_options, print_rows
from fleet.cli.service_flags import wait_options
from fleet.cli.stack_deployment import Deployment, named
from fleet.cli.stack_files import checked_name, convert_files, load_files

if TYPE_CHECKING:
    from fleet.cli.stack_plan import Change, Existing
    from fleet.compose.convert import Stack

Json = dict[str, Any]

LABEL: Final = "com.docker.stack.namespace"
REMOVE_S: Final = 60.0
"""How long ``stack rm`` waits for tasks to stop, so that networks are free: longer than most grace periods."""
POLL_S: Final = 0.1


@click.group()
def stack() -> None:
    """Manage stacks (Compose files)."""


_FILES = click.option(
    "-c",
    "--compose-file",
    "paths",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Compose file, or '-' for standard input.",
)

_PROFILES = click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help="Services of this profile too ('*': of all); also from COMPOSE_PROFILES.",
)


# --- deploy -----------------------------------------------------------------------------------------------------------


_PRUNE = click.option("--prune", is_flag=True, help="Remove services of the stack that the files no longer have.")
_RESOLVE_IMAGE = click.option(
    "--resolve-image",
    type=click.Choice(["always", "changed", "never"]),
    default="always",
    show_default=True,
    help="Note what a tag means now, so that all nodes run the same bytes: for all images, those newly named, or none.",
)
_WITH_AUTH = click.option(
    "--with-registry-auth", "with_auth", is_flag=True, help="Send this user's registry login to the nodes."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """What ``deploy`` and ``diff`` were told alike."""

    paths: tuple[str, ...]
    profiles: tuple[str, ...]
    prune: bool
    with_auth: bool
    resolve_image: str


def _plan_options(command: Any) -> Any:
    for option in (_RESOLVE_IMAGE, _WITH_AUTH, _PRUNE, _PROFILES, _FILES):
        option(command)
    return command


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """``networks``: name -> id. ``versions``: for secrets and configs, first name -> that of the version wanted."""

    wanted: Stack
    changes: list[Change]
    networks: dict[str, str]
    versions: dict[str, dict[str, str]]


def _plan(app: App, chosen: _Chosen, name: str, *, asks: bool) -> _Plan:
    """What deploying would do. ``asks``: whether the daemon may be asked to compare secrets, which looks like a change."""
    from fleet.cli.pinning import pin_services
    from fleet.cli.stack_plan import plan_stack

    wanted = convert_files(app, chosen.paths, checked_name(name), profiles=chosen.profiles)
    existing, wanted, versions = _existing(app.client, wanted, asks=asks)
    networks = {item["Name"]: str(item["Id"]) for item in existing.networks}
    networks |= _external_networks(app.client, wanted)
    running = [item["Spec"]["TaskTemplate"].get("ContainerSpec", {}).get("Image", "") for item in existing.services]
    services = pin_services(
        app, wanted.services, running=running, mode=chosen.resolve_image, with_auth=chosen.with_auth
    )
    wanted = dataclasses.replace(wanted, services=services)
    changes = plan_stack(wanted, existing, prune=chosen.prune)
    for change in changes:
        if change.kind == "network" and change.details:
            click.echo(
                f"Warning: network {change.name} stays as it is, its labels cannot be changed: {'; '.join(change.details)}",
                err=True,
            )
    return _Plan(wanted=wanted, changes=changes, networks=networks, versions=versions)


@stack.command()
@_plan_options
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option(
    "--rollback-on-failure",
    is_flag=True,
    help="When it does not converge, put the stack back as it was; the exit code is 3 when it is.",
)
@click.argument("name", metavar="STACK")
@pass_app
def deploy(
    app: App,
    *,
    name: str,
    dry_run: bool,
    rollback_on_failure: bool,
    detach: bool,
    quiet: bool,
    timeout: int,
    stable: int,
    **chosen: Any,
) -> int:
    """Make the stack as the Compose files say; what is so already is left alone."""
    if rollback_on_failure and detach:
        raise click.UsageError("--rollback-on-failure waits for the outcome and cannot be combined with --detach")
    plan = _plan(app, _Chosen(**chosen), name, asks=not dry_run)
    if dry_run:
        _show_plan(app.client, plan.changes)
        return 0
    deployment = Deployment(
        app,
        plan.wanted,
        networks=plan.networks,
        with_auth=chosen["with_auth"],
        waits=not detach,
        quiet=quiet,
        timeout_ns=timeout,
    )
    if detach and any(
        change.action in ("create", "update") and change.name in plan.wanted.depends_on for change in plan.changes
    ):
        click.echo(
            "Warning: depends_on: with --detach services are made in its order, and none waits for another", err=True
        )
    last = [change for change in plan.changes if rollback_on_failure and change.action == "remove"]
    try:
        for change in plan.changes:
            if change not in last:
                deployment.do(change)
        code = 0 if detach else _converge(deployment, quiet=quiet, timeout_ns=timeout, stable_ns=stable)
    except errors.FleetError as cause:
        if not rollback_on_failure:
            raise
        return _put_back(deployment, cause, quiet=quiet, timeout_ns=timeout, stable_ns=stable)
    if code:
        return code
    for change in last:
        deployment.do(change)
    if not deployment.changed:
        echo(f"Stack {name} is up to date")
    elif not detach:
        _remove_unused(app.client, name, plan.versions)
    return 0


def _converge(deployment: Deployment, *, quiet: bool, timeout_ns: int | None, stable_ns: int) -> int:
    """0, or 130 when interrupted. Raises ``FleetError`` saying why what was changed does not become as asked for."""
    if not deployment.changed:
        return 0
    from fleet.cli.converge import Watch, wait

    watches = [Watch(service_id, service, before=before) for service_id, service, before in deployment.changed]
    return wait(deployment.client, watches, quiet=quiet, timeout_ns=timeout_ns, stable_ns=stable_ns)


def _put_back(
    deployment: Deployment, cause: errors.FleetError, *, quiet: bool, timeout_ns: int | None, stable_ns: int
) -> int:
    from fleet.cli.stack_rollback import ROLLED_BACK, roll_back

    click.echo(f"Error: {cause}", err=True)
    code = roll_back(deployment, quiet=quiet, timeout_ns=timeout_ns, stable_ns=stable_ns)
    if code == ROLLED_BACK:
        click.echo(f"Stack {deployment.wanted.name} is as it was before", err=True)
    return code


@stack.command()
@_plan_options
@click.option("--format", "fmt", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.argument("name", metavar="STACK")
@pass_app
def diff(app: App, *, name: str, fmt: str, **chosen: Any) -> int:
    """Show what deploying the Compose files would change, replica by replica. Exit code: 0 nothing, 1 something, 2 trouble.

    Whether a secret has other content cannot be seen without asking the daemon to take it; 'deploy' finds out.
    """
    plan = _plan(app, _Chosen(**chosen), name, asks=False)
    changes = [each for each in plan.changes if each.action != "keep" and not _is_only_compared(each)]
    if fmt == "json":
        import json

        from fleet.cli.stack_plan import replica_changes

        shown = [
            {
                "Action": each.action,
                "Kind": each.kind,
                "Name": each.name,
                "Differences": each.details,
                "Replicas": replica_changes(each, _tasks_for(app.client, each)),
            }
            for each in changes
        ]
        echo(json.dumps(shown, ensure_ascii=False))
    elif changes:
        _show_plan(app.client, changes)
    else:
        echo(f"Stack {name} is up to date")
    return 1 if changes else 0


def _is_only_compared(change: Change) -> bool:
    """A secret with the labels it has: the update is there to find out whether its content is the same."""
    if change.kind != "secret" or change.action != "update" or change.current is None or change.spec is None:
        return False
    return (change.current["Spec"].get("Labels") or {}) == change.spec.labels


for _option in reversed(wait_options()):
    _option(deploy)


def _labelled(client: EngineClient, path: str, name: str) -> list[Json]:
    return client.get(path, filters={"label": [f"{LABEL}={name}"]}) or []


def _existing(client: EngineClient, stack: Stack, *, asks: bool) -> tuple[Existing, Stack, dict[str, dict[str, str]]]:
    """What there is, the stack with the names of the versions it wants, and for secrets and configs first name -> that name."""
    from fleet.cli.stack_plan import Existing
    from fleet.cli.stack_versions import settle_versions

    found = {}
    for noun, specs in (("secret", stack.secrets), ("config", stack.configs)):
        items = [*_labelled(client, f"/{noun}s", stack.name), *named(client, noun, (spec.name for spec in specs))]
        found[noun] = tuple({str(item["ID"]): item for item in items}.values()) if specs else ()
    versions = settle_versions(client, stack, secrets=found["secret"], configs=found["config"], asks=asks)
    existing = Existing(
        networks=tuple(_labelled(client, "/networks", stack.name)),
        secrets=found["secret"],
        configs=found["config"],
        services=tuple(_labelled(client, "/services", stack.name)),
        unchanged=versions.unchanged,
    )
    settled = versions.stack
    first_names = {
        "secret": {old.name: new.name for old, new in zip(stack.secrets, settled.secrets, strict=True)},
        "config": {old.name: new.name for old, new in zip(stack.configs, settled.configs, strict=True)},
    }
    return existing, settled, first_names


def _remove_unused(client: EngineClient, stack: str, first_names: dict[str, dict[str, str]]) -> None:
    """Versions of secrets and configs that nothing needs any more, when the services have what they were to have."""
    from fleet.cli.stack_versions import unused_versions

    services: list[Json] | None = None
    for noun, names in first_names.items():
        if not names:
            continue
        objects = _labelled(client, f"/{noun}s", stack)
        if len(objects) <= len(names):
            continue
        services = client.get("/services", insertDefaults=False) or [] if services is None else services
        for item in unused_versions(objects, services, noun=noun.capitalize(), wanted=names):
            try:
                client.delete(f"/{noun}s/{item['ID']}")
            except EngineError as cause:
                if cause.status not in (400, 404, 409):  # somebody has begun to use it, or has removed it
                    raise
            else:
                echo(f"Removing {noun} {item['Spec']['Name']} (unused)")


def _external_networks(client: EngineClient, wanted: Stack) -> dict[str, str]:
    found = {}
    for name in wanted.external_networks:
        if name in ("host", "none", "bridge"):
            continue
        try:
            network = client.get(f"/networks/{part(name)}")
        except EngineError as cause:
            if cause.status != 404:
                raise
            raise errors.NotFoundError(
                f"network {name} is declared external and does not exist; create it first: "
                f"fleet network create -d overlay {name}"
            ) from cause
        if network.get("Scope") != "swarm":
            raise errors.UserError(
                f"network {name} is declared external and exists on this host only, not in the swarm"
            )
        found[name] = str(network["Id"])
    return found


def _tasks_for(client: EngineClient, change: Change) -> list[Json]:
    """The wanted tasks of the service that changes, each with ``Hostname``."""
    if change.kind != "service" or change.current is None:
        return []
    filters = {"service": [change.current["ID"]], "desired-state": ["running", "ready"]}
    tasks: list[Json] = client.get("/tasks", filters=filters) or []
    hostnames = {node["ID"]: node["Description"]["Hostname"] for node in client.get("/nodes") or []} if tasks else {}
    return [{**task, "Hostname": hostnames.get(task.get("NodeID", ""), "")} for task in tasks]


def _show_plan(client: EngineClient, changes: list[Change]) -> None:
    from fleet.cli.stack_plan import DIFFERENCES_MAX, replica_changes

    for change in changes:
        echo(f"{change.action:7} {change.kind} {change.name}")
        if change.kind != "service" or change.action == "keep":
            continue
        for lines in (change.details, replica_changes(change, _tasks_for(client, change))):
            for line in lines[:DIFFERENCES_MAX]:
                echo(f"          {line}")
            if len(lines) > DIFFERENCES_MAX:
                echo(f"          and {len(lines) - DIFFERENCES_MAX} more")


# --- looking ----------------------------------------------------------------------------------------------------------


@stack.command()
@_FILES
@_PROFILES
@click.option("--skip-interpolation", is_flag=True, help="Leave variables as they are.")
@pass_app
def config(app: App, *, paths: tuple[str, ...], profiles: tuple[str, ...], skip_interpolation: bool) -> None:
    """Print the Compose files merged, with what they include and extend, and with variables filled in."""
    import yaml

    loaded, _, _ = load_files(app, paths, profiles=profiles, interpolate=not skip_interpolation)
    echo(yaml.safe_dump(loaded.document.plain(), sort_keys=False, allow_unicode=True).rstrip())


@stack.command()
@click.option("--format", "fmt", metavar="FORMAT", help=LIST_FORMATS)
@pass_app
def ls(app: App, *, fmt: str | None) -> None:
    """List stacks."""
    counts: dict[str, int] = {}
    for item in app.client.get("/services", filters={"label": [LABEL]}) or []:
        name = (item["Spec"].get("Labels") or {}).get(LABEL, "")
        counts[name] = counts.get(name, 0) + 1
    rows = [{"Name": name, "Services": str(count)} for name, count in sorted(counts.items())]
    print_rows(rows, columns=(("Name", "NAME"), ("Services", "SERVICES")), fmt=fmt)


def _services_of(app: App, name: str, **query: Any) -> list[Json]:
    filters = query.pop("filters", None) or {}
    filters["label"] = [*filters.get("label", ()), f"{LABEL}={checked_name(name)}"]
    found: list[Json] = app.client.get("/services", filters=filters, **query) or []
    return found


@stack.command()
@list_options
@click.argument("name", metavar="STACK")
@pass_app
def services(app: App, *, name: str, filters: tuple[str, ...], fmt: str | None, quiet: bool) -> None:
    """List the services of a stack."""
    from fleet.cli.service_rows import COLUMNS, service_rows

    found = _services_of(app, name, status=True, filters=filters_of(filters))
    if not found:
        raise errors.NotFoundError(f"nothing found in stack: {name}")
    print_rows(service_rows(found), columns=COLUMNS, fmt=fmt, quiet=quiet)


def _ps_options(command: Any) -> Any:
    from fleet.cli.tasks import task_options

    return task_options(command)


@stack.command()
@_ps_options
@click.argument("name", metavar="STACK")
@pass_app
def ps(
    app: App, *, name: str, filters: tuple[str, ...], fmt: str | None, quiet: bool, no_trunc: bool, no_resolve: bool
) -> None:
    """List the tasks of a stack."""
    from fleet.cli.tasks import print_tasks

    wanted = filters_of(filters) or {}
    wanted["label"] = [*wanted.get("label", ()), f"{LABEL}={checked_name(name)}"]
    tasks = app.client.get("/tasks", filters=wanted) or []
    if not tasks and not filters:
        raise errors.NotFoundError(f"nothing found in stack: {name}")
    print_tasks(app.client, tasks, fmt=fmt, quiet=quiet, no_trunc=no_trunc, no_resolve=no_resolve)


# --- removing ---------------------------------------------------------------------------------------------------------


@stack.command()
@click.option("-d", "--detach", is_flag=True, help="Do not wait until the tasks have stopped.")
@click.argument("names", metavar="STACK...", nargs=-1, required=True)
@pass_app
def rm(app: App, *, names: tuple[str, ...], detach: bool) -> int:
    """Remove stacks with their services, secrets, configs and networks."""
    code = 0
    for name in names:
        if not _remove(app.client, checked_name(name), detach=detach):
            click.echo(f"Error: nothing found in stack: {name}", err=True)
            code = 1
    return code


stack.add_command(rm, "remove")
stack.add_command(rm, "down")
stack.add_command(deploy, "up")


def _remove(client: EngineClient, name: str, *, detach: bool) -> bool:
    from fleet.cli.stack_rollback import remove_network

    found = {path: _labelled(client, f"/{path}", name) for path in ("services", "secrets", "configs", "networks")}
    if not any(found.values()):
        return False
    for path in ("services", "secrets", "configs"):
        for item in found[path]:
            echo(f"Removing {path[:-1]} {item['Spec']['Name']}")
            client.delete(f"/{path}/{item['ID']}")
    deadline = clock.monotonic() + REMOVE_S
    if not detach:
        _wait_until_stopped(client, name, deadline=deadline)
    for item in found["networks"]:
        echo(f"Removing network {item['Name']}")
        remove_network(client, item["Id"], deadline=clock.monotonic() if detach else deadline)
    return True


def _wait_until_stopped(client: EngineClient, name: str, *, deadline: float) -> None:
    """Until no task of the stack may still hold a network; the services themselves cannot be asked for any more."""
    from fleet.cli.tasks import has_ended

    while clock.monotonic() < deadline:
        tasks = _labelled(client, "/tasks", name)
        if all(has_ended(task) for task in tasks):
            return
        clock.sleep(POLL_S)
