"""``fleet volume``: volumes of the host the daemon runs on."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet.api.client import EngineClient
from fleet.cli.app import App, filters_of, part, pass_app
from fleet.cli.clock import human_size
from fleet.cli.render import FORMATS, each, echo, inspect_each, list_options, print_rows
from fleet.cli.service_flags import Parsed
from fleet.compose import values

COLUMNS: Final = (("Driver", "DRIVER"), ("Name", "VOLUME NAME"))
PAIR: Final = Parsed(lambda text: values.parse_pair(text, what="NAME=VALUE"), name="NAME=VALUE")


@click.group()
def volume() -> None:
    """Manage volumes of this host."""


@volume.command()
@click.option("-d", "--driver", default="local", metavar="DRIVER", help="Driver (default local).")
@click.option("--label", "labels", type=PAIR, multiple=True, metavar="NAME=VALUE", help="Label.")
@click.option("-o", "--opt", "options", type=PAIR, multiple=True, metavar="NAME=VALUE", help="Option of the driver.")
@click.argument("name", metavar="[VOLUME]", default="")
@pass_app
def create(app: App, *, name: str, driver: str, labels: Any, options: Any) -> None:
    """Create a volume."""
    body = {"Name": name, "Driver": driver, "DriverOpts": dict(options), "Labels": dict(labels)}
    echo(app.client.post("/volumes/create", body)["Name"])


@volume.command()
@list_options
@pass_app
def ls(app: App, *, filters: tuple[str, ...], fmt: str | None, quiet: bool) -> None:
    """List volumes."""
    found = (app.client.get("/volumes", filters=filters_of(filters)) or {}).get("Volumes") or []
    rows = [
        {
            "Name": item["Name"],
            "Driver": item.get("Driver", ""),
            "Mountpoint": item.get("Mountpoint", ""),
            "Scope": item.get("Scope", ""),
            **dict.fromkeys(
                ("Availability", "Group", "Links", "Size", "Status"), "N/A"
            ),  # as docker: not asked for here
            "Labels": ",".join(f"{k}={v}" for k, v in sorted((item.get("Labels") or {}).items())),
        }
        for item in sorted(found, key=lambda item: str(item["Name"]))
    ]
    print_rows(rows, columns=COLUMNS, fmt=fmt, quiet=quiet, quiet_field="Name")


@volume.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@click.argument("names", metavar="VOLUME...", nargs=-1, required=True)
@pass_app
def inspect(app: App, *, names: tuple[str, ...], fmt: str | None) -> int:
    """Show volumes in full."""

    def get(client: EngineClient, name: str) -> Any:
        return client.get(f"/volumes/{part(name)}")

    return inspect_each(app.client, names, get, fmt=fmt)


@volume.command()
@click.option("-f", "--force", is_flag=True, help="Do not fail when there is no such volume.")
@click.argument("names", metavar="VOLUME...", nargs=-1, required=True)
@pass_app
def rm(app: App, *, names: tuple[str, ...], force: bool) -> int:
    """Remove volumes."""
    query = {"force": "1"} if force else {}
    return each(names, lambda name: app.client.delete(f"/volumes/{part(name)}", **query))


@volume.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Named volumes too, not only anonymous ones.")
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Such as label=a.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def prune(app: App, *, everything: bool, filters: tuple[str, ...], force: bool) -> None:
    """Remove volumes that no container uses."""
    if not force:
        click.confirm("This removes volumes that no container uses. Continue?", abort=True, err=True)
    chosen = {**(filters_of(filters) or {}), **({"all": ["true"]} if everything else {})}
    answer = app.client.post("/volumes/prune", **({"filters": chosen} if chosen else {})) or {}
    for name in answer.get("VolumesDeleted") or ():
        echo(name)
    echo(f"Total reclaimed space: {human_size(answer.get('SpaceReclaimed') or 0)}")
