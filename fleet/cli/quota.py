"""``fleet quota``: how much stacks and labels may take together, and what is used of it. ``fleet swarm update`` sets them."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet.cli import clock
from fleet.cli.app import App, pass_app
from fleet.cli.render import print_rows

__all__ = ["quota"]

Json = dict[str, Any]

_COLUMNS: Final = (
    ("Name", "QUOTA"),
    ("Tasks", "TASKS"),
    ("CPUs", "CPUS"),
    ("Memory", "MEMORY"),
    ("Services", "SERVICES"),
    ("Waiting", "WAITING"),
)


@click.group()
def quota() -> None:
    """Quotas: how much the tasks of a stack, or of services with one label, may take together.

    Set them with 'fleet swarm update --quota', take them away with --quota-rm.
    """


@quota.command()
@click.option("--format", "fmt", metavar="FORMAT", help="'table', 'json' or a Go template for each quota.")
@click.option("-q", "--quiet", is_flag=True, help="Only names, as --quota-rm takes them.")
@pass_app
def ls(app: App, *, fmt: str | None, quiet: bool) -> None:
    """List quotas: what is used of each limit, how many services it covers, and how many tasks wait because of it."""
    rows = [_row(each) for each in app.client.get("/fleet/v1/quotas") or []]
    print_rows(rows, columns=_COLUMNS, fmt=fmt, quiet=quiet, quiet_field="Name")


def _row(report: Json) -> Json:
    used, limits = report["Used"], report["Limits"]
    return {
        "Name": report["Name"],
        "Tasks": _share(used["Tasks"], limits["Tasks"], str),
        "CPUs": _share(used["NanoCPUs"], limits["NanoCPUs"], lambda nano: f"{nano / 1e9:g}"),
        "Memory": _share(used["MemoryBytes"], limits["MemoryBytes"], clock.memory_size),
        "Services": report["Services"],
        "Waiting": report["Waiting"],
        "Used": used,
        "Limits": limits,
    }


def _share(used: int, limit: int | None, show: Any) -> str:
    """``3/50``; a dash without a limit."""
    return "-" if limit is None else f"{show(used)}/{show(limit)}"
