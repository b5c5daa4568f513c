"""``fleet image``: images of the host the daemon runs on; other nodes fetch them from it when they need them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlencode

import click

from fleet import errors
from fleet.api.client import EngineClient
from fleet.cli import clock
from fleet.cli.app import App, filters_of, part, pass_app
from fleet.cli.files import write_archive
from fleet.cli.progress import follow
from fleet.cli.render import FORMATS, LIST_FORMATS, each, echo, inspect_each, list_options, print_rows, short_id
from fleet.cli.unpack import unpack

Json = dict[str, Any]

CHUNK: Final = 256 * 1024

COLUMNS: Final = (
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("Size", "SIZE"),
)


class _ImageGroup(click.Group):
    """``build`` is the command ``fleet build``, imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "build"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "build":
            from fleet.cli.build import build

            return build
        return super().get_command(ctx, cmd_name)


@click.group(cls=_ImageGroup)
def image() -> None:
    """Manage images of this host."""


# --- streams ----------------------------------------------------------------------------------------------------------


def _open_input(path: str) -> BinaryIO:
    if path == "-":
        if sys.stdin.isatty():
            raise errors.UserError("standard input is a terminal; pipe an archive into it or name a file")
        return sys.stdin.buffer
    try:
        return Path(path).open("rb")
    except OSError as cause:
        raise errors.UserError(f"cannot read {path}: {cause.strerror or cause}") from cause


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(CHUNK):
        yield data


# --- commands ---------------------------------------------------------------------------------------------------------


@image.command("import")
@click.option(
    "-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="Such as 'CMD [\"sh\"]' or 'ENV A=1'."
)
@click.option("-m", "--message", default="", metavar="TEXT", help="Message for the image's history.")
@click.argument("path", metavar="FILE|-")
@click.argument("reference", metavar="[REPOSITORY[:TAG]]", default="")
@pass_app
def import_(app: App, *, path: str, reference: str, changes: tuple[str, ...], message: str) -> None:
    """Make an image from a tar archive of a root filesystem."""
    repository, tag = _split(reference)
    query: list[tuple[str, str]] = [("fromSrc", "-"), ("repo", repository), ("tag", tag), ("message", message)]
    query += [("changes", change) for change in changes]
    with _open_input(path) as file:
        target = f"/images/create?{urlencode([(k, v) for k, v in query if v])}"
        with app.streaming_client().stream("POST", target, body=_chunks(file), headers=_TAR) as chunks:
            last = follow(chunks, quiet=True)
    echo(str(last.get("status", "")))


_TAR: Final = {"Content-Type": "application/x-tar"}


@image.command()
@click.option("-i", "--input", "path", default="-", metavar="FILE", help="Archive (default: standard input).")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@pass_app
def load(app: App, *, path: str, quiet: bool) -> None:
    """Load images from an archive made by 'image save' or 'docker save', or an OCI layout."""
    with (
        _open_input(path) as file,
        app.streaming_client().stream(
            "POST", "/images/load", query={"quiet": True if quiet else None}, body=_chunks(file), headers=_TAR
        ) as chunks,
    ):
        follow(chunks)


@image.command()
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--platform", metavar="OS/ARCH", help="Platform of a multi-platform image.")
@click.argument("reference", metavar="NAME[:TAG|@DIGEST]")
@pass_app
def pull(app: App, *, reference: str, quiet: bool, platform: str | None) -> None:
    """Pull an image from its registry, or from a node that has it."""
    from fleet.cli.registry_auth import auth_headers

    repository, tag = _split(reference)
    query = {"fromImage": repository, "tag": tag or "latest", "platform": platform}
    headers = auth_headers(reference, app.environment)
    with app.streaming_client().stream("POST", "/images/create", query=query, body=b"", headers=headers) as chunks:
        follow(chunks, quiet=quiet)
    echo(reference if "@" in reference or tag else f"{reference}:latest")


