"""A context as a tar archive, in Docker's form: ``meta.json`` and ``tls/docker/*.pem``.

An archive comes from outside: nothing of it is unpacked by name. Its members are looked up in a fixed list, read with a bound,
and only then kept in the store under names that fleet chooses.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Final

from fleet import errors
from fleet.cli.context_store import META_MAX, TLS_NAMES, Context, check_host, meta_of, parse_meta

__all__ = ["ARCHIVE_MAX", "PEM_MAX", "pack", "unpack"]

PEM_MAX: Final = 1024 * 1024
ARCHIVE_MAX: Final = 4 * 1024 * 1024
"""Three files of ``PEM_MAX`` and the rest."""
_MEMBERS_MAX: Final = 32
_FOLDERS: Final = ("tls", "tls/docker")
_FILES: Final[Mapping[str, int]] = {"meta.json": META_MAX, **{f"tls/docker/{name}.pem": PEM_MAX for name in TLS_NAMES}}


def pack(context: Context, tls: Mapping[str, bytes]) -> bytes:
    """The archive of a context and its PEM texts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, "meta.json", json.dumps(meta_of(context)).encode(), mode=0o644)
        for folder in _FOLDERS if tls else _FOLDERS[:1]:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(entry)
        for name, text in tls.items():
            _add(archive, f"tls/docker/{name}.pem", text, mode=0o600)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, *, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def unpack(data: bytes, *, name: str, where: str) -> tuple[Context, dict[str, bytes]]:
    """The context in an archive, to be called ``name``, and its PEM texts. Raises ``UserError`` for anything else."""
    try:
        files = _members(data, where=where)
    except (tarfile.TarError, ValueError, OverflowError, OSError, EOFError) as cause:
        raise errors.UserError(f"{where} is no tar archive of a context: {cause}") from cause
    if "meta.json" not in files:
        raise errors.UserError(f"{where} holds no meta.json, so it is no exported context")
    host, skip, metadata = parse_meta(files.pop("meta.json"), where=f"meta.json in {where}")
    description = metadata.get("Description", "")
    if not isinstance(description, str) or not description.replace("\n", "").isprintable():
        raise errors.UserError(f"meta.json in {where}: its description is not printable text")
    tls = {member.removeprefix("tls/docker/").removesuffix(".pem"): text for member, text in files.items()}
    return Context(name=name, host=check_host(host), skip_tls_verify=skip, metadata=metadata), tls


def _members(data: bytes, *, where: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    padded = data + bytes(-len(data) % tarfile.BLOCKSIZE)  # Docker's export leaves the end of the last block out
    with tarfile.open(fileobj=io.BytesIO(padded), mode="r:") as archive:
        for count, member in enumerate(archive):
            if count >= _MEMBERS_MAX:
                raise errors.UserError(f"{where} has more than {_MEMBERS_MAX} members")
            path = member.name.removeprefix("./").rstrip("/")
            if member.isdir() and path in (*_FOLDERS, "", "."):
                continue
            if not member.isreg() or path not in _FILES or path in files:
                raise errors.UserError(
                    f"{where}: {member.name!r} does not belong to a context; expected {', '.join(_FILES)}, each once"
                )
            content = archive.extractfile(member)
            text = content.read(_FILES[path] + 1) if content is not None else b""
            if member.offset_data + member.size > len(data):
                raise errors.UserError(f"{where} ends in the middle of {member.name}")
            if len(text) > _FILES[path]:
                raise errors.UserError(f"{where}: {member.name} is larger than {_FILES[path]} bytes")
            files[path] = text
    return files
