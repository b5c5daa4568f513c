"""``fleet stack``: Compose files as stacks. The cluster knows no stacks: they are objects that carry a label."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fleet import errors
from fleet.api.client import EngineClient, EngineError
from fleet.cli import clock
from fleet.cli.app import App, filters_of, part, pass_app, retry_conflicts
from fleet.cli.render import echo, list_options, print_rows, print_warnings
from fleet.cli.service_flags import wait_options

if TYPE_CHECKING:
    from fleet.cli.stack_plan import Change, Existing
    from fleet.compose.convert import Stack
    from fleet.compose.load import Loaded

Json = dict[str, Any]

LABEL: Final = "com.docker.stack.namespace"
FILE_MAX: Final = 1024 * 1024
REMOVE_S: Final = 60.0
"""How long ``stack rm`` waits for tasks to stop, so that networks are free: longer than most grace periods."""
POLL_S: Final = 0.1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@click.group()
def stack() -> None:
    """Manage stacks (Compose files)."""


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise errors.UserError(
            f"{name!r} is not a stack name; expected letters, digits, '-' and '_', at most 63, beginning with a letter or digit"
        )
    return name


# --- reading files ----------------------------------------------------------------------------------------------------


def _read_files(paths: tuple[str, ...]) -> tuple[list[tuple[str, str]], str]:
    """(name, text) of each file and the directory relative paths start from: that of the first file."""
    files = []
    for path in paths:
        try:
            if path == "-":
                data = sys.stdin.buffer.read(FILE_MAX + 1)
            else:
                with Path(path).open("rb") as file:
                    data = file.read(FILE_MAX + 1)
        except OSError as cause:
            raise errors.UserError(f"cannot read {path}: {cause.strerror or cause}") from cause
        if len(data) > FILE_MAX:
            raise errors.TooLargeError(f"{path} is larger than the {FILE_MAX} bytes allowed")
        try:
            files.append(("stdin" if path == "-" else path, data.decode()))
        except UnicodeDecodeError as cause:
            raise errors.UserError(f"{path} is not UTF-8 text (byte {cause.start})") from cause
    first = paths[0]
    return files, str(Path.cwd() if first == "-" else Path(first).resolve().parent)


def _environment(app: App, directory: str) -> dict[str, str]:
    """The caller's variables over those of a ``.env`` file beside the Compose file."""
    path = Path(directory) / ".env"
    if not path.is_file():
        return dict(app.environment)
    from fleet.compose.env_file import parse_env_file

    try:
        with path.open(encoding="utf-8") as file:
            found = parse_env_file(file.read(FILE_MAX), environment=app.environment)
    except (OSError, UnicodeDecodeError) as cause:
        raise errors.UserError(f"cannot read {path}: {cause}") from cause
    except errors.UserError as cause:
        raise errors.UserError(f"{path}{cause}") from cause
    return {**{name: value for name, value in found.items() if value is not None}, **app.environment}


def _load(app: App, paths: tuple[str, ...], *, interpolate: bool = True) -> tuple[Loaded, str, dict[str, str]]:
    from fleet.compose.load import load

    files, directory = _read_files(paths)
    environment = _environment(app, directory)
    loaded = load(files, environment=environment, interpolate_variables=interpolate)
    for warning in loaded.warnings:
        click.echo(f"Warning: {warning}", err=True)
    return loaded, directory, environment


def _convert(app: App, paths: tuple[str, ...], name: str) -> Stack:
    from fleet.compose.convert import Sources, convert

    loaded, directory, environment = _load(app, paths)

    def read_file(path: str, size_max: int) -> bytes:
        with (Path(directory) / path).open("rb") as file:
            return file.read(size_max + 1)

    sources = Sources(environment=environment, directory=directory, read_file=read_file)
    return convert(loaded.document, stack=name, sources=sources)


_FILES = click.option(
    "-c",
    "--compose-file",
    "paths",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Compose file, or '-' for standard input.",
)


# --- deploy -----------------------------------------------------------------------------------------------------------


