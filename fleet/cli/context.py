"""``fleet context``: names for daemons, with their certificates, as Docker's command of that name."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from fleet import errors
from fleet.cli.app import App, TlsOptions, default_host, pass_app, read_input
from fleet.cli.context_archive import ARCHIVE_MAX, PEM_MAX, pack, unpack
from fleet.cli.context_store import DEFAULT, TLS_NAMES, Context, Contexts, check_host, check_name, meta_of
from fleet.cli.files import write_archive
from fleet.cli.render import FORMATS, LIST_FORMATS, echo, inspect_each, print_rows

__all__ = ["context"]

Json = dict[str, Any]
T = TypeVar("T")

_KEYS: Final = ("host", *TLS_NAMES, "skip-tls-verify", "from")
_COLUMNS: Final = (
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("DockerEndpoint", "DOCKER ENDPOINT"),
    ("Error", "ERROR"),
)
_DEFAULT_TEXT: Final = "Current FLEET_HOST based configuration"


@click.group()
def context() -> None:
    """Keep names for daemons to talk to.

    Contexts that Docker's client made can be used and listed too; where both have one of a name, fleet's is meant.
    """


def _endpoint_options(command: Callable[..., T]) -> Callable[..., T]:
    """--description and --docker."""
    command = click.option(
        "--docker",
        "endpoint",
        multiple=True,
        metavar="KEY=VALUE,...",
        help="The daemon: host=URL,ca=FILE,cert=FILE,key=FILE,skip-tls-verify=BOOL, or from=CONTEXT.",
    )(command)
    return click.option("--description", metavar="TEXT", help="What it is, for people.")(command)


def _parse_endpoint(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        for pair in next(csv.reader([text]), []):
            key, separator, value = pair.partition("=")
            if not separator or key not in _KEYS:
                raise click.UsageError(f"--docker {pair!r}: expected KEY=VALUE with KEY one of {', '.join(_KEYS)}")
            found[key] = value
    if "from" in found and len(found) > 1:
        raise click.UsageError(
            "--docker from=CONTEXT takes the whole endpoint of another context; leave the other keys away"
        )
    return found


def _of(app: App, contexts: Contexts, name: str) -> tuple[Context, dict[str, bytes]]:
    """A context with its PEM texts; ``default`` is what the command line and the environment say now."""
    if name == DEFAULT:
        return _default(app), {}
    found = contexts.get(name)
    return found, {part: read_input(str(path), size_max=PEM_MAX) for part, path in found.tls.items()}


def _default(app: App) -> Context:
    return Context(
        name=DEFAULT,
        host=check_host(app.host_given or default_host(app.environment, uid=os.geteuid())),
        metadata={"Description": _DEFAULT_TEXT},
    )


def _endpoint(app: App, contexts: Contexts, given: dict[str, str]) -> tuple[Context, dict[str, bytes]]:
    """The endpoint that ``--docker`` describes, its files read and tried. Raises ``UserError``."""
    if "from" in given:
        return _of(app, contexts, given["from"])
    if not given.get("host"):
        raise click.UsageError("--docker needs host=URL, such as host=tcp://manager:2376")
    flag = given.get("skip-tls-verify", "false").lower()
    if flag not in ("true", "false", "1", "0"):
        raise click.UsageError(f"--docker skip-tls-verify={flag}: expected true or false")
    skip = flag in ("true", "1")
    files = {part: str(Path(given[part]).expanduser()) for part in TLS_NAMES if given.get(part)}
    if ("cert" in files) != ("key" in files):
        raise click.UsageError("--docker: a client certificate is cert=FILE together with key=FILE")
    texts = {part: read_input(path, size_max=PEM_MAX) for part, path in files.items()}
    TlsOptions(
        enabled=bool(files), verify=bool(files) and not skip, **{f"{part}_file": path for part, path in files.items()}
    ).context()
    return Context(name="", host=check_host(given["host"]), skip_tls_verify=skip), texts


@context.command()
@_endpoint_options
@click.option("--from", "origin", metavar="CONTEXT", help="Copy another context (default: the one in use).")
@click.argument("name", metavar="CONTEXT")
@pass_app
def create(app: App, *, name: str, description: str | None, endpoint: tuple[str, ...], origin: str | None) -> None:
    """Create a context.

    For example: fleet context create prod --docker host=tcp://m1:2376,ca=ca.pem,cert=cert.pem,key=key.pem
    """
    contexts, given = Contexts(app.environment), _parse_endpoint(endpoint)
    if contexts.own.get(check_name(name)) is not None:
        raise errors.ConflictError(f"context {name!r} already exists; change it with fleet context update")
    if given and origin:
        raise click.UsageError("--docker and --from exclude each other")
    if given:
        base, tls = _endpoint(app, contexts, given)
        metadata: Json = {}
    else:
        base, tls = _of(app, contexts, origin or app.context_name())
        metadata = dict(base.metadata) if base.name != DEFAULT else {}
    _keep(contexts, name, base, tls, metadata=metadata, description=description)
    echo(name)
    click.echo(f"Successfully created context {name!r}", err=True)


def _keep(
    contexts: Contexts, name: str, endpoint: Context, tls: dict[str, bytes], *, metadata: Json, description: str | None
) -> None:
    if description is not None:
        metadata = {**metadata, "Description": description}
    kept = Context(name=name, host=endpoint.host, skip_tls_verify=endpoint.skip_tls_verify, metadata=metadata)
    contexts.own.put(kept, tls)


@context.command()
@_endpoint_options
@click.argument("name", metavar="CONTEXT")
@pass_app
def update(app: App, *, name: str, description: str | None, endpoint: tuple[str, ...]) -> None:
    """Change a context. --docker replaces its endpoint as a whole, certificates too."""
    contexts, given = Contexts(app.environment), _parse_endpoint(endpoint)
    check_name(name)
    _own(contexts, name)
    before, tls = _of(app, contexts, name)
    base = before
    if given:
        base, tls = _endpoint(app, contexts, given)
    _keep(contexts, name, base, tls, metadata=dict(before.metadata), description=description)
    echo(name)
    click.echo(f"Successfully updated context {name!r}", err=True)


def _own(contexts: Contexts, name: str) -> None:
    """Raises unless the context is one of fleet's."""
    if contexts.own.get(name) is None:
        if contexts.find(name) is not None:
            raise errors.UserError(
                f"context {name!r} belongs to Docker's client; change it there, or copy it with fleet context create --from"
            )
        contexts.get(name)


