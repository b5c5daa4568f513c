"""Image configuration: what to run by default, and which layers make the root file system.

Docker's and the OCI's documents are read alike (OCI image spec, config.md, plus Docker's Healthcheck, Shell, OnBuild).
The bytes are kept as they came, because the image id is their digest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fleet.errors import RejectedFault
from fleet.images.jsondoc import Document, decode_document
from fleet.images.manifest import Platform
from fleet.images.reference import is_digest

__all__ = ["ImageConfig", "HistoryEntry", "ConfigDocument", "parse_config", "parse_time", "CONFIG_BYTES_MAX"]

CONFIG_BYTES_MAX = 8 << 20
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """Defaults a container takes from its image. Empty means the image does not say."""

    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    """``80/tcp``, sorted."""
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    healthcheck: dict[str, Any] | None = None
    """Docker's shape: Test, Interval, Timeout, StartPeriod, StartInterval (nanoseconds), Retries."""
    shell: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()
    architecture: str = ""
    os: str = "linux"
    variant: str = ""

    @property
    def platform(self) -> Platform:
        """The platform the image was made for."""
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """How one step of the image was made; steps that only changed the configuration have no layer."""

    created: datetime | None = None
    created_by: str = ""
    comment: str = ""
    author: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDocument:
    """A whole configuration document, read."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    """sha256 of each uncompressed layer, lowest first."""
    created: datetime | None
    author: str
    comment: str
    history: tuple[HistoryEntry, ...]


def parse_config(body: bytes, *, what: str) -> ConfigDocument:
    """Read a configuration document; ``RejectedFault`` names the field that is wrong."""
    document = decode_document(body, what, bytes_max=CONFIG_BYTES_MAX)
    root_fs = document.child("rootfs", required=True)
    if root_fs.text("type", "layers") != "layers":
        raise RejectedFault(f"{what}: rootfs.type must be 'layers'")
    diff_ids = root_fs.texts("diff_ids")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise RejectedFault(f"{what}: rootfs.diff_ids: {diff_id[:100]!r} is not a sha256 digest")
    return ConfigDocument(
        config=_read_defaults(document),
        diff_ids=diff_ids,
        created=parse_time(document.text("created", ""), what=what),
        author=document.text("author", ""),
        comment=document.text("comment", ""),
        history=tuple(_read_history(item) for item in document.children("history")),
    )


def parse_time(text: str, *, what: str) -> datetime | None:
    """An RFC 3339 time with up to nanoseconds (cut to microseconds); empty is None."""
    if not text:
        return None
    match = _RFC3339.fullmatch(text)
    try:
        if match is None:
            raise ValueError("not RFC 3339")
        fraction = (match[2] or "0").ljust(6, "0")[:6]
        zone = "+00:00" if match[3] == "Z" else match[3]
        return datetime.fromisoformat(f"{match[1]}.{fraction}{zone}").astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RejectedFault(f"{what}: {text[:60]!r} is not a time: {error}") from error


def _read_defaults(document: Document) -> ImageConfig:
    inner = document.child("config")
    healthcheck = inner.child("Healthcheck")
    return ImageConfig(
        env=inner.texts("Env"),
        cmd=inner.texts("Cmd"),
        entrypoint=inner.texts("Entrypoint"),
        working_dir=inner.text("WorkingDir", ""),
        user=inner.text("User", ""),
        exposed_ports=inner.keys_of("ExposedPorts"),
        volumes=inner.keys_of("Volumes"),
        labels=inner.text_map("Labels"),
        stop_signal=inner.text("StopSignal", ""),
        healthcheck=_read_healthcheck(healthcheck) if healthcheck.raw else None,
        shell=inner.texts("Shell"),
        on_build=inner.texts("OnBuild"),
        architecture=document.text("architecture", ""),
        os=document.text("os", "linux") or "linux",
        variant=document.text("variant", ""),
    )


def _read_healthcheck(document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if "Test" in document:
        result["Test"] = list(document.texts("Test"))
    for key in ("Interval", "Timeout", "StartPeriod", "StartInterval", "Retries"):
        if key in document:
            result[key] = document.number(key)
    return result


def _read_history(item: Document) -> HistoryEntry:
    empty = item.raw.get("empty_layer", False)
    if not isinstance(empty, bool):
        raise item.wrong("empty_layer", "true or false", empty)
    return HistoryEntry(
        created=parse_time(item.text("created", ""), what=item.what),
        created_by=item.text("created_by", ""),
        comment=item.text("comment", ""),
        author=item.text("author", ""),
        empty_layer=empty,
    )
