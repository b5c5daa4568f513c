"""Replacing the cluster's root certificate while everything runs (SEC-05), in three steps that all nodes take together:

1. *trust*: the new root is spread; every node trusts both. Certificates still come from the old one.
2. *sign*: certificates come from the new root, every node asks for one; join tokens now name the new root.
3. *done*: every node holds a certificate of the new root; the old one is forgotten, its key with it.

A step begins when every node has reported that it took the one before, so at no instant do two nodes meet that do not
trust each other. A node that is down holds the rotation up until it returns or is removed: it would be locked out.
SwarmKit goes at once with a cross-signed intermediate instead; fleet's roots sign nodes only (``path_length=0``).

What a node says of itself decides only how long the rotation waits for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from fleet import errors
from fleet.api import dispatch
from fleet.identity.authority import RootAuthority, create_root, import_certificate, import_root, root_info
from fleet.identity.tokens import SECRET_BYTES, make_token
from fleet.manager.external_ca import external_cas_of
from fleet.model.cluster import ROOT_AUTHORITY, Authority, CaConfig, Cluster, JoinTokens, RootRotation
from fleet.model.node import Node
from fleet.store import Store, Transaction

__all__ = [
    "RotationState",
    "begin_rotation",
    "new_tokens",
    "next_step",
    "rotation_state",
    "signing_root",
    "trust_of",
    "trusted_roots",
    "wanted_root",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationState:
    """How far a rotation is: of ``total`` nodes, who has yet to take the present step (host names)."""

    is_signing: bool
    total: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        step = "have a certificate of the new root" if self.is_signing else "trust the new root"
        waits = f"; waiting for {', '.join(self.missing[:5])}{' ...' if len(self.missing) > 5 else ''}"
        return f"{self.total - len(self.missing)} of {self.total} nodes {step}{waits if self.missing else ''}"


def new_tokens(cert_pem: str) -> JoinTokens:
    """Fresh join tokens for both roles, naming the root."""
    return JoinTokens(
        worker=make_token(cert_pem, secrets.token_bytes(SECRET_BYTES)),
        manager=make_token(cert_pem, secrets.token_bytes(SECRET_BYTES)),
    )


def signing_root(authority: Authority) -> RootAuthority:
    """The root that issues certificates now."""
    rotation = authority.rotation
    if rotation is not None and rotation.is_signing:
        return RootAuthority(cert_pem=rotation.certificate_pem, key_pem=rotation.key_pem)
    return RootAuthority(cert_pem=authority.certificate_pem, key_pem=authority.key_pem)


def trusted_roots(authority: Authority) -> str:
    """PEM of one root, or of two during a rotation."""
    if authority.rotation is None:
        return authority.certificate_pem
    return f"{authority.certificate_pem.rstrip()}\n{authority.rotation.certificate_pem}"


def trust_of(store: Store) -> dispatch.Trust | None:
    """What every node has to know of whom to trust, but for its own role and the managers; None before the founding."""
    authority = store.authorities.get(ROOT_AUTHORITY)
    if authority is None:
        return None
    return dispatch.Trust(
        roots_pem=trusted_roots(authority),
        issuer_key=root_info(signing_root(authority).cert_pem).cert_issuer_public_key,
        removed=tuple(sorted(node.id for node in store.nodes.all() if node.removed)),
        users=tuple(sorted({user.spec.name for user in store.users.all()})),
    )


def wanted_root(cluster: Cluster, authority: Authority, config: CaConfig, now: datetime) -> RootAuthority:
    """The root that ``config`` brings, or a fresh one. Without a key an authority outside must sign for it.

    Raises ``ConflictError`` while a rotation goes on, ``UserError`` for a root that cannot serve.
    """
    if authority.rotation is not None:
        raise errors.ConflictError(
            "the root certificate is being rotated already: see 'fleet swarm ca'; nodes that are down hold it up until "
            "they return or are removed (fleet node rm)"
        )
    if not config.signing_ca_cert:
        if config.signing_ca_key:
            raise errors.UserError("a root key was given without its certificate (--ca-cert)")
        return create_root(cluster.id, now)
    if config.signing_ca_key:
        return import_root(config.signing_ca_cert, config.signing_ca_key, now)
    root = import_certificate(config.signing_ca_cert, now)
    if not external_cas_of(config.external_cas, root_pem=root.cert_pem, present_root_pem=authority.certificate_pem):
        raise errors.UserError(
            "rotating to a given root certificate needs its key as well (--ca-key), or an authority that has it: "
            "--external-ca protocol=cfssl,url=...,cacert=FILE with the same certificate"
        )
    return root


def begin_rotation(
    cluster: Cluster, authority: Authority, root: RootAuthority, now: datetime
) -> tuple[Cluster, Authority]:
    """Both objects as they should be written for a rotation to ``root``. When that is the present one, only its key changes
    hands: into the state, or out of it to an external authority. Raises ``UserError`` if not even that."""
    if root_info(root.cert_pem) == root_info(authority.certificate_pem):
        if root.key_pem == authority.key_pem:
            raise errors.UserError("the given root certificate is the present one: nothing to rotate")
        return (
            msgspec.structs.replace(cluster, updated_at=now),
            msgspec.structs.replace(authority, key_pem=root.key_pem, updated_at=now),
        )
    # As Swarm: the issuer shown is the wanted one from the start, the trust root changes at the end.
    shown = msgspec.structs.replace(root_info(root.cert_pem), trust_root=cluster.tls_info.trust_root)
    return (
        msgspec.structs.replace(cluster, tls_info=shown, root_rotation_in_progress=True, updated_at=now),
        msgspec.structs.replace(
            authority,
            rotation=RootRotation(certificate_pem=root.cert_pem, key_pem=root.key_pem),
            updated_at=now,
        ),
    )


def rotation_state(authority: Authority, nodes: Iterable[Node]) -> RotationState | None:
    """How far the present step is; None without a rotation."""
    rotation = authority.rotation
    if rotation is None:
        return None
    new = root_info(rotation.certificate_pem)
    members = [node for node in nodes if not node.removed]

    def has_taken(node: Node) -> bool:
        shown = node.description.tls_info
        if rotation.is_signing:
            return shown.cert_issuer_public_key == new.cert_issuer_public_key
        return rotation.certificate_pem.strip() in shown.trust_root

    missing = tuple(sorted(node.description.hostname or node.id for node in members if not has_taken(node)))
    return RotationState(is_signing=rotation.is_signing, total=len(members), missing=missing)


def next_step(cluster: Cluster, authority: Authority, nodes: Iterable[Node], now: datetime) -> Transaction | None:
    """What to write when every node has taken the present step; None while nodes are missing, or nothing goes on."""
    rotation, state = authority.rotation, rotation_state(authority, nodes)
    if rotation is None or state is None or state.missing:
        return None
    if not rotation.is_signing:
        signing = msgspec.structs.replace(rotation, is_signing=True)
        return (
            Transaction()
            .replace(msgspec.structs.replace(authority, rotation=signing, updated_at=now))
            .replace(msgspec.structs.replace(cluster, join_tokens=new_tokens(rotation.certificate_pem), updated_at=now))
        )
    return (
        Transaction()
        .replace(
            msgspec.structs.replace(
                authority,
                certificate_pem=rotation.certificate_pem,
                key_pem=rotation.key_pem,
                rotation=None,
                updated_at=now,
            )
        )
        .replace(
            msgspec.structs.replace(
                cluster, tls_info=root_info(rotation.certificate_pem), root_rotation_in_progress=False, updated_at=now
            )
        )
    )
