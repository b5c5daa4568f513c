"""Handshakes over a real socket pair: who gets in, who does not."""

from __future__ import annotations

import dataclasses
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from fleet import errors
from fleet.identity.authority import RootAuthority, create_root, import_root
from fleet.identity.certificates import PeerIdentity
from fleet.identity.keys import NodeIdentity, generate_request, make_identity
from fleet.identity.tls import (
    client_context,
    insecure_context,
    pinned_context,
    prove_identity,
    server_context,
    verify_peer,
)
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

CLUSTER = ClusterId("c" * 25)
MANAGER = NodeId("m" * 25)
WORKER = NodeId("w" * 25)


def identity(
    root: RootAuthority,
    node_id: NodeId,
    role: NodeRole,
    *,
    cluster_id: ClusterId = CLUSTER,
    now: datetime | None = None,
) -> NodeIdentity:
    request = generate_request()
    cert_pem = root.issue(
        request.csr_pem,
        node_id=node_id,
        role=role,
        cluster_id=cluster_id,
        lifetime=timedelta(hours=2),
        now=now or datetime.now(UTC),
    )
    return make_identity(cert_pem=cert_pem, key_pem=request.key_pem, ca_pem=root.cert_pem)


@pytest.fixture(scope="module")
def root() -> RootAuthority:
    return create_root(CLUSTER, datetime.now(UTC))


class Meeting:
    """One handshake and one byte each way; keeps what each side saw: a socket, or the error that stopped it."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        left, right = socket.socketpair()
        left.settimeout(10)
        right.settimeout(10)
        self.server_error: Exception | None = None
        self.client_error: Exception | None = None
        self.server_sees: PeerIdentity | None = None
        self.client_sees: PeerIdentity | None = None
        self.version: str | None = None

        def serve() -> None:
            try:
                with server.wrap_socket(left, server_side=True) as connection:
                    connection.sendall(b"x")
                    connection.recv(1)
                    self.server_sees = verify_peer(connection, cluster_id=CLUSTER)
            except (ssl.SSLError, OSError, errors.FleetError) as error:
                self.server_error = error
            finally:
                left.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with client.wrap_socket(right) as connection:
                self.version = connection.version()
                connection.recv(1)
                connection.sendall(b"y")
                self.client_sees = verify_peer(connection, cluster_id=CLUSTER, role=NodeRole.MANAGER)
        except (ssl.SSLError, OSError, errors.FleetError) as error:
            self.client_error = error
        finally:
            right.close()
            thread.join()


def test_two_nodes_of_a_cluster_know_each_other(root: RootAuthority) -> None:
    manager, worker = identity(root, MANAGER, NodeRole.MANAGER), identity(root, WORKER, NodeRole.WORKER)
    meeting = Meeting(server_context(manager, client_certificates="required"), client_context(worker, CLUSTER))
    assert meeting.version == "TLSv1.3"
    assert meeting.client_sees is not None
    assert meeting.client_sees.node_id == MANAGER
    assert meeting.server_sees is not None
    assert (meeting.server_sees.node_id, meeting.server_sees.role) == (WORKER, NodeRole.WORKER)


def test_worker_posing_as_a_manager_is_refused(root: RootAuthority) -> None:
    rogue, victim = identity(root, WORKER, NodeRole.WORKER), identity(root, MANAGER, NodeRole.MANAGER)
    meeting = Meeting(server_context(rogue, client_certificates="required"), client_context(victim))
    assert isinstance(meeting.client_error, errors.UnauthorizedError)
    assert "is a worker, expected a manager" in str(meeting.client_error)


def test_client_of_a_foreign_root_is_refused(root: RootAuthority) -> None:
    manager = identity(root, MANAGER, NodeRole.MANAGER)
    foreign = identity(create_root(CLUSTER, datetime.now(UTC)), WORKER, NodeRole.WORKER)
    context = client_context(dataclasses.replace(foreign, ca_pem=root.cert_pem))
    for listener in (
        server_context(manager, client_certificates="optional"),
        server_context(manager, client_certificates="required"),
    ):
        meeting = Meeting(listener, context)
        assert isinstance(meeting.server_error, ssl.SSLError)
        assert meeting.server_sees is None


def test_server_of_a_foreign_root_is_refused(root: RootAuthority) -> None:
    foreign = identity(create_root(CLUSTER, datetime.now(UTC)), MANAGER, NodeRole.MANAGER)
    meeting = Meeting(server_context(foreign, client_certificates="optional"), pinned_context(root.cert_pem))
    assert isinstance(meeting.client_error, ssl.SSLCertVerificationError)


def test_expired_certificate_is_refused(root: RootAuthority) -> None:
    old = identity(root, WORKER, NodeRole.WORKER, now=datetime.now(UTC) - timedelta(hours=3))
    manager = identity(root, MANAGER, NodeRole.MANAGER)
    meeting = Meeting(server_context(manager, client_certificates="required"), client_context(old))
    assert isinstance(meeting.server_error, ssl.SSLError)
    assert "expired" in str(meeting.server_error)


def test_certificate_of_another_cluster_under_the_same_root_is_refused(root: RootAuthority) -> None:
    other = identity(root, MANAGER, NodeRole.MANAGER, cluster_id=ClusterId("d" * 25))
    meeting = Meeting(server_context(other, client_certificates="optional"), pinned_context(root.cert_pem))
    assert isinstance(meeting.client_error, errors.UnauthorizedError)
    assert "is of cluster ddddd" in str(meeting.client_error)


def test_node_that_signs_for_others_is_refused(root: RootAuthority) -> None:
    """A node's own key is no authority, even with its certificate shown along as an intermediate."""
    worker = identity(root, WORKER, NodeRole.WORKER)
    usurper = RootAuthority(cert_pem=worker.cert_pem, key_pem=worker.key_pem)
    request = generate_request()
    forged = usurper.issue(
        request.csr_pem,
        node_id=MANAGER,
        role=NodeRole.MANAGER,
        cluster_id=CLUSTER,
        lifetime=timedelta(hours=1),
        now=datetime.now(UTC),
    )
    with pytest.raises(errors.UnauthorizedError, match="not issued by the cluster's root"):
        make_identity(cert_pem=forged, key_pem=request.key_pem, ca_pem=root.cert_pem)
    chain = dataclasses.replace(worker, cert_pem=forged + worker.cert_pem, key_pem=request.key_pem)
    meeting = Meeting(server_context(chain, client_certificates="optional"), pinned_context(root.cert_pem))
    assert isinstance(meeting.client_error, ssl.SSLCertVerificationError)


