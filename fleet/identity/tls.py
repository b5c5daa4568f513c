"""TLS 1.3 contexts between hosts. Trust is the cluster's own root, never the system's; names in addresses mean nothing.

Hosts are reached at addresses that change, so the host name is not checked by OpenSSL. What is checked instead, after
every handshake and by both ends, is ``verify_peer``: a certificate from our root, of our cluster, and of the role (or
the very node) expected. A context alone admits *any* node of the cluster: calling ``verify_peer`` is not optional.

Keys reach OpenSSL through a memory file, as the ssl module can only load from paths; nothing is written to disk.
Session tickets are off: a resumed session would skip the check of a certificate that has expired or been withdrawn.
"""

from __future__ import annotations

import os
import ssl
from typing import Final, Literal

from cryptography import x509

from fleet import errors
from fleet.identity.certificates import PeerIdentity, read_subject
from fleet.identity.keys import NodeIdentity
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

__all__ = [
    "client_context",
    "insecure_context",
    "pinned_context",
    "present_identity",
    "prove_identity",
    "server_context",
    "verify_peer",
]

ClientCertificates = Literal["optional", "required"]
_ANY_NAME: Final = "fleet-node"


def server_context(identity: NodeIdentity, *, client_certificates: ClientCertificates) -> ssl.SSLContext:
    """For listeners. *optional* lets nodes without a certificate in (join); a certificate that is shown must be good."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    context.num_tickets = 0
    _trust(context, identity.ca_pem)
    context.verify_mode = ssl.CERT_REQUIRED if client_certificates == "required" else ssl.CERT_OPTIONAL
    present_identity(context, identity)
    return context


def client_context(identity: NodeIdentity, expect_cluster: ClusterId | None = None) -> ssl.SSLContext:
    """For connections as this node. ``expect_cluster`` guards against an identity of another cluster being used."""
    if expect_cluster is not None and identity.cluster_id != expect_cluster:
        raise errors.UnauthorizedError(
            f"this node's identity is of cluster {identity.cluster_id}, expected {expect_cluster}"
        )
    context = pinned_context(identity.ca_pem)
    present_identity(context, identity)
    return context


def pinned_context(ca_pem: str) -> ssl.SSLContext:
    """For connections without a certificate of one's own to holders of one from ``ca_pem``: joining, unlocking."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    context.check_hostname = False
    _trust(context, ca_pem)
    return context


def insecure_context() -> ssl.SSLContext:
    """Verifies nothing. Only to fetch the root certificate, which ``tokens.check_root`` then proves; say no secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def verify_peer(
    connection: ssl.SSLObject | ssl.SSLSocket,
    *,
    cluster_id: ClusterId,
    role: NodeRole | None = None,
    node_id: NodeId | None = None,
) -> PeerIdentity:
    """Who is at the other end of a finished handshake.

    Raises ``UnauthorizedError`` when it showed no certificate, or one of another cluster, role or node than expected;
    ``InvariantError`` when the connection was made with a context that verifies nothing.
    """
    if connection.context.verify_mode == ssl.CERT_NONE:
        raise errors.InvariantError("a peer can not be verified on a connection that checks no certificates")
    der = connection.getpeercert(binary_form=True)
    if der is None:
        raise errors.UnauthorizedError("the peer showed no certificate: only nodes of this cluster are served here")
    peer = read_subject(x509.load_der_x509_certificate(der))
    if peer.cluster_id != cluster_id:
        raise errors.UnauthorizedError(f"node {peer.node_id} is of cluster {peer.cluster_id}, not {cluster_id}")
    if role is not None and peer.role is not role:
        raise errors.UnauthorizedError(f"node {peer.node_id} is a {peer.role}, expected a {role}")
    if node_id is not None and peer.node_id != node_id:
        raise errors.UnauthorizedError(f"the peer is node {peer.node_id}, expected {node_id}")
    return peer


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_RENEGOTIATION


def _trust(context: ssl.SSLContext, ca_pem: str) -> None:
    try:
        context.load_verify_locations(cadata=ca_pem)
    except ssl.SSLError as cause:
        raise errors.UserError(f"root certificate: not usable: {cause}") from cause


def prove_identity(identity: NodeIdentity) -> None:
    """Shake hands with oneself in memory, both ways. Raises ``UserError`` if OpenSSL does not accept what the root signed:
    a root of somebody else's making may lack what strict checking asks for (key usage, key identifier)."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(identity, client_certificates="required").wrap_bio(to_server, to_client, server_side=True)
    client = client_context(identity).wrap_bio(to_client, to_server, server_hostname=_ANY_NAME)
    open_ends = [client, server]
    for _ in range(8):
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as cause:
                raise errors.UserError(
                    f"root certificate: connections with certificates of this root fail: {cause.reason or cause}"
                    f"{f' ({cause.verify_message})' if isinstance(cause, ssl.SSLCertVerificationError) else ''}"
                ) from cause
        if not open_ends:
            return
    raise errors.InvariantError("a handshake in memory did not end")


def present_identity(context: ssl.SSLContext, identity: NodeIdentity) -> None:
    """Let connections of the context show this node's certificate."""
    descriptor = os.memfd_create("node-identity", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(f"{identity.key_pem}\n{identity.cert_pem}".encode())
        file.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        except ssl.SSLError as cause:
            raise errors.UnauthorizedError(f"identity of node {identity.node_id}: not usable: {cause}") from cause
