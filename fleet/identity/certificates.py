"""What a fleet certificate says: CN the node's id, OU its role, O its cluster (SEC-01; SwarmKit's spelling).

Reading is strict: exactly one of each, a known role, well-formed ids. A certificate that the root signed yet that does
not read so is refused, because nothing else in fleet decides what its bearer may do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from fleet import errors
from fleet.model.ids import ClusterId, NodeId, is_id
from fleet.model.node import NodeRole

__all__ = [
    "BACKDATE",
    "PeerIdentity",
    "parse_certificate",
    "read_subject",
    "renewal_instant",
    "subject_fields",
    "subject_name",
]

BACKDATE: Final = timedelta(hours=1)
"""Certificates begin this long before they are made, so that hosts whose clocks lag accept them (SwarmKit: the same)."""

PEM_BYTES_MAX: Final = 64 * 1024
"""A P-256 certificate is about 1 KiB; a bundle of roots during a rotation has a few."""

_ROLE_UNITS: Final = {NodeRole.WORKER: "swarm-worker", NodeRole.MANAGER: "swarm-manager"}
_UNIT_ROLES: Final = {unit: role for role, unit in _ROLE_UNITS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """Who is at the other end, as the cluster's root vouches for it until ``not_after``."""

    node_id: NodeId
    role: NodeRole
    cluster_id: ClusterId
    not_after: datetime


def subject_name(*, node_id: NodeId, role: NodeRole, cluster_id: ClusterId) -> x509.Name:
    """The subject of a node's certificate."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, _ROLE_UNITS[role]),
            x509.NameAttribute(NameOID.COMMON_NAME, node_id),
        ]
    )


def subject_fields(*, node_id: NodeId, role: NodeRole, cluster_id: ClusterId) -> dict[str, object]:
    """The same subject as CFSSL is told it."""
    return {"CN": node_id, "names": [{"O": cluster_id, "OU": _ROLE_UNITS[role]}]}


def parse_certificate(pem: str, *, what: str) -> x509.Certificate:
    """The one certificate in ``pem``. Raises ``UserError`` when there is none, more than one, or it is malformed."""
    if len(pem) > PEM_BYTES_MAX:
        raise errors.TooLargeError(f"{what}: longer than {PEM_BYTES_MAX} bytes")
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except ValueError as cause:
        raise errors.UserError(f"{what}: not a certificate in PEM form: {cause}") from cause
    if len(found) != 1:
        raise errors.UserError(f"{what}: holds {len(found)} certificates, expected one")
    return found[0]


def read_subject(certificate: x509.Certificate) -> PeerIdentity:
    """What the subject claims; trust in the signature is the caller's matter. Raises ``UnauthorizedError``."""
    node_id = _only(certificate.subject, NameOID.COMMON_NAME, "common name")
    unit = _only(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME, "organizational unit")
    cluster_id = _only(certificate.subject, NameOID.ORGANIZATION_NAME, "organization")
    role = _UNIT_ROLES.get(unit)
    if role is None:
        raise errors.UnauthorizedError(f"certificate of {node_id}: unknown role {unit!r}")
    if not is_id(node_id) or not is_id(cluster_id):
        raise errors.UnauthorizedError("certificate names no node of a cluster: its ids are malformed")
    return PeerIdentity(
        node_id=NodeId(node_id),
        role=role,
        cluster_id=ClusterId(cluster_id),
        not_after=certificate.not_valid_after_utc,
    )


def renewal_instant(cert_pem: str, fraction: float) -> datetime:
    """When to renew: 50 to 80 % through the lifetime, by chance ``fraction`` in 0..1 so that nodes spread out (SEC-04).

    The lifetime counts from issue, not from the backdated start: else a one-hour certificate were due at once.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction is {fraction}, not within 0..1")
    certificate = parse_certificate(cert_pem, what="node certificate")
    issued = certificate.not_valid_before_utc + BACKDATE
    return issued + (certificate.not_valid_after_utc - issued) * (0.5 + 0.3 * fraction)


def _only(name: x509.Name, oid: x509.ObjectIdentifier, what: str) -> str:
    found = name.get_attributes_for_oid(oid)
    if len(found) != 1 or not isinstance(found[0].value, str):
        raise errors.UnauthorizedError(f"certificate subject has {len(found)} fields {what}, expected one")
    return found[0].value