@stack.command()
@_FILES
@click.option("--prune", is_flag=True, help="Remove services of the stack that the files no longer have.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--with-registry-auth", is_flag=True, help="Send this user's registry login to the nodes.")
@click.option(
    "--resolve-image",
    type=click.Choice(["always", "changed", "never"]),
    default="always",
    show_default=True,
    help="Note what a tag means now, so that all nodes run the same bytes: for all images, those newly named, or none.",
)
@click.argument("name", metavar="STACK")
@pass_app
def deploy(app: App, *, name: str, paths: tuple[str, ...], prune: bool, dry_run: bool, **flags: Any) -> int:
    """Make the stack as the Compose files say; what is so already is left alone."""
    from fleet.cli.pinning import pin_services
    from fleet.cli.stack_plan import plan_stack

    wanted = _convert(app, paths, _checked_name(name))
    existing = _existing(app.client, wanted)
    networks = {item["Name"]: str(item["Id"]) for item in existing.networks}
    networks |= _external_networks(app.client, wanted)
    running = [item["Spec"]["TaskTemplate"].get("ContainerSpec", {}).get("Image", "") for item in existing.services]
    with_auth, mode = flags["with_registry_auth"], flags["resolve_image"]
    services = pin_services(app, wanted.services, running=running, mode=mode, with_auth=with_auth)
    wanted = dataclasses.replace(wanted, services=services)
    changes = plan_stack(wanted, existing, prune=prune)
    if dry_run:
        _show_plan(changes)
        return 0
    deployment = _Deployment(app, wanted, networks=networks, with_auth=with_auth)
    for change in changes:
        deployment.do(change)
    if not deployment.changed:
        echo(f"Stack {name} is up to date")
        return 0
    if flags["detach"]:
        return 0
    from fleet.cli.converge import Watch, wait

    watches = [Watch(service_id, service, before=before) for service_id, service, before in deployment.changed]
    return wait(app.client, watches, quiet=flags["quiet"], timeout_ns=flags["timeout"], stable_ns=flags["stable"])


for _option in reversed(wait_options()):
    _option(deploy)


def _labelled(client: EngineClient, path: str, name: str) -> list[Json]:
    return client.get(path, filters={"label": [f"{LABEL}={name}"]}) or []


def _named(client: EngineClient, noun: str, names: Iterable[str]) -> tuple[Json, ...]:
    """Secrets or configs that are called exactly so (the API's filter matches beginnings too)."""
    wanted = list(names)
    if not wanted:
        return ()
    found = client.get(f"/{noun}s", filters={"name": wanted}) or []
    return tuple(item for item in found if item["Spec"]["Name"] in wanted)


def _existing(client: EngineClient, wanted: Stack) -> Existing:
    from fleet.cli.stack_plan import Existing

    return Existing(
        networks=tuple(_labelled(client, "/networks", wanted.name)),
        secrets=_named(client, "secret", (spec.name for spec in wanted.secrets)),
        configs=_named(client, "config", (spec.name for spec in wanted.configs)),
        services=tuple(_labelled(client, "/services", wanted.name)),
    )


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


def _show_plan(changes: list[Change]) -> None:
    for change in changes:
        echo(f"{change.action:7} {change.kind} {change.name}")
        if change.kind == "service" and change.action == "update":
            from fleet.cli.stack_plan import DIFFERENCES_MAX

            for line in change.details[:DIFFERENCES_MAX]:
                echo(f"          {line}")
            if len(change.details) > DIFFERENCES_MAX:
                echo(f"          and {len(change.details) - DIFFERENCES_MAX} more")


class _Deployment:
    """Carries the changes out, one call each, and remembers what must be waited for."""

    def __init__(self, app: App, wanted: Stack, *, networks: dict[str, str], with_auth: bool) -> None:
        self.app = app
        self.client = app.client
        self.wanted = wanted
        self.networks = networks
        self.with_auth = with_auth
        self.changed: list[tuple[str, str, Json | None]] = []
        """Id, name and, for an update, the service as it was."""
        self._ids: dict[str, dict[str, str]] = {}

    def do(self, change: Change) -> None:
        """One step, with one line about it."""
        from fleet.model import wire

        if change.kind == "service":
            self._service(change)
            return
        if change.action == "keep":
            return
        body = wire.to_builtins(change.spec)
        if change.action == "create":
            echo(f"Creating {change.kind} {change.name}")
            answer = self.client.post(f"/{change.kind}s/create", body)
            if change.kind == "network":
                self.networks[change.name] = answer["Id"]
            return
        assert change.current is not None, "an update has an object it updates"
        self._update_object(change, body, change.current)

    def _update_object(self, change: Change, body: Json, current: Json) -> None:
        try:
            self.client.post(f"/{change.kind}s/{current['ID']}/update", body, version=current["Version"]["Index"])
        except EngineError as cause:
            if cause.status != 400:
                raise
            raise errors.UserError(
                f"{change.kind} {change.name} exists with other content, and {change.kind}s cannot be changed; "
                f"give the new content a new name (name: {change.name}_2) so that services move to it ({cause})"
            ) from cause

    def _names(self, noun: str) -> dict[str, str]:
        """Name -> id of the stack's secrets or configs, external ones too; asked for once."""
        if noun not in self._ids:
            container_specs = [spec.task_template.container_spec for spec in self.wanted.services]
            names = {
                *(ref.secret_name for spec in container_specs for ref in spec.secrets if noun == "secret"),
                *(ref.config_name for spec in container_specs for ref in spec.configs if noun == "config"),
            }
            found = _named(self.client, noun, sorted(names))
            self._ids[noun] = {item["Spec"]["Name"]: item["ID"] for item in found}
        return self._ids[noun]

    def _service(self, change: Change) -> None:
        from fleet.cli.stack_plan import resolve_names
        from fleet.model import wire
        from fleet.model.service import ServiceSpec

        if change.action == "remove":
            assert change.current is not None, "a removal has an object it removes"
            echo(f"Removing service {change.name}")
            self.client.delete(f"/services/{change.current['ID']}")
            return
        if change.action == "keep":
            echo(f"Keeping service {change.name} (unchanged)")
            return
        assert isinstance(change.spec, ServiceSpec), "a service is made from a service spec"
        spec = resolve_names(
            change.spec, networks=self.networks, secrets=self._names("secret"), configs=self._names("config")
        )
        headers: dict[str, str] = {}
        if self.with_auth:
            from fleet.cli.registry_auth import auth_headers

            headers = auth_headers(spec.task_template.container_spec.image, self.app.environment)
        body = wire.to_builtins(spec)
        if change.action == "create":
            echo(f"Creating service {change.name}")
            answer = retry_conflicts(
                lambda: self.client.request("POST", "/services/create", json_body=body, headers=headers)
            )
            self.changed.append((answer["ID"], change.name, None))
        else:
            assert change.current is not None, "an update has an object it updates"
            echo(f"Updating service {change.name} (id: {change.current['ID']})")
            answer = self._update_service(change.current, body, headers)
            self.changed.append((change.current["ID"], change.name, change.current))
        print_warnings(answer)

    def _update_service(self, current: Json, body: Json, headers: dict[str, str]) -> Any:
        """The version is read again on a conflict, and used if the spec is still the one the plan was made from."""
        version = current["Version"]["Index"]

        def attempt() -> Any:
            nonlocal version
            try:
                return self.client.request(
                    "POST",
                    f"/services/{current['ID']}/update",
                    query={"version": version},
                    json_body=body,
                    headers=headers,
                )
            except EngineError:
                found = self.client.get(f"/services/{current['ID']}", insertDefaults=False)
                if found["Spec"] == current["Spec"]:
                    version = found["Version"]["Index"]
                raise

        return retry_conflicts(attempt)


