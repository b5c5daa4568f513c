"""``fleet login`` and ``fleet logout``: the daemon checks a login with the registry, Docker's file of logins keeps it."""

from __future__ import annotations

import sys

import click

from fleet import errors
from fleet.cli.app import App, pass_app
from fleet.cli.registry_auth import HUB, erase_login, read_login, registry_key, store_login
from fleet.cli.render import echo

_SECRET_MAX = 64 * 1024


@click.command()
@click.option("-u", "--username", default="", metavar="NAME", help="User name.")
@click.option("-p", "--password", default="", metavar="TEXT", help="Password; others can see it in the process list.")
@click.option("--password-stdin", is_flag=True, help="Take the password from standard input.")
@click.argument("server", metavar="[SERVER]", default="")
@pass_app
def login(app: App, *, username: str, password: str, password_stdin: bool, server: str) -> None:
    """Log in to a registry (default: Docker Hub)."""
    if password and password_stdin:
        raise click.UsageError("--password and --password-stdin exclude each other")
    if password_stdin and not username:
        raise click.UsageError("--password-stdin needs --username")
    registry = registry_key(server)
    kept = None if username or password else read_login(registry, app.environment)
    if kept is not None:
        login = kept
        click.echo(f"Authenticating with existing credentials... [Username: {kept.get('username', '')}]", err=True)
    else:
        if password_stdin:
            password = sys.stdin.read(_SECRET_MAX).rstrip("\r\n")
        elif not (username and password) and not sys.stdin.isatty():
            raise errors.UserError("cannot ask for a login: standard input is no terminal; use -u and --password-stdin")
        username = username or click.prompt("Username", err=True)
        password = password or ("" if password_stdin else click.prompt("Password", hide_input=True, err=True))
        if not password:
            raise errors.UserError("the password is empty")
        login = {"username": username, "password": password, "serveraddress": registry}
    answer = app.client.post("/auth", login) or {}
    token = answer.get("IdentityToken")
    if token:
        login = {"username": login.get("username", ""), "identitytoken": token, "serveraddress": registry}
    warning = store_login(login, app.environment) if kept is None or token else ""
    if warning:
        click.echo(f"WARNING: {warning}", err=True)
    echo(str(answer.get("Status") or "Login Succeeded"))


@click.command()
@click.argument("server", metavar="[SERVER]", default="")
@pass_app
def logout(app: App, *, server: str) -> None:
    """Forget the login to a registry (default: Docker Hub)."""
    registry = registry_key(server)
    name = "Docker Hub" if registry == HUB else registry
    known = erase_login(registry, app.environment)
    echo(f"Removing login credentials for {name}" if known else f"Not logged in to {name}")
