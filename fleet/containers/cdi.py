"""Devices by name: the Container Device Interface (CNCF CDI 0.8), by which vendors say what a container needs for a device.

A specification is a file (JSON or YAML) in /etc/cdi or /var/run/cdi; ``vendor.com/class=name`` picks a device of it. Device
nodes, mounts and environment are applied; hooks are programs of the host run inside a half-made container, which fleet
does not do, so a device that needs one is refused rather than given without it.

Files are read at each use: vendors write them anew at boot. Sizes and counts are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from fleet.errors import RejectedFault, UnsupportedError, UserError
from fleet.node_runtime.spec import DeviceSpec, MountSpec

__all__ = ["DIRECTORIES", "Edits", "is_cdi_name", "read_kinds", "resolve"]

DIRECTORIES: Final = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""The later one wins, as the specification of CDI says."""

_NAME: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9_.-]{0,127}/[A-Za-z][A-Za-z0-9_-]{0,127}=[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}"
)
_FILES_MAX: Final = 256
_FILE_BYTES_MAX: Final = 4 << 20
_MOUNT_WORDS: Final = frozenset({"ro", "rw", "bind", "rbind", "rprivate", "private", "nosuid", "nodev", "noexec"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What the devices add to a container."""

    env: tuple[str, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    mounts: tuple[MountSpec, ...] = ()


def is_cdi_name(text: str) -> bool:
    """Whether it is ``vendor.com/class=name``."""
    return _NAME.fullmatch(text) is not None


def read_kinds(directories: Sequence[Path] = DIRECTORIES) -> dict[str, dict[str, Any]]:
    """Blocks. Specifications by kind (``vendor.com/class``). Raises ``RejectedFault`` for a file that cannot be read."""
    kinds: dict[str, dict[str, Any]] = {}
    for directory in directories:
        files = sorted(path for pattern in ("*.json", "*.yaml", "*.yml") for path in directory.glob(pattern))
        for path in files[:_FILES_MAX]:
            try:
                with path.open("rb") as file:
                    data = file.read(_FILE_BYTES_MAX + 1)
                found = yaml.safe_load(data) if len(data) <= _FILE_BYTES_MAX else None
            except (OSError, yaml.YAMLError, RecursionError) as cause:
                raise RejectedFault(f"CDI specification {path}: {cause}") from cause
            if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
                raise RejectedFault(f"CDI specification {path}: not an object with a kind, or larger than 4 MiB")
            kinds[found["kind"]] = found
    return kinds


def resolve(names: Sequence[str], kinds: Mapping[str, Mapping[str, Any]]) -> Edits:
    """Pure. The edits of all named devices, those of a whole specification once. Raises ``UserError`` for a bad name,
    ``RejectedFault`` for a device nobody specifies, ``UnsupportedError`` for one that needs hooks.
    """
    edits: list[tuple[str, Any]] = []
    unknown = []
    for name in dict.fromkeys(names):
        if not is_cdi_name(name):
            raise UserError(f"invalid CDI device name {name!r}: expected vendor.com/class=name")
        kind, _, device = name.partition("=")
        spec = kinds.get(kind, {})
        chosen = next((d for d in _objects(spec.get("devices"), kind) if str(d.get("name")) == device), None)
        if chosen is None:
            unknown.append(name)
            continue
        common = (kind, spec.get("containerEdits"))
        edits += [entry for entry in (common, (name, chosen.get("containerEdits"))) if entry not in edits]
    if unknown:
        raise RejectedFault(f"CDI device injection failed: unresolvable CDI devices {', '.join(unknown)}")
    env: dict[str, str] = {}
    devices: dict[str, DeviceSpec] = {}
    mounts: dict[str, MountSpec] = {}
    for where, edit in edits:
        if edit is None:
            continue
        if not isinstance(edit, dict):
            raise RejectedFault(f"CDI device {where}: containerEdits is not an object")
        if edit.get("hooks"):
            raise UnsupportedError(f"CDI device {where} needs hooks, which fleet does not run")
        for text in edit.get("env") or ():
            env[str(text).partition("=")[0]] = str(text)
        for node in _objects(edit.get("deviceNodes"), where):
            target = str(node.get("path", ""))
            source, access = str(node.get("hostPath") or target), str(node.get("permissions") or "rwm")
            devices[target] = DeviceSpec(source=source, target=target, permissions=access)
        for mount in _objects(edit.get("mounts"), where):
            target = str(mount.get("containerPath", ""))
            mounts[target] = _mount(where, target, str(mount.get("hostPath", "")), mount.get("options") or ())
    return Edits(env=tuple(env.values()), devices=tuple(devices.values()), mounts=tuple(mounts.values()))


def _mount(where: str, target: str, source: str, options: Sequence[Any]) -> MountSpec:
    words = {str(word) for word in options}
    if words - _MOUNT_WORDS:
        raise UnsupportedError(f"CDI device {where}: mount option {min(words - _MOUNT_WORDS)!r} is not supported")
    return MountSpec(
        kind="bind",
        target=target,
        source=source,
        read_only="ro" in words,
        recursive="bind" not in words,
        options=tuple(sorted(words & {"nosuid", "nodev", "noexec"})),
    )


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RejectedFault(f"CDI specification of {where}: expected a list of objects")
    return value
