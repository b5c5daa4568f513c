"""What the two hosts of a move say to each other, and what each notes on its disk."""

from __future__ import annotations

import enum
import re
from typing import Any, Final

import httpx
import msgspec

from fleet import errors
from fleet.containers import ContainerConfig
from fleet.containers.config import RestartRule
from fleet.model.wire import Value

__all__ = [
    "CarriedVolume",
    "Expected",
    "InPhase",
    "Incoming",
    "Manifest",
    "OutPhase",
    "Outgoing",
    "RunRequest",
    "check_answer",
    "check_move_id",
]

_MOVE_ID: Final = re.compile(r"[0-9a-f]{32}")
_KINDS: Final[dict[int, type[errors.FleetError]]] = {
    400: errors.UserError,
    401: errors.UnauthorizedError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    413: errors.TooLargeError,
    501: errors.UnsupportedError,
    503: errors.UnavailableError,
    507: errors.StorageFullError,
}


def check_move_id(text: str) -> str:
    """It becomes a file name. Raises ``UserError``."""
    if _MOVE_ID.fullmatch(text) is None:
        raise errors.UserError("a move's id is 32 hexadecimal digits")
    return text


class Expected(Value, frozen=True, kw_only=True):
    """A manager to the target: this node may send a container. ``host_access``: even one that reaches the host it is on."""

    source_node: str
    source_name: str
    source_address: str
    host_access: bool = False


class RunRequest(Value, frozen=True, kw_only=True):
    """A manager to the source. ``keep`` leaves the container and its volumes there, stopped."""

    container: str
    target_name: str
    target_address: str
    start: bool = True
    keep: bool = False


class CarriedVolume(Value, frozen=True, kw_only=True):
    """A volume whose contents come along, at ``target`` in the container."""

    target: str
    name: str
    anonymous: bool = False
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Manifest(Value, frozen=True, kw_only=True):
    """The source to the target, first: everything but the files. ``size_bytes`` is what the files take at the source."""

    container_id: str
    name: str
    config: ContainerConfig
    image_id: str
    image_digest: str
    image_reference: str
    machine: str
    """The source's (``x86_64``): programs in the writable layer are for it."""
    volumes: tuple[CarriedVolume, ...] = ()
    network_names: dict[str, str] = msgspec.field(default_factory=dict)
    """Of networks that people made on the source: id -> name."""
    size_bytes: int = 0
    start: bool = True
    stop_grace_s: float = 10.0


class OutPhase(enum.StrEnum):
    """``copying``: it is this host's and untouched; the target has to hear of the end. ``committing``: the target may have been
    told to start it, so this host must not until the target has said no."""

    COPYING = "copying"
    STOPPED = "stopped"
    COMMITTING = "committing"
    MOVED = "moved"


class Outgoing(Value, frozen=True, kw_only=True):
    """The source's note; written before the target is told anything, removed when the move is over, whichever way."""

    id: str
    container_id: str
    name: str
    target_name: str
    target_address: str
    phase: OutPhase
    was_running: bool
    restart: RestartRule
    auto_remove: bool
    keep: bool
    volumes: tuple[str, ...] = ()
    """Named volumes that went along."""


class InPhase(enum.StrEnum):
    RECEIVING = "receiving"
    READY = "ready"
    COMMITTED = "committed"


class Incoming(Value, frozen=True, kw_only=True):
    """The target's note. ``volumes``: those made for it."""

    id: str
    source_node: str
    source_name: str
    phase: InPhase
    container_id: str
    name: str
    start: bool
    volumes: tuple[str, ...] = ()


def check_answer(response: httpx.Response, host: str) -> dict[str, Any]:
    """The JSON another host answered. Raises its error as one of ours, with the host's name in front."""
    try:
        said = response.json()
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    if not response.is_success:
        text = f"{host}: {str(said.get('message', ''))[:2000] or f'answered HTTP {response.status_code}'}"
        raise _KINDS.get(response.status_code, errors.RuntimeFault)(text)
    return said