# --- looking ----------------------------------------------------------------------------------------------------------


@stack.command()
@_FILES
@click.option("--skip-interpolation", is_flag=True, help="Leave variables as they are.")
@pass_app
def config(app: App, *, paths: tuple[str, ...], skip_interpolation: bool) -> None:
    """Print the Compose files merged, with variables filled in."""
    import yaml

    loaded, _, _ = _load(app, paths, interpolate=not skip_interpolation)
    echo(yaml.safe_dump(loaded.document.plain(), sort_keys=False, allow_unicode=True).rstrip())


@stack.command()
@click.option("--format", "fmt", metavar="FORMAT", help="'table', 'table TEMPLATE', 'json', or a Go template.")
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
    filters["label"] = [*filters.get("label", ()), f"{LABEL}={_checked_name(name)}"]
    found: list[Json] = app.client.get("/services", filters=filters, **query) or []
    return found


@stack.command()
@list_options
@click.argument("name", metavar="STACK")
@pass_app
def services(app: App, *, name: str, filters: tuple[str, ...], fmt: str | None, quiet: bool) -> None:
    """List the services of a stack."""
    from fleet.cli.service import COLUMNS, service_rows

    found = _services_of(app, name, status=True, filters=filters_of(filters))
    if not found:
        raise errors.NotFoundError(f"nothing found in stack: {name}")
    print_rows(service_rows(found, full=bool(fmt) and fmt != "table"), columns=COLUMNS, fmt=fmt, quiet=quiet)


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
    wanted["label"] = [*wanted.get("label", ()), f"{LABEL}={_checked_name(name)}"]
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
        if not _remove(app.client, _checked_name(name), detach=detach):
            click.echo(f"Error: nothing found in stack: {name}", err=True)
            code = 1
    return code


stack.add_command(rm, "remove")
stack.add_command(rm, "down")
stack.add_command(deploy, "up")


def _remove(client: EngineClient, name: str, *, detach: bool) -> bool:
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
        _remove_network(client, item["Id"], deadline=clock.monotonic() if detach else deadline)
    return True


def _wait_until_stopped(client: EngineClient, name: str, *, deadline: float) -> None:
    """Until no task of the stack may still hold a network; the services themselves cannot be asked for any more."""
    ended = ("complete", "shutdown", "failed", "rejected", "orphaned", "remove")
    while clock.monotonic() < deadline:
        tasks = _labelled(client, "/tasks", name)
        if all((task.get("Status") or {}).get("State") in ended for task in tasks):
            return
        clock.sleep(POLL_S)


def _remove_network(client: EngineClient, network_id: str, *, deadline: float) -> None:
    """Delete it, again while tasks that are stopping still use it."""
    while True:
        try:
            client.delete(f"/networks/{network_id}")
        except EngineError as cause:
            if cause.status == 404:
                return
            if cause.status not in (400, 403, 409) or clock.monotonic() >= deadline:
                raise
            clock.sleep(POLL_S)
        else:
            return
