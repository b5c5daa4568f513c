"""``fleet user`` and ``fleet token``: who may use the API of this cluster, and what they show to it."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from fleet import errors
from fleet.cli import clock
from fleet.cli.app import App, part, pass_app, retry_conflicts
from fleet.cli.render import each, echo, inspect_each, print_rows
from fleet.cli.service_flags import Parsed
from fleet.compose import values

__all__ = ["token", "user"]

Json = dict[str, Any]

_STACK: Final = "com.docker.stack.namespace"
_ROLES: Final = ("admin", "operator", "viewer")
_USER_COLUMNS: Final = (("ID", "ID"), ("Name", "NAME"), ("Role", "ROLE"), ("Scope", "SCOPE"), ("State", "STATE"))
_TOKEN_COLUMNS: Final = (
    ("ID", "ID"),
    ("User", "USER"),
    ("Description", "DESCRIPTION"),
    ("Created", "CREATED"),
    ("Expires", "EXPIRES"),
    ("LastUsed", "LAST USED"),
)
_DAYS: Final = re.compile(r"(\d{1,6})([dw])")
_DAY_NS: Final = 86_400 * 1_000_000_000


def _selector(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not name.strip() or not equals or not value:
            raise errors.UserError(f"{text!r} is not a selector; expected LABEL=VALUE[,LABEL=VALUE...]")
        labels[name.strip()] = value
    return labels


def _lifetime_ns(text: str) -> int:
    if text.strip() == "never":
        return 0
    match = _DAYS.fullmatch(text.strip())
    if match is not None:
        return int(match[1]) * _DAY_NS * (7 if match[2] == "w" else 1)
    try:
        return values.parse_duration_ns(text)
    except errors.UserError as cause:
        raise errors.UserError(f"{text!r} is not a time to live; expected for example 90d, 12h or never") from cause


SELECTOR: Final = Parsed(_selector, name="LABEL=VALUE,...")
LIFETIME: Final = Parsed(_lifetime_ns, name="TIME")


def _scope_options(command: Any) -> Any:
    for option in (
        click.option(
            "--selector",
            "selectors",
            type=SELECTOR,
            multiple=True,
            metavar="LABEL=VALUE,...",
            help="Only objects with these labels (repeatable: or these).",
        ),
        click.option("--stack", "stacks", multiple=True, metavar="NAME", help="Only this stack (repeatable)."),
    ):
        command = option(command)
    return command


def _scope(stacks: tuple[str, ...], selectors: tuple[dict[str, str], ...]) -> list[dict[str, str]]:
    return [*({_STACK: stack} for stack in stacks), *selectors]


@click.group()
def user() -> None:
    """Manage users of the API: people and programs, each with a role.

    \b
    admin     everything
    operator  services, tasks, secrets, configs, networks, volumes, images, containers; not nodes, swarm or users
    viewer    reads only: no secret data, no exec, no attach, no files of containers; logs, yes

    They show a token (fleet token create), or a client certificate that names them. Both need a daemon that listens with TLS.
    """


@user.command()
@click.option("--role", type=click.Choice(_ROLES), required=True, help="What the user may do.")
@_scope_options
@click.option("--host-access", is_flag=True, help="May run containers that reach their host: as good as root there.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@click.argument("name", metavar="NAME")
@pass_app
def create(
    app: App,
    *,
    name: str,
    role: str,
    stacks: tuple[str, ...],
    selectors: tuple[dict[str, str], ...],
    host_access: bool,
    description: str,
) -> None:
    """Create a user."""
    body = {
        "Name": name,
        "Role": role,
        "Scope": _scope(stacks, selectors),
        "HostAccess": host_access,
        "Description": description,
    }
    echo(app.client.post("/fleet/v1/users/create", body)["ID"])


@user.command(name="ls")
@click.option("--format", "fmt", metavar="FORMAT", help="'table', 'json' or a Go template for each user.")
@click.option("-q", "--quiet", is_flag=True, help="Only IDs.")
@pass_app
def user_ls(app: App, *, fmt: str | None, quiet: bool) -> None:
    """List users."""
    rows = [_user_row(found) for found in app.client.get("/fleet/v1/users")]
    print_rows(rows, columns=_USER_COLUMNS, fmt=fmt, quiet=quiet, headings={"Description": "DESCRIPTION"})


def _user_row(found: Json) -> Json:
    spec = found["Spec"]
    return {
        "ID": found["ID"],
        "Name": spec["Name"],
        "Role": spec["Role"] + (" (host access)" if spec["HostAccess"] else ""),
        "Scope": " | ".join(_scope_text(selector) for selector in spec["Scope"]) or "everything",
        "State": "disabled" if spec["Disabled"] else "active",
        "Description": spec["Description"],
    }


def _scope_text(selector: dict[str, str]) -> str:
    if set(selector) == {_STACK}:
        return f"stack {selector[_STACK]}"
    return ",".join(f"{name}={value}" for name, value in sorted(selector.items()))


@user.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help="'json' or a Go template.")
@click.argument("names", metavar="USER...", nargs=-1, required=True)
@pass_app
def inspect(app: App, *, names: tuple[str, ...], fmt: str | None) -> int:
    """Show users in full."""
    return inspect_each(app.client, names, lambda client, name: client.get(f"/fleet/v1/users/{part(name)}"), fmt=fmt)


@user.command()
@click.option("--role", type=click.Choice(_ROLES), help="Another role.")
@_scope_options
@click.option("--everything", is_flag=True, help="Take the limit to stacks and selectors away.")
@click.option("--host-access/--no-host-access", default=None, help="May run containers that reach their host, or not.")
@click.option("--disable/--enable", "disabled", default=None, help="Refuse the user's tokens and certificates, or not.")
@click.option("--description", metavar="TEXT", help="For people.")
@click.argument("name", metavar="USER")
@pass_app
def update(
    app: App,
    *,
    name: str,
    role: str | None,
    stacks: tuple[str, ...],
    selectors: tuple[dict[str, str], ...],
    everything: bool,
    host_access: bool | None,
    disabled: bool | None,
    description: str | None,
) -> None:
    """Change a user. --stack and --selector replace those that were; what is not named stays."""
    scope = _scope(stacks, selectors)
    if everything and scope:
        raise click.UsageError("--everything excludes --stack and --selector")
    changes: Json = {"Role": role, "HostAccess": host_access, "Disabled": disabled, "Description": description}
    changes = {key: value for key, value in changes.items() if value is not None}
    if scope or everything:
        changes["Scope"] = scope

    def attempt() -> None:
        found = app.client.get(f"/fleet/v1/users/{part(name)}")
        path = f"/fleet/v1/users/{found['ID']}/update"
        app.client.post(path, found["Spec"] | changes, version=found["Version"]["Index"])

    retry_conflicts(attempt)
    echo(name)


@user.command(name="rm")
@click.argument("names", metavar="USER...", nargs=-1, required=True)
@pass_app
def user_rm(app: App, *, names: tuple[str, ...]) -> int:
    """Remove users and their tokens. Certificates in their names stay refused."""
    return each(names, lambda name: app.client.delete(f"/fleet/v1/users/{part(name)}"))


@user.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help="'json' or a Go template.")
@pass_app
def whoami(app: App, *, fmt: str | None) -> int:
    """Show whom the daemon takes this command for."""
    return inspect_each(app.client, ("",), lambda client, _: client.get("/fleet/v1/whoami"), fmt=fmt)


@click.group()
def token() -> None:
    """Manage tokens that users show to the API."""


@token.command(name="create")
@click.option(
    "--expires", "lifetime_ns", type=LIFETIME, default="90d", show_default=True, help="For how long: 90d, 12h, never."
)
@click.option("--description", default="", metavar="TEXT", help="Where it is used.")
@click.argument("name", metavar="USER")
@pass_app
def token_create(app: App, *, name: str, lifetime_ns: int, description: str) -> None:
    """Create a token and print it: this once, it is kept nowhere.

    Show it with FLEET_TOKEN_FILE, --token-file or FLEET_TOKEN; docker sends it when ~/.docker/config.json has
    {"HttpHeaders": {"Authorization": "Bearer TOKEN"}}.
    """
    body = {"User": name, "Description": description, "ExpiresIn": lifetime_ns}
    echo(app.client.post("/fleet/v1/tokens/create", body)["Token"])


@token.command(name="ls")
@click.option("--user", "name", metavar="USER", help="Only those of this user.")
@click.option("--format", "fmt", metavar="FORMAT", help="'table', 'json' or a Go template for each token.")
@click.option("-q", "--quiet", is_flag=True, help="Only IDs.")
@pass_app
def token_ls(app: App, *, name: str | None, fmt: str | None, quiet: bool) -> None:
    """List tokens: whose, until when, last used when (within some minutes)."""
    found = app.client.get("/fleet/v1/tokens", filters={"user": [name]} if name else None)
    print_rows([_token_row(each) for each in found], columns=_TOKEN_COLUMNS, fmt=fmt, quiet=quiet)


def _token_row(found: Json) -> Json:
    ends = clock.parse_time(found["ExpiresAt"])
    left_s = (ends - clock.now()).total_seconds() if ends else 0.0
    return {
        "ID": found["ID"],
        "User": found["User"],
        "Description": found["Description"],
        "Created": clock.ago(found["CreatedAt"]),
        "Expires": "never" if ends is None else f"in {clock.span(left_s)}" if left_s > 0 else "expired",
        "LastUsed": clock.ago(found["LastUsedAt"]) or "never",
    }


@token.command(name="rm")
@click.argument("names", metavar="TOKEN...", nargs=-1, required=True)
@pass_app
def token_rm(app: App, *, names: tuple[str, ...]) -> int:
    """Remove tokens by their ID: from then on they are refused."""
    return each(names, lambda name: app.client.delete(f"/fleet/v1/tokens/{part(name)}"))
