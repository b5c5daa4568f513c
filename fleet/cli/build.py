"""``fleet build`` and ``fleet commit``: images of a Dockerfile and its directory, and of a container."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

import click

from fleet import errors
from fleet.builder.ignore import Ignore, parse_ignore
from fleet.cli.app import App, pass_app
from fleet.cli.image import _chunks, _split
from fleet.cli.progress import follow
from fleet.cli.render import echo

_TAR: Final = {"Content-Type": "application/x-tar"}


def _pairs(texts: tuple[str, ...], environment: dict[str, str]) -> str | None:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if equals or key in environment:
            found[key] = value if equals else environment[key]
    return json.dumps(found) if found else None


def _members(root: Path, rules: Ignore, keep: set[str]) -> Iterator[tuple[Path, str]]:
    for directory, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(directory) / name
            relative = str(path.relative_to(root))
            if relative in keep or not rules.excludes(relative):
                yield path, relative


def _pack(root: Path, dockerfile: str, file: BinaryIO) -> None:
    """The context's tar; what ``.dockerignore`` excludes is not sent."""
    if not root.is_dir():
        raise errors.UserError(f"{root}: no such directory; give the build context's directory")
    ignore = root / ".dockerignore"
    rules = parse_ignore(ignore.read_bytes()) if ignore.is_file() else Ignore()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, name in _members(root, rules, {".dockerignore", dockerfile}):
            tar.add(path, name, recursive=False)


@click.command()
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME[:TAG]", help="Name of the image; may be repeated.")
@click.option("-f", "--file", "dockerfile", default="Dockerfile", metavar="PATH", help="Dockerfile in the context.")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME[=VALUE]", help="Value of an ARG.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label of the image.")
@click.option("--target", default="", metavar="STAGE", help="Stop after this stage.")
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@click.option("--pull", is_flag=True, help="Pull base images even if they are here.")
@click.option("--network", default="", metavar="MODE", help="Network of RUN: bridge, host or none.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's ID only.")
@click.argument("path", metavar="DIRECTORY")
@pass_app
def build(
    app: App,
    *,
    tags: tuple[str, ...],
    dockerfile: str,
    build_args: tuple[str, ...],
    labels: tuple[str, ...],
    target: str,
    no_cache: bool,
    pull: bool,
    network: str,
    quiet: bool,
    path: str,
) -> None:
    """Build an image from a Dockerfile and a directory."""
    from urllib.parse import urlencode

    environment = dict(app.environment)
    query = [("dockerfile", os.path.normpath(dockerfile)), *(("t", tag) for tag in tags)]
    query += [("target", target), ("networkmode", network), ("buildargs", _pairs(build_args, environment) or "")]
    query += [("labels", _pairs(labels, environment) or "")]
    query += [(name, "1") for name, on in (("nocache", no_cache), ("pull", pull), ("q", quiet)) if on]
    with tempfile.TemporaryFile() as file:
        _pack(Path(path), os.path.normpath(dockerfile), cast(BinaryIO, file))
        file.seek(0)
        where = f"/build?{urlencode([(k, v) for k, v in query if v])}"
        with app.streaming_client().stream("POST", where, body=_chunks(cast(BinaryIO, file)), headers=_TAR) as chunks:
            follow(chunks)


@click.command()
@click.option("-a", "--author", default="", metavar="TEXT", help="Author.")
@click.option("-m", "--message", default="", metavar="TEXT", help="Message for the image's history.")
@click.option("-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="Such as 'ENV A=1'.")
@click.option("--pause/--no-pause", default=True, help="Pause the container meanwhile.")
@click.argument("container")
@click.argument("reference", metavar="[REPOSITORY[:TAG]]", default="")
@pass_app
def commit(
    app: App, *, author: str, message: str, changes: tuple[str, ...], pause: bool, container: str, reference: str
) -> None:
    """Make an image of a container's files."""
    repository, tag = _split(reference)
    answer = app.client.post(
        "/commit",
        None,
        container=container,
        repo=repository or None,
        tag=tag or None,
        author=author or None,
        comment=message or None,
        changes="\n".join(changes) or None,
        pause="1" if pause else "0",
    )
    echo(str(answer["Id"]))
