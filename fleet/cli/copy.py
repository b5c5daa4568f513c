"""``fleet cp`` and ``fleet export``: files between a container and this machine, as tar archives.

An archive from a container is foreign: it is unpacked with tarfile's ``data`` filter, which keeps every name and link
inside the target, and only after the first component was renamed as docker's rules of ``cp`` say.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import os
import stat
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlencode

import click

from fleet import errors
from fleet.api.client import EngineError
from fleet.cli.app import App, part, pass_app

__all__ = ["cp", "export", "split_copy"]

_CHUNK: Final = 256 * 1024
_IN_MEMORY: Final = 16 * 1024 * 1024
_GO_DIR: Final = 1 << 31
_GO_LINK: Final = 1 << 27


def split_copy(text: str) -> tuple[str, str]:
    """``CONTAINER:PATH`` -> both; a path of this machine has the container ``""``."""
    if text.startswith("/") or ":" not in text:
        return "", text
    name, _, path = text.partition(":")
    return ("", text) if name.startswith(".") else (name, path)


@dataclasses.dataclass(frozen=True)
class _Place:
    path: str
    exists: bool
    is_dir: bool


def _clean(path: str) -> str:
    return os.path.normpath(path)


def _asserts_dir(path: str) -> bool:
    return path.endswith("/") or path.rsplit("/", 1)[-1] in (".", "..")


def _target(place: _Place, *, source_name: str, source_is_dir: bool, given: str) -> tuple[str, str]:
    """(directory to unpack in, new first component; "" keeps the names). Docker's ``PrepareArchiveCopy``."""
    if place.exists and place.is_dir:
        return place.path, ""
    parent, base = os.path.split(_clean(place.path))
    if place.exists and source_is_dir:
        raise errors.UserError("cannot copy directory")
    if not place.exists and not source_is_dir and _asserts_dir(given):
        raise errors.NotFoundError(f"no such directory: {given}")
    return parent or ".", base if base != source_name else ""


class _Body:
    """Reads an iterator of chunks as a file, for tarfile."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            piece = next(self._chunks, b"")
            if not piece:
                break
            self._rest += piece
        size = len(self._rest) if size < 0 else size
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _stat(app: App, name: str, path: str) -> dict[str, Any] | None:
    """What ``HEAD .../archive`` says of a path, None when there is nothing."""
    client = app.streaming_client()
    connection = client._connect()
    try:
        connection.request("HEAD", f"/containers/{part(name)}/archive?{urlencode({'path': path})}")
        answer = connection.getresponse()
        header = answer.getheader("X-Docker-Container-Path-Stat")
        answer.read()
    except OSError as cause:
        raise errors.UnavailableError(
            f"cannot reach the fleet daemon at {app.host}: {cause}; is fleetd running?"
        ) from cause
    finally:
        connection.close()
    if answer.status == 404:
        app.client.get(f"/containers/{part(name)}/json")  # a missing container is told apart from a missing path
        return None
    if answer.status >= 400 or not header:
        raise EngineError(f"cannot look at {name}:{path}: HTTP {answer.status}", status=answer.status)
    found: dict[str, Any] = json.loads(base64.b64decode(header + "=" * (-len(header) % 4)))
    return found


def _linked(app: App, name: str, path: str, found: dict[str, Any] | None) -> tuple[str, dict[str, Any] | None]:
    """Follow a symbolic link once, as docker does: its target is read in the container."""
    if found and int(found.get("mode") or 0) & _GO_LINK and found.get("linkTarget"):
        target = str(found["linkTarget"])
        path = target if target.startswith("/") else f"{path.rstrip('/').rpartition('/')[0]}/{target}"
        return path, _stat(app, name, path)
    return path, found


def _renamed(name: str, old: str, new: str) -> str:
    first, separator, rest = name.removeprefix("./").partition("/")
    return f"{new}{separator}{rest}" if new and first == old else name


def _from_container(app: App, name: str, path: str, target: str, *, archive: bool, follow: bool) -> int:
    path = path if path.startswith("/") else f"/{path}"
    found = _stat(app, name, path)
    if follow:
        path, found = _linked(app, name, path, found)
    if found is None:
        raise errors.NotFoundError(f"Could not find the file {path} in container {name}")
    query = {"path": path}
    with app.streaming_client().stream("GET", f"/containers/{part(name)}/archive", query=query) as chunks:
        if target == "-":
            if sys.stdout.isatty():
                raise errors.UserError("refusing to copy to a terminal; redirect the output")
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return 0
        source_is_dir = bool(int(found.get("mode") or 0) & _GO_DIR)
        source_name = _clean(path).rpartition("/")[2]
        place = _Place(target, Path(target).exists(), Path(target).is_dir())
        folder, new = _target(place, source_name=source_name, source_is_dir=source_is_dir, given=target)
        if not Path(folder).is_dir():
            raise errors.NotFoundError(f"invalid output path: directory {folder!r} does not exist")
        return _unpack(chunks, folder, old=source_name, new=new, archive=archive)


def _unpack(chunks: Iterator[bytes], folder: str, *, old: str, new: str, archive: bool) -> int:
    size = 0

    def keep(member: tarfile.TarInfo, where: str) -> tarfile.TarInfo:
        owner = (member.uid, member.gid)
        member = copy.copy(member)
        member.name = _renamed(member.name, old, new)
        if member.islnk():
            member.linkname = _renamed(member.linkname, old, new)
        safe = copy.copy(_checked(member, where))
        if archive and os.geteuid() == 0:
            safe.uid, safe.gid, safe.uname, safe.gname = *owner, "", ""
        return safe

    stream: Any = _Body(chunks)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                size += member.size
                if hasattr(tarfile, "data_filter"):
                    tar.extract(member, folder, filter=keep)
                else:
                    tar.extract(keep(member, folder), folder)
    except (tarfile.TarError, OSError) as cause:
        raise errors.RuntimeFault(f"cannot unpack into {folder}: {cause}") from cause
    return size


def _checked(member: tarfile.TarInfo, where: str) -> tarfile.TarInfo:
    """As tarfile's data filter has it, which Python has from 3.11.4 on, and Debian 12's (3.11.2) has not."""
    if hasattr(tarfile, "data_filter"):
        return tarfile.data_filter(member, where)
    member = copy.copy(member)
    member.name = member.name.lstrip("/")
    base = os.path.realpath(where)
    targets = [member.name]
    if member.issym():
        targets.append(str(Path(member.name).parent / member.linkname))
    elif member.islnk():
        targets.append(member.linkname)
    for target in targets:  # an absolute one leaves the base behind in the join
        if os.path.commonpath([os.path.realpath(Path(base) / target), base]) != base:
            raise tarfile.ExtractError(f"{member.name!r} leads out of the destination")
    if member.isdev():
        raise tarfile.ExtractError(f"{member.name!r} is a device or a pipe")
    member.mode = member.mode & 0o755 | (0o700 if member.isdir() else 0o600)
    if member.isreg() and not member.mode & 0o100:
        member.mode &= ~0o111
    member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
    return member


def _to_container(app: App, name: str, source: str, path: str, *, archive: bool, follow: bool) -> int:
    path = path if path.startswith("/") else f"/{path}"
    given = path
    path, found = _linked(app, name, path, _stat(app, name, path))
    is_dir = bool(found and int(found.get("mode") or 0) & _GO_DIR)
    place = _Place(path, found is not None, is_dir)
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
        if source == "-":
            if not is_dir:
                raise errors.UserError(f'destination "{name}:{given}" must be a directory')
            _put(app, name, path, _chunks(sys.stdin.buffer), archive=archive)
            return 0
        origin = Path(source)
        if follow:
            origin = origin.resolve()
        if not os.path.lexists(origin):
            raise errors.NotFoundError(f"lstat {source}: no such file or directory")
        contents = source.endswith("/.") or source == "."
        real_is_dir = origin.is_dir() and (not origin.is_symlink() or source.endswith("/"))
        if _asserts_dir(source) and not real_is_dir:
            raise errors.UserError(f"{source}: not a directory")
        name_inside = Path(os.path.abspath(source)).name  # noqa: PTH100 - a link keeps its own name
        folder, new = _target(place, source_name=name_inside, source_is_dir=real_is_dir, given=given)
        inside = new or ("." if contents and place.exists else name_inside)
        with tarfile.open(fileobj=file, mode="w|", dereference=False) as tar:
            tar.add(origin.resolve() if real_is_dir else origin, arcname=inside, filter=_plain)
        size = file.tell()
        file.seek(0)
        _put(app, name, folder, _chunks(file), archive=archive)
        return size


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Sockets cannot travel in an archive."""
    return None if member.type not in tarfile.SUPPORTED_TYPES or stat.S_ISSOCK(member.mode) else member


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        yield data


