"""``fleet service create``, ``update``, ``rollback`` and ``scale``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from fleet import errors
from fleet.cli import references
from fleet.cli.app import App, pass_app, retry_conflicts
from fleet.cli.pinning import pinned
from fleet.cli.render import echo, print_warnings, short_id
from fleet.cli.service_flags import Parsed, create_options, image_name, update_options, wait_options
from fleet.cli.service_spec import create_spec, scale_spec, update_spec
from fleet.cli.service_update import inherited, post_update

__all__ = ["create", "rollback", "scale", "update"]

Json = dict[str, Any]

_ENV_FILE_MAX: Final = 1024 * 1024


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
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


@click.command()
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


@click.command()
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


@click.command()
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