@image.command()
@click.option("-a", "--all-tags", is_flag=True, help="Push all tags of the repository.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.argument("reference", metavar="NAME[:TAG]")
@pass_app
def push(app: App, *, reference: str, all_tags: bool, quiet: bool) -> None:
    """Push an image to the registry its name says."""
    from fleet.cli.registry_auth import auth_headers

    repository, tag = _split(reference)
    if "@" in reference:
        raise click.UsageError("cannot push a digest reference; name the image with a tag")
    if all_tags and tag:
        raise click.UsageError("--all-tags takes a name without a tag")
    headers = auth_headers(reference, app.environment) or {"X-Registry-Auth": "e30="}  # {}: the header has to be there
    query = {"tag": None if all_tags else tag or "latest"}
    target = f"/images/{part(repository)}/push"
    with app.streaming_client().stream("POST", target, query=query, body=b"", headers=headers) as chunks:
        follow(chunks, quiet=quiet)
    if quiet:
        echo(repository if all_tags else f"{repository}:{tag or 'latest'}")


def _split(reference: str) -> tuple[str, str]:
    """Repository and tag or digest."""
    if "@" in reference:
        repository, _, digest = reference.partition("@")
        return repository, digest
    head, separator, last = reference.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{separator}{name}", tag


@image.command()
@list_options
@click.option("-a", "--all", "everything", is_flag=True, help="Untagged images too.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten IDs.")
@pass_app
def ls(app: App, *, filters: tuple[str, ...], fmt: str | None, quiet: bool, everything: bool, no_trunc: bool) -> None:
    """List images."""
    found = app.client.get("/images/json", all=True if everything else None, filters=filters_of(filters)) or []
    rows = [row for item in found for row in _rows(item, full=no_trunc)]
    rows.sort(key=lambda row: (row["Repository"], row["Tag"]))
    if quiet:
        rows = list({row["ID"]: row for row in rows}.values())
    print_rows(rows, columns=COLUMNS, fmt=fmt, quiet=quiet, full=no_trunc)


def _rows(item: Json, *, full: bool) -> Iterator[Json]:
    from datetime import UTC, datetime

    created = item.get("Created") or 0
    made = datetime.fromtimestamp(created, UTC) if created > 0 else None
    for reference in item.get("RepoTags") or ["<none>:<none>"]:
        repository, _, tag = reference.rpartition(":")
        yield {
            "Repository": repository,
            "Tag": tag,
            "ID": item["Id"] if full else short_id(item["Id"]),
            "CreatedSince": clock.ago(made.isoformat()) if made else "N/A",
            "CreatedAt": clock.go_time(made.astimezone()) if made else "N/A",
            "Size": clock.human_size(item.get("Size") or 0),
            "VirtualSize": clock.human_size(item.get("Size") or 0),
            "Containers": str(item["Containers"]) if item.get("Containers", -1) >= 0 else "N/A",
            **_shared(item),
            "Digest": next(iter(item.get("RepoDigests") or ()), "").partition("@")[2] or "<none>",
        }


def _shared(item: Json) -> Json:
    """What it has in common with other images, where the daemon looked: -1 means that it did not."""
    shared = item.get("SharedSize", -1)
    if shared < 0:
        return {"SharedSize": "N/A", "UniqueSize": "N/A"}
    unique = clock.human_size(max(0, (item.get("Size") or 0) - shared))
    return {"SharedSize": clock.human_size(shared), "UniqueSize": unique}


@image.command()
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@pass_app
def inspect(app: App, *, names: tuple[str, ...], fmt: str | None) -> int:
    """Show images in full."""

    def get(client: EngineClient, name: str) -> Any:
        return client.get(f"/images/{part(name)}/json")

    return inspect_each(app.client, names, get, fmt=fmt)


@image.command()
@click.option(
    "-f", "--force", is_flag=True, help="Remove it even if it has several names or stopped containers use it."
)
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@pass_app
def rm(app: App, *, names: tuple[str, ...], force: bool) -> int:
    """Remove images."""

    def remove(name: str) -> None:
        for entry in app.client.delete(f"/images/{part(name)}", **({"force": "1"} if force else {})) or ():
            for verb, what in entry.items():
                echo(f"{verb}: {what}")

    return each(names, remove, quiet=True)


@image.command()
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="REPOSITORY[:TAG]")
@pass_app
def tag(app: App, *, source: str, target: str) -> None:
    """Give an image another name."""
    repository, name = _split(target)
    app.client.post(f"/images/{part(source)}/tag", repo=repository, tag=name or "latest")


@image.command()
@click.option("--no-trunc", is_flag=True, help="Do not shorten output.")
@click.option("--format", "fmt", metavar="FORMAT", help=LIST_FORMATS)
@click.option("-q", "--quiet", is_flag=True, help="Only display image IDs.")
@click.argument("name", metavar="IMAGE")
@pass_app
def history(app: App, *, name: str, no_trunc: bool, fmt: str | None, quiet: bool) -> None:
    """Show how an image was made, newest step first."""
    from datetime import UTC, datetime

    rows = []
    for item in app.client.get(f"/images/{part(name)}/history") or []:
        command = " ".join(str(item.get("CreatedBy") or "").split())
        created = item.get("Created") or 0
        rows.append(
            {
                "ID": short_id(item.get("Id") or "<missing>", full=no_trunc),
                "CreatedSince": clock.ago(datetime.fromtimestamp(created, UTC).isoformat()) if created > 0 else "N/A",
                "CreatedBy": command if no_trunc or len(command) <= 45 else f"{command[:44]}…",
                "Size": clock.human_size(item.get("Size") or 0),
                "Comment": item.get("Comment") or "",
            }
        )
    columns = (
        ("ID", "IMAGE"), ("CreatedSince", "CREATED"), ("CreatedBy", "CREATED BY"), ("Size", "SIZE"), ("Comment", "COMMENT"),
    )  # fmt: skip
    print_rows(rows, columns=columns, fmt=fmt, quiet=quiet, full=no_trunc)


@image.command()
@click.option("-o", "--output", "path", metavar="FILE", help="File to write (default: standard output).")
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@pass_app
def save(app: App, *, names: tuple[str, ...], path: str | None) -> None:
    """Write images to an archive that 'image load' reads."""
    refuse_terminal(path)
    target = f"/images/get?{urlencode([('names', name) for name in names])}"
    with app.streaming_client().stream("GET", target) as chunks:
        write_archive(path, chunks)


def refuse_terminal(path: str | None) -> None:
    """Before anything is asked of the daemon: an archive for standard output that is a terminal is a mistake."""
    if path is None and sys.stdout.isatty():
        raise click.UsageError("an archive is not written to a terminal; use -o FILE or redirect the output")


@image.command()
@click.option(
    "-a", "--all", "everything", is_flag=True, help="All images that no container uses, not only untagged ones."
)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def prune(app: App, *, everything: bool, force: bool) -> None:
    """Remove images that nothing uses."""
    if not force:
        click.confirm("This removes images that no container uses. Continue?", abort=True, err=True)
    answer = app.client.post("/images/prune", filters={"dangling": ["false" if everything else "true"]}) or {}
    for entry in answer.get("ImagesDeleted") or ():
        for verb, what in entry.items():
            echo(f"{verb}: {what}")
    echo(f"Total reclaimed space: {clock.human_size(answer.get('SpaceReclaimed') or 0)}")


image.add_command(unpack)
