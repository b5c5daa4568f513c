"""Parts that several objects share."""

from __future__ import annotations

from typing import Final

import msgspec

from fleet.model.wire import Value

__all__ = [
    "MICROSECOND_NS",
    "MILLISECOND_NS",
    "SECOND_NS",
    "Driver",
    "DiscreteResource",
    "GenericResource",
    "NamedResource",
    "Platform",
    "TlsInfo",
    "Version",
]

MICROSECOND_NS: Final = 1_000
MILLISECOND_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000


class Version(Value, frozen=True, kw_only=True):
    """When the object last changed: the store's revision at its last write. Set by the store alone, on reading."""

    index: int = 0


class Platform(Value, frozen=True, kw_only=True):
    """Docker's names: architecture ``x86_64``/``aarch64`` on nodes, ``amd64``/``arm64`` in images; os ``linux``."""

    architecture: str = ""
    os: str = ""


class Driver(Value, frozen=True, kw_only=True):
    """A named driver with options (logging, network, secrets)."""

    name: str = ""
    options: dict[str, str] = {}


class NamedResource(Value, frozen=True, kw_only=True):
    """One nameable unit, such as a GPU by its UUID."""

    kind: str
    value: str


class DiscreteResource(Value, frozen=True, kw_only=True):
    """A countable quantity."""

    kind: str
    value: int


class GenericResource(Value, frozen=True, kw_only=True):
    """Exactly one of the two is set."""

    named: NamedResource | None = msgspec.field(default=None, name="NamedResourceSpec")
    discrete: DiscreteResource | None = msgspec.field(default=None, name="DiscreteResourceSpec")


class TlsInfo(Value, frozen=True, kw_only=True):
    """The trust root a node or the cluster uses. ``trust_root`` is PEM; the others base64 DER."""

    trust_root: str = ""
    cert_issuer_subject: str = ""
    cert_issuer_public_key: str = ""
