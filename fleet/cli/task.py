"""``fleet task``."""

from __future__ import annotations

from typing import Any

import click

from fleet.api.client import EngineClient
from fleet.cli.app import App, filters_of, part, pass_app
from fleet.cli.render import FORMATS, inspect_each
from fleet.cli.task_move import move
from fleet.cli.tasks import print_tasks, task_options


@click.group()
def task() -> None:
    """Look at tasks, and move them with their data."""


@task.command()
@task_options
@pass_app
def ls(app: App, *, filters: tuple[str, ...], fmt: str | None, quiet: bool, no_trunc: bool, no_resolve: bool) -> None:
    """List all tasks of the swarm."""
    tasks = app.client.get("/tasks", filters=filters_of(filters)) or []
    print_tasks(app.client, tasks, fmt=fmt, quiet=quiet, no_trunc=no_trunc, no_resolve=no_resolve)


@task.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@click.argument("names", metavar="TASK...", nargs=-1, required=True)
@pass_app
def inspect(app: App, *, names: tuple[str, ...], fmt: str | None) -> int:
    """Show tasks in full."""

    def get(client: EngineClient, name: str) -> Any:
        return client.get(f"/tasks/{part(name)}")

    return inspect_each(app.client, names, get, fmt=fmt)


task.add_command(move)
