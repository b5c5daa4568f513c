"""Contexts: named daemons to talk to, kept on disk in the layout of Docker's store.

    FOLDER/config.json                              {"currentContext": NAME}
    FOLDER/contexts/meta/SHA256(NAME)/meta.json     name, description, endpoint
    FOLDER/contexts/tls/SHA256(NAME)/docker/        ca.pem, cert.pem, key.pem

FOLDER is $FLEET_CONFIG, else $XDG_CONFIG_HOME/fleet, else ~/.config/fleet; folders are 0700, files 0600. Docker's own store
($DOCKER_CONFIG, else ~/.docker) is read after fleet's and never written. ``meta.json`` goes first and comes last, by renaming, so
a context is there whole or not at all: one that lost its certificates half-way would talk in the clear.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from fleet import errors

__all__ = [
    "DEFAULT", "TLS_NAMES", "Context", "ContextStore", "Contexts", "check_host", "check_name", "meta_of", "parse_meta",
]  # fmt: skip

Json = dict[str, Any]

DEFAULT: Final = "default"
"""The context that is always there: the daemon of -H, the environment, or this host."""
TLS_NAMES: Final = ("ca", "cert", "key")
META_MAX: Final = 64 * 1024
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.+-]{1,254}", re.ASCII)
_ENDPOINT: Final = "docker"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One context. ``tls`` holds the PEM files it has, by ``TLS_NAMES``; ``metadata`` is Docker's, description and more."""

    name: str
    host: str
    skip_tls_verify: bool = False
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tls: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    source: str = "fleet"
    meta_path: str = "<IN MEMORY>"
    tls_path: str = "<IN MEMORY>"

    @property
    def description(self) -> str:
        """Free text; empty when nobody gave one."""
        return str(self.metadata.get("Description") or "")


def check_name(name: str) -> str:
    """``name`` if a context may be called so. Raises ``UserError``."""
    if name == DEFAULT:
        raise errors.UserError(
            f'context name "{DEFAULT}" is reserved: it is the daemon of -H, the environment, or this host'
        )
    if not _NAME.fullmatch(name):
        raise errors.UserError(
            f"context name {name!r} is invalid: at least two letters, digits, '_', '.', '+' or '-', the first a letter or digit"
        )
    return name


def check_host(host: str) -> str:
    """``host`` as a URL that the client can use. Raises ``UserError``."""
    url = host if "://" in host else f"tcp://{host}"
    try:
        parts = urlsplit(url)
        usable = (parts.scheme == "unix" and parts.path.startswith("/")) or (
            parts.scheme in ("tcp", "http", "https") and bool(parts.hostname) and parts.port != 0
        )
    except ValueError:
        usable = False
    if not usable or not url.isprintable():
        raise errors.UserError(f"context endpoint {host!r}: expected unix:///path or tcp://HOST:PORT")
    return url


def meta_of(context: Context) -> Json:
    """What ``meta.json`` holds."""
    endpoint = {"Host": context.host, "SkipTLSVerify": context.skip_tls_verify}
    return {"Name": context.name, "Metadata": dict(context.metadata), "Endpoints": {_ENDPOINT: endpoint}}


