"""``fleet image unpack``: an image's root file system in a plain directory, without a daemon.

The image goes through an image store of its own beside the directory, so digests, limits and links are checked by the
code that runs images; the layers are then moved into one tree, which takes the directory's name when it is whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fleet.cli.render import echo
from fleet.errors import FleetError, UserError

if TYPE_CHECKING:
    from fleet.images import Platform

CHUNK: Final = 1 << 20
LIST_BYTES_MAX: Final = 4 << 20
"""Bytes of a layout's index.json."""
BLOBS_MAX: Final = 19_000
"""Files of a layout folder; an archive's limit on members is a little higher."""
_TAG: Final = "org.opencontainers.image.ref.name"


@click.command()
@click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="Platform of a multi-platform image (default: this host)."
)
@click.option("--tag", metavar="TAG", help="Which image of a layout folder that holds several.")
@click.argument("layout", metavar="LAYOUT")
@click.argument("directory", metavar="DIR")
def unpack(*, layout: str, directory: str, platform: str | None, tag: str | None) -> None:
    """Unpack an image's root filesystem into a new or empty directory.

    LAYOUT is an OCI layout (a folder or a tar archive) or an archive made by 'docker save'. No daemon is needed, but
    root is.
    """
    echo(unpack_image(Path(layout), Path(directory), platform=_platform(platform), tag=tag))


def _platform(text: str | None) -> Platform | None:
    if text is None:
        return None
    from fleet.images.manifest import parse_platform  # here and below: the other image commands start without it

    return parse_platform(text)


def unpack_image(layout: Path, directory: Path, *, platform: Platform | None = None, tag: str | None = None) -> str:
    """Unpack; the image's id. All of it or, on error, nothing. Raises ``UserError`` saying what is wrong."""
    if os.geteuid() != 0:
        raise UserError("unpacking gives files the owners the image names, which only root may do; run it as root")
    target = Path(os.path.realpath(directory))
    _check_target(target, directory)
    if not layout.exists():
        raise UserError(f"{layout}: no such file or directory")
    if tag is not None and not layout.is_dir():
        raise UserError(f"{layout}: --tag chooses an image of a layout folder, and this is an archive")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.unpack-", dir=target.parent))
    except OSError as cause:
        raise UserError(f"cannot write beside {directory}: {cause.strerror or cause}") from cause
    try:
        image_id = asyncio.run(_load_and_flatten(layout, scratch, platform, tag))
        try:
            (scratch / "rootfs").rename(target)
        except OSError as cause:
            raise UserError(f"cannot put the image at {directory}: {cause.strerror or cause}") from cause
    finally:
        _remove(scratch)
    return image_id


def _remove(scratch: Path) -> None:
    from fleet.images.beneath import remove_tree

    parent = os.open(scratch.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(parent, os.fsencode(scratch.name))
    finally:
        os.close(parent)


def _check_target(target: Path, shown: Path) -> None:
    try:
        if any(target.iterdir()):
            raise UserError(f"{shown} is not empty; name a new or empty directory")
        if target.is_mount():
            raise UserError(f"{shown} is a mount point; name a directory inside it")
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise UserError(f"{shown}: the directory above it does not exist") from None
    except NotADirectoryError:
        raise UserError(f"{shown} is not a directory") from None


async def _load_and_flatten(layout: Path, scratch: Path, platform: Platform | None, tag: str | None) -> str:
    from fleet.images import ImageStore
    from fleet.images.layers import flatten_layers

    rootfs = scratch / "rootfs"
    rootfs.mkdir(mode=0o755)
    store = await ImageStore.open(scratch / "images", platform=platform)
    try:
        pieces = _pieces(layout, tag)
        try:
            images = await store.load(_stream(pieces))
        except FleetError as cause:
            raise type(cause)(f"{layout}: {str(cause).removeprefix('load: ')}") from cause
        if len(images) != 1:
            names = ", ".join(name for image in images for name in image.references)[:500] or "unnamed"
            raise UserError(f"{layout} holds {len(images)} images ({names}); give a layout or archive with one")
        (image,) = images
        made_for = image.config.platform
        if platform is not None and (made_for.os, made_for.architecture) != (platform.os, platform.architecture):
            raise UserError(f"{layout} holds an image for {made_for}, not for {platform}")
        await asyncio.to_thread(flatten_layers, image.layer_dirs, rootfs)
        return image.id
    finally:
        await store.close()


async def _stream(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _pieces(layout: Path, tag: str | None) -> Iterator[bytes]:
    return _folder(layout, tag) if layout.is_dir() else _file(layout)


def _file(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is neither a folder nor a regular file")
            while data := file.read(CHUNK):
                yield data
    except OSError as cause:
        raise UserError(f"cannot read {path}: {cause.strerror or cause}") from cause


def _folder(layout: Path, tag: str | None) -> Iterator[bytes]:
    """A layout folder as the tar archive ``ImageStore.load`` reads."""
    for name in ("oci-layout", "index.json"):
        if not (layout / name).is_file():
            raise UserError(f"not an OCI layout: the folder has no {name}")
    yield from _member("oci-layout", _small(layout / "oci-layout"))
    yield from _member("index.json", _chosen(_small(layout / "index.json"), tag))
    blobs = sorted((layout / "blobs" / "sha256").glob("*"))
    if len(blobs) > BLOBS_MAX:
        raise UserError(f"the layout has more than {BLOBS_MAX} blobs")
    for path in blobs:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as cause:
            raise UserError(f"cannot read blob {path.name}: {cause.strerror or cause}") from cause
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"blob {path.name} is not a regular file")
            yield _header(f"blobs/sha256/{path.name}", status.st_size)
            left = status.st_size
            while left and (data := file.read(min(CHUNK, left))):
                left -= len(data)
                yield data
            if left:
                raise UserError(f"blob {path.name} became shorter while it was read")
            yield bytes(-status.st_size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _small(path: Path) -> bytes:
    with path.open("rb") as file:
        body = file.read(LIST_BYTES_MAX + 1)
    if len(body) > LIST_BYTES_MAX:
        raise UserError(f"{path.name} is larger than {LIST_BYTES_MAX} bytes")
    return body


def _chosen(body: bytes, tag: str | None) -> bytes:
    """The index with the one image that ``tag`` names; a layout with one tag needs none."""
    try:
        index: Any = json.loads(body)
        listed = {str((item.get("annotations") or {}).get(_TAG, "")): item for item in index["manifests"]}
        if tag is None and len(listed) > 1:
            raise UserError(f"the layout has several images; choose one by --tag: {', '.join(sorted(listed))[:500]}")
        if tag is None:
            return body
        index["manifests"] = [item for item in index["manifests"] if (item.get("annotations") or {}).get(_TAG) == tag]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise UserError("index.json is not the index of an OCI layout") from cause
    if not index["manifests"]:
        raise UserError(f"the layout has no image tagged {tag!r}; it has {', '.join(sorted(listed))[:500] or 'none'}")
    return json.dumps(index).encode()


def _member(name: str, body: bytes) -> Iterator[bytes]:
    yield _header(name, len(body))
    yield body
    yield bytes(-len(body) % tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(format=tarfile.PAX_FORMAT)
