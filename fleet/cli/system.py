"""``fleet info``, ``version``, ``events``, ``system`` and ``daemon``."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from fleet import errors
from fleet.api.client import API_VERSION
from fleet.cli import clock
from fleet.cli.app import App, filters_of, pass_app
from fleet.cli.events import events
from fleet.cli.render import FORMATS, LIST_FORMATS, echo, formatter, print_rows, short_id

Json = dict[str, Any]


@click.group()
def system() -> None:
    """Look at the daemon of this host."""


system.add_command(events)


def _format(fmt: str | None, value: Json) -> bool:
    """Print ``value`` by a format; False when there is none."""
    if not fmt:
        return False
    echo(formatter(fmt)(value).removeprefix("---\n"))
    return True


@system.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@pass_app
def info(app: App, *, fmt: str | None) -> None:
    """Show this host and its swarm."""
    found = app.info()
    if _format(fmt, found):
        return
    from fleet.cli.pretty import info_text

    echo(info_text(found))


@system.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@pass_app
def version(app: App, *, fmt: str | None) -> None:
    """Show versions of the command and the daemon."""
    from importlib import metadata
    from platform import python_version

    client = {"Version": metadata.version("fleet"), "ApiVersion": API_VERSION, "PythonVersion": python_version()}
    try:
        server: Json | None = app.client.get("/version")
    except errors.UnavailableError as cause:
        if not _format(fmt, {"Client": client, "Server": None}):
            echo(_version_text("Client", client))
        raise errors.UnavailableError(str(cause)) from cause
    if not _format(fmt, {"Client": client, "Server": server}):
        echo(f"{_version_text('Client', client)}\n\n{_version_text('Server', server or {})}")


def _version_text(title: str, found: Json) -> str:
    names = (
        ("Version", "Version"), ("ApiVersion", "API version"), ("MinAPIVersion", "Lowest API version"),
        ("PythonVersion", "Python version"), ("GitCommit", "Git commit"), ("KernelVersion", "Kernel"),
        ("Os", "OS"), ("Arch", "Architecture"),
    )  # fmt: skip
    lines = [f" {label + ':':20}{found[key]}" for key, label in names if found.get(key)]
    return "\n".join([f"{title}:", *lines])


@system.command()
@click.option("-v", "--verbose", is_flag=True, help="Each image, container and volume.")
@click.option("--format", "fmt", metavar="FORMAT", help=LIST_FORMATS)
@pass_app
def df(app: App, *, verbose: bool, fmt: str | None) -> None:
    """Show how much room images, containers and volumes take."""
    found = app.client.get("/system/df") or {}
    if verbose:
        _df_verbose(found)
        return
    images, containers = found.get("Images") or [], found.get("Containers") or []
    volumes = found.get("Volumes") or []
    sizes = [
        ("Images", len(images), sum(item.get("Containers", 0) > 0 for item in images), found.get("LayersSize") or 0)
    ]
    sizes += [
        (
            "Containers",
            len(containers),
            sum(item.get("State") == "running" for item in containers),
            sum(item.get("SizeRw") or 0 for item in containers),
        ),
        (
            "Local Volumes",
            len(volumes),
            sum((item.get("UsageData") or {}).get("RefCount", 0) > 0 for item in volumes),
            sum(max(0, (item.get("UsageData") or {}).get("Size", 0)) for item in volumes),
        ),
    ]
    rows = [
        {"Type": kind, "Total": str(total), "Active": str(active), "Size": clock.human_size(size)}
        for kind, total, active, size in sizes
    ]
    columns = (("Type", "TYPE"), ("Total", "TOTAL"), ("Active", "ACTIVE"), ("Size", "SIZE"))
    print_rows(rows, columns=columns, fmt=fmt)


def _df_verbose(found: Json) -> None:
    echo("Images space usage:\n")
    rows = [
        {
            "Image": ", ".join(item.get("RepoTags") or ("<none>",)),
            "ID": short_id(item["Id"]),
            "Size": clock.human_size(item.get("Size") or 0),
            "Shared": clock.human_size(max(0, item.get("SharedSize") or 0)),
            "Containers": max(0, item.get("Containers") or 0),
        }
        for item in found.get("Images") or ()
    ]
    columns = (("Image", "IMAGE"), ("ID", "IMAGE ID"), ("Size", "SIZE"), ("Shared", "SHARED SIZE"))
    print_rows(rows, columns=(*columns, ("Containers", "CONTAINERS")))
    echo("\nContainers space usage:\n")
    rows = [
        {
            "ID": short_id(item["Id"]),
            "Image": item.get("Image", ""),
            "Size": clock.human_size(item.get("SizeRw") or 0),
            "Status": item.get("Status", ""),
            "Names": ",".join(name.lstrip("/") for name in item.get("Names") or ()),
        }
        for item in found.get("Containers") or ()
    ]
    columns = (("ID", "CONTAINER ID"), ("Image", "IMAGE"), ("Size", "SIZE"), ("Status", "STATUS"))
    print_rows(rows, columns=(*columns, ("Names", "NAMES")))
    echo("\nLocal Volumes space usage:\n")
    rows = [
        {
            "Name": item["Name"],
            "Links": max(0, (item.get("UsageData") or {}).get("RefCount", 0)),
            "Size": clock.human_size(max(0, (item.get("UsageData") or {}).get("Size", 0))),
        }
        for item in found.get("Volumes") or ()
    ]
    print_rows(rows, columns=(("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")))


@system.command()
@click.option("-a", "--all", "everything", is_flag=True, help="All images no container uses, not only untagged ones.")
@click.option("--volumes", is_flag=True, help="Anonymous volumes too.")
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Such as until=24h or label=a.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def prune(app: App, *, everything: bool, volumes: bool, filters: tuple[str, ...], force: bool) -> None:
    """Remove stopped containers and unused networks and images."""
    if not force:
        also = ", anonymous volumes" if volumes else ""
        images = "images" if everything else "untagged images"
        click.confirm(
            f"This removes stopped containers, unused networks{also} and unused {images}. Continue?",
            abort=True,
            err=True,
        )
    chosen = filters_of(filters) or {}
    plan: list[tuple[str, str, Json]] = [
        ("containers", "ContainersDeleted", chosen), ("networks", "NetworksDeleted", chosen),
    ]  # fmt: skip
    if volumes:
        plan.append(("volumes", "VolumesDeleted", {key: value for key, value in chosen.items() if key != "until"}))
    plan.append(("images", "ImagesDeleted", {**chosen, "dangling": ["false" if everything else "true"]}))
    reclaimed = 0
    for noun, key, wanted in plan:
        answer = app.client.post(f"/{noun}/prune", **({"filters": wanted} if wanted else {})) or {}
        deleted = answer.get(key) or ()
        if deleted:
            echo(f"Deleted {noun}:")
        for item in deleted:
            for line in [f"{verb}: {what}" for verb, what in item.items()] if isinstance(item, dict) else [item]:
                echo(str(line))
        reclaimed += answer.get("SpaceReclaimed") or 0
    echo(f"Total reclaimed space: {clock.human_size(reclaimed)}")


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def daemon(*, arguments: tuple[str, ...]) -> None:
    """Run the fleet daemon in the foreground (same as: fleetd)."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "fleet.daemon.main", *arguments])  # noqa: S606 - becomes the daemon