@context.command()
@click.option("-q", "--quiet", is_flag=True, help="Only display names.")
@click.option("--format", "fmt", metavar="FORMAT", help=LIST_FORMATS)
@pass_app
def ls(app: App, *, fmt: str | None, quiet: bool) -> None:
    """List contexts; the one in use has a star."""
    contexts, current = Contexts(app.environment), app.context_name()
    names = [DEFAULT, *contexts.names()]
    missing = current not in names
    rows = [_row(app, contexts, name, current=name == current) for name in [*names, *([current] if missing else [])]]
    if fmt in (None, "", "table") and not quiet:
        for row in rows:
            row["Name"] += " *" if row["Current"] else ""
    print_rows(rows, columns=_COLUMNS, fmt=fmt, quiet=quiet, quiet_field="Name")
    if missing:
        click.echo(f"Warning: the context in use, {current}, is not there; see fleet context use", err=True)


def _row(app: App, contexts: Contexts, name: str, *, current: bool) -> Json:
    row: Json = {"Name": name, "Description": "", "DockerEndpoint": "", "Error": "", "Source": "", "Current": current}
    try:
        found = _default(app) if name == DEFAULT else contexts.get(name)
    except errors.FleetError as cause:
        return {**row, "Error": str(cause)}
    return {**row, "Description": found.description, "DockerEndpoint": found.host, "Source": found.source}