def test_stranger_is_let_in_only_where_certificates_are_optional_and_never_as_a_node(root: RootAuthority) -> None:
    manager = identity(root, MANAGER, NodeRole.MANAGER)
    joining = Meeting(server_context(manager, client_certificates="optional"), pinned_context(root.cert_pem))
    assert joining.client_sees is not None
    assert isinstance(joining.server_error, errors.UnauthorizedError)
    refused = Meeting(server_context(manager, client_certificates="required"), pinned_context(root.cert_pem))
    assert isinstance(refused.server_error, ssl.SSLError)


def test_peer_is_never_believed_on_an_unverified_connection(root: RootAuthority) -> None:
    manager = identity(root, MANAGER, NodeRole.MANAGER)
    meeting = Meeting(server_context(manager, client_certificates="optional"), insecure_context())
    assert isinstance(meeting.client_error, errors.InvariantError)


def test_tls_1_2_is_refused(root: RootAuthority) -> None:
    manager = identity(root, MANAGER, NodeRole.MANAGER)
    old = pinned_context(root.cert_pem)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    meeting = Meeting(server_context(manager, client_certificates="optional"), old)
    assert isinstance(meeting.client_error, ssl.SSLError)


def test_identity_of_another_cluster_is_not_used(root: RootAuthority) -> None:
    with pytest.raises(errors.UnauthorizedError, match="expected ddddd"):
        client_context(identity(root, WORKER, NodeRole.WORKER), ClusterId("d" * 25))


def test_a_root_of_somebody_elses_making_is_proved_by_a_handshake() -> None:
    now = datetime.now(UTC)
    for key in (
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ):
        whole = import_root(*_foreign_root(key, now, usage=True), now)
        prove_identity(identity(whole, WORKER, NodeRole.WORKER))
    bad = import_root(*_foreign_root(ec.generate_private_key(ec.SECP256R1()), now, usage=False), now)
    with pytest.raises(errors.UserError, match="connections with certificates of this root fail"):
        prove_identity(identity(bad, WORKER, NodeRole.WORKER))


def test_a_certificate_that_is_no_authoritys_is_refused_as_root(root: RootAuthority) -> None:
    now = datetime.now(UTC)
    leaf = identity(root, WORKER, NodeRole.WORKER)
    with pytest.raises(errors.UserError, match="not a self-signed"):
        import_root(leaf.cert_pem, leaf.key_pem, now)
    with pytest.raises(errors.UserError, match="valid from"):
        import_root(root.cert_pem, root.key_pem, now + timedelta(days=30 * 365))
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(errors.UserError, match="1024 bits"):
        import_root(*_foreign_root(small, now, usage=True), now)


def _foreign_root(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, now: datetime, *, usage: bool
) -> tuple[str, str]:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "corporate root")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(b"chosen by others"), critical=False)
    )
    signs = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    if usage:
        builder = builder.add_extension(signs, critical=True)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, private.decode()