def parse_meta(data: bytes, *, where: str) -> tuple[str, bool, Json]:
    """(host, skip verification, metadata) of a ``meta.json``. Raises ``UserError`` naming ``where``."""
    try:
        found = json.loads(data)
        endpoint = found["Endpoints"][_ENDPOINT]
        host, skip, metadata = endpoint["Host"], endpoint.get("SkipTLSVerify", False), found.get("Metadata") or {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise errors.UserError(f"{where} does not describe a context with a docker endpoint") from cause
    if not isinstance(host, str) or not isinstance(skip, bool) or not isinstance(metadata, dict):
        raise errors.UserError(f"{where}: Host is text, SkipTLSVerify true or false, Metadata an object")
    return host, skip, metadata


class ContextStore:
    """The contexts below one folder, ``source`` naming whose they are."""

    def __init__(self, folder: Path, *, source: str) -> None:
        self.folder = folder
        self.source = source

    def _place(self, kind: str, name: str) -> Path:
        return self.folder / "contexts" / kind / hashlib.sha256(name.encode()).hexdigest()

    def get(self, name: str) -> Context | None:
        """The context called so, or None. Raises ``UserError`` when its file cannot be read."""
        place = self._place("meta", name)
        data = _read(place / "meta.json", size_max=META_MAX)
        if data is None:
            return None
        host, skip, metadata = parse_meta(data, where=str(place / "meta.json"))
        tls_place = self._place("tls", name)
        files = {part: tls_place / _ENDPOINT / f"{part}.pem" for part in TLS_NAMES}
        return Context(
            name=name,
            host=host,
            skip_tls_verify=skip,
            metadata=metadata,
            tls={part: path for part, path in files.items() if path.is_file()},
            source=self.source,
            meta_path=str(place),
            tls_path=str(tls_place),
        )

    def names(self) -> list[str]:
        """Of all contexts whose file tells a name, sorted."""
        found = []
        try:
            places = list((self.folder / "contexts" / "meta").iterdir())
        except OSError:
            return []
        for place in places:
            try:
                name = json.loads(_read(place / "meta.json", size_max=META_MAX) or b"{}").get("Name")
            except (ValueError, AttributeError, RecursionError, errors.UserError):
                continue
            if isinstance(name, str) and _NAME.fullmatch(name) and self._place("meta", name) == place:
                found.append(name)
        return sorted(found)

    def put(self, context: Context, tls: Mapping[str, bytes]) -> None:
        """Keep ``context`` with PEM texts by ``TLS_NAMES``, instead of what had its name. Raises ``UserError``."""
        place, tls_place = self._place("meta", context.name), self._place("tls", context.name)
        fresh = tls_place.with_name(f".{tls_place.name}.new")
        try:
            _remove_tree(fresh)
            for part, text in tls.items():
                _write(fresh / _ENDPOINT / f"{part}.pem", text)
            (place / "meta.json").unlink(missing_ok=True)
            _remove_tree(tls_place)
            if tls:
                fresh.replace(tls_place)
            _write(place / "meta.json", json.dumps(meta_of(context)).encode())
        except OSError as cause:
            raise errors.UserError(f"cannot keep context {context.name} in {self.folder}: {cause}") from cause

    def remove(self, name: str) -> None:
        """Idempotent."""
        try:
            _remove_tree(self._place("meta", name))
            _remove_tree(self._place("tls", name))
        except OSError as cause:
            raise errors.UserError(f"cannot remove context {name} from {self.folder}: {cause}") from cause


class Contexts:
    """fleet's store, Docker's behind it, and which context is the current one. ``environment`` is the process's."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        home = Path(environment.get("HOME") or "/root")
        base = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
        self.own = ContextStore(Path(environment.get("FLEET_CONFIG") or base / "fleet"), source="fleet")
        self._dockers = ContextStore(Path(environment.get("DOCKER_CONFIG") or home / ".docker"), source="docker")
        self._config = self.own.folder / "config.json"

    def find(self, name: str) -> Context | None:
        """fleet's context of that name, else Docker's, else None."""
        return self.own.get(name) or self._dockers.get(name)

    def get(self, name: str) -> Context:
        """The same; raises ``NotFoundError``."""
        found = self.find(name)
        if found is None:
            raise errors.NotFoundError(f"context {name!r} not found; 'fleet context ls' shows what there is")
        return found

    def names(self) -> list[str]:
        """Of both stores, sorted, without ``default``."""
        return sorted({*self.own.names(), *self._dockers.names()})

    def current(self) -> str:
        """What ``fleet context use`` chose last; ``default`` at first. Raises ``UserError`` for an unreadable file."""
        data = _read(self._config, size_max=META_MAX)
        if data is None:
            return DEFAULT
        try:
            return str(json.loads(data).get("currentContext") or DEFAULT)
        except (ValueError, AttributeError, RecursionError) as cause:
            raise errors.UserError(f"{self._config} is no JSON object; correct it or remove it") from cause

    def use(self, name: str) -> None:
        """Make ``name`` the current context. Raises ``UserError`` when that cannot be written."""
        try:
            data = json.loads(_read(self._config, size_max=META_MAX) or b"{}")
        except ValueError:
            data = {}
        config = {**(data if isinstance(data, dict) else {}), "currentContext": "" if name == DEFAULT else name}
        try:
            _write(self._config, json.dumps(config, indent=4).encode() + b"\n")
        except OSError as cause:
            raise errors.UserError(f"cannot write {self._config}: {cause.strerror or cause}") from cause


def _read(path: Path, *, size_max: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(size_max + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as cause:
        raise errors.UserError(f"cannot read {path}: {cause.strerror or cause}") from cause
    if len(data) > size_max:
        raise errors.UserError(f"{path} is larger than {size_max} bytes, which no context is")
    return data


def _write(path: Path, data: bytes) -> None:
    """The whole file or none of it, 0600, in folders of 0700."""
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_tree(place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