def _put(app: App, name: str, folder: str, body: Iterable[bytes], *, archive: bool) -> None:
    query = {"path": folder, "noOverwriteDirNonDir": "true", **({"copyUIDGID": "true"} if archive else {})}
    with app.streaming_client() as client:
        client.request("PUT", f"/containers/{part(name)}/archive", query=query, body=body)


@click.command()
@click.option("-a", "--archive", is_flag=True, help="Keep owners.")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Follow a symbolic link in the source.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
@click.argument("source", metavar="CONTAINER:PATH|PATH|-")
@click.argument("target", metavar="CONTAINER:PATH|PATH|-")
@pass_app
def cp(app: App, *, source: str, target: str, archive: bool, follow: bool, quiet: bool) -> None:
    """Copy files between a container and this machine; '-' is a tar archive of standard input or output."""
    (from_name, from_path), (to_name, to_path) = split_copy(source), split_copy(target)
    if bool(from_name) == bool(to_name):
        why = (
            "copying between containers is not supported" if from_name else "must specify at least one container source"
        )
        raise errors.UserError(why)
    if from_name:
        size = _from_container(app, from_name, from_path, to_path, archive=archive, follow=follow)
    else:
        size = _to_container(app, to_name, from_path, to_path, archive=archive, follow=follow)
    if not quiet and "-" not in (source, target):
        from fleet.cli.clock import human_size

        click.echo(f"Successfully copied {human_size(size)} to {target}", err=True)


@click.command()
@click.option("-o", "--output", "path", metavar="FILE", help="File to write (default: standard output).")
@click.argument("name", metavar="CONTAINER")
@pass_app
def export(app: App, *, name: str, path: str | None) -> None:
    """Write a container's file system as a tar archive."""
    from fleet.cli.files import write_archive
    from fleet.cli.image import refuse_terminal

    refuse_terminal(path)
    with app.streaming_client().stream("GET", f"/containers/{part(name)}/export") as chunks:
        write_archive(path, chunks)