@context.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@click.argument("names", metavar="[CONTEXT]...", nargs=-1)
@pass_app
def inspect(app: App, *, names: tuple[str, ...], fmt: str | None) -> int:
    """Show contexts in full (default: the one in use); never their keys."""
    contexts = Contexts(app.environment)

    def get(name: str) -> Json:
        found = _default(app) if name == DEFAULT else contexts.get(name)
        shown = meta_of(found)
        if name == DEFAULT:
            shown["Metadata"] = {}
        files = sorted(f"{part}.pem" for part in found.tls)
        return {
            **shown,
            "TLSMaterial": {"docker": files} if files else {},
            "Storage": {"MetadataPath": found.meta_path, "TLSPath": found.tls_path},
        }

    return inspect_each(None, names or (app.context_name(),), lambda _client, name: get(name), fmt=fmt)


@context.command()
@pass_app
def show(app: App) -> None:
    """Print the name of the context in use."""
    echo(app.context_name())


@context.command()
@click.argument("name", metavar="CONTEXT")
@pass_app
def use(app: App, *, name: str) -> None:
    """Make a context the current one."""
    contexts = Contexts(app.environment)
    if name != DEFAULT:
        contexts.get(name)
    contexts.use(name)
    echo(name)
    for variable in ("FLEET_HOST", "DOCKER_HOST", "FLEET_CONTEXT", "DOCKER_CONTEXT"):
        if app.environment.get(variable):
            click.echo(
                f"Warning: ${variable} goes before the current context; unset it, or use --context {name}", err=True
            )
            return
    click.echo(f"Current context is now {name!r}", err=True)


@context.command()
@click.option("-f", "--force", is_flag=True, help="Remove the current context too, and do not mind missing ones.")
@click.argument("names", metavar="CONTEXT...", nargs=-1, required=True)
@pass_app
def rm(app: App, *, names: tuple[str, ...], force: bool) -> int:
    """Remove contexts."""
    contexts, code = Contexts(app.environment), 0
    for name in names:
        try:
            _remove(contexts, check_name(name), force=force)
        except errors.FleetError as cause:
            click.echo(f"Error: {cause}", err=True)
            code = 1
        else:
            echo(name)
    return code


def _remove(contexts: Contexts, name: str, *, force: bool) -> None:
    try:
        _own(contexts, name)
    except errors.NotFoundError:
        if not force:
            raise
    if contexts.current() == name:
        if not force:
            raise errors.ConflictError(
                f"context {name!r} is the current one; choose another with fleet context use, or add --force"
            )
        contexts.use(DEFAULT)
    contexts.own.remove(name)


@context.command()
@click.argument("name", metavar="CONTEXT")
@click.argument("path", metavar="[FILE|-]", required=False)
@pass_app
def export(app: App, *, name: str, path: str | None) -> None:
    """Write a context with its keys as a tar archive (default: CONTEXT.dockercontext)."""
    found, tls = _of(app, Contexts(app.environment), name)
    path = path or f"{name}.dockercontext"
    if path == "-" and sys.stdout.isatty():
        raise errors.UserError("standard output is a terminal; name a file for the archive")
    write_archive(None if path == "-" else path, [pack(found, tls)], secret=True)
    if path != "-":
        click.echo(f"Written file {json.dumps(path)}", err=True)


@context.command(name="import")
@click.argument("name", metavar="CONTEXT")
@click.argument("path", metavar="FILE|-")
@pass_app
def import_(app: App, *, name: str, path: str) -> None:
    """Create a context from an archive that export wrote, fleet's or Docker's."""
    contexts = Contexts(app.environment)
    if contexts.own.get(check_name(name)) is not None:
        raise errors.ConflictError(f"context {name!r} already exists; remove it first")
    where = "standard input" if path == "-" else path
    imported, tls = unpack(read_input(path, size_max=ARCHIVE_MAX), name=name, where=where)
    contexts.own.put(imported, tls)
    echo(name)
    click.echo(f"Successfully imported context {name!r}", err=True)
