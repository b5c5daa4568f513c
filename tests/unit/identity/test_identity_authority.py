"""What the authority signs, what it refuses, and what a certificate must say to be believed."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from fleet import errors
from fleet.identity.authority import RootAuthority, create_root, root_digest
from fleet.identity.certificates import parse_certificate, read_subject, renewal_instant
from fleet.identity.keys import generate_request
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
CLUSTER = ClusterId("c" * 25)
NODE = NodeId("n" * 25)


def issue(
    root: RootAuthority, csr_pem: str, *, lifetime: timedelta = timedelta(days=90), addresses: tuple[str, ...] = ()
) -> str:
    return root.issue(
        csr_pem,
        node_id=NODE,
        role=NodeRole.WORKER,
        cluster_id=CLUSTER,
        lifetime=lifetime,
        now=NOW,
        addresses=addresses,
    )


def pem_request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: x509.Name | None = None) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(name or x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def test_issued_certificate_carries_node_role_cluster_and_addresses() -> None:
    pem = issue(create_root(CLUSTER, NOW), generate_request().csr_pem, addresses=("10.0.0.5", "fd00::1"))
    certificate = parse_certificate(pem, what="test")
    peer = read_subject(certificate)
    assert (peer.node_id, peer.role, peer.cluster_id) == (NODE, NodeRole.WORKER, CLUSTER)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NODE, "fleet-node"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "fd00::1"]
    assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=90)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ipaddress.ip_address("10.0.0.5") in names.get_values_for_type(x509.IPAddress)


def test_subject_of_the_request_is_ignored() -> None:
    wish = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-manager")])
    pem = issue(create_root(CLUSTER, NOW), pem_request(ec.generate_private_key(ec.SECP256R1()), wish))
    assert read_subject(parse_certificate(pem, what="test")).role is NodeRole.WORKER


def test_root_outlives_no_node_certificate() -> None:
    root = create_root(CLUSTER, NOW)
    pem = issue(root, generate_request().csr_pem, lifetime=timedelta(days=100 * 365))
    end = parse_certificate(root.cert_pem, what="root").not_valid_after_utc
    assert parse_certificate(pem, what="test").not_valid_after_utc == end


@pytest.mark.parametrize(
    ("request_pem", "complaint"),
    [
        pytest.param("", "does not parse", id="empty"),
        pytest.param(
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "parse", id="junk"
        ),
        pytest.param("x" * 9000, "at most 8192", id="huge"),
        pytest.param(pem_request(ec.generate_private_key(ec.SECP384R1())), "P-256", id="p384"),
        pytest.param(pem_request(rsa.generate_private_key(65537, 2048)), "P-256", id="rsa"),
    ],
)
def test_weird_requests_are_refused(request_pem: str, complaint: str) -> None:
    with pytest.raises(errors.UserError, match=complaint):
        issue(create_root(CLUSTER, NOW), request_pem)


def test_request_whose_signature_does_not_fit_its_key_is_refused() -> None:
    der = x509.load_pem_x509_csr(generate_request().csr_pem.encode()).public_bytes(serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(der[:-1] + bytes([der[-1] ^ 1]))
    with pytest.raises(errors.UserError, match="not signed by the key it names"):
        issue(create_root(CLUSTER, NOW), forged.public_bytes(serialization.Encoding.PEM).decode())


def test_address_that_is_none_is_refused() -> None:
    with pytest.raises(errors.UserError, match=r"'example\.org' is not an IP address"):
        issue(create_root(CLUSTER, NOW), generate_request().csr_pem, addresses=("example.org",))


def test_root_digest_ignores_how_the_pem_is_laid_out() -> None:
    pem = create_root(CLUSTER, NOW).cert_pem
    assert root_digest(pem) == root_digest("# the root\n" + pem.replace("\n", "\r\n"))
    assert len(root_digest(pem)) == 32


def test_digest_of_two_certificates_is_refused() -> None:
    with pytest.raises(errors.UserError, match="holds 2 certificates"):
        root_digest(create_root(CLUSTER, NOW).cert_pem * 2)


def test_subject_with_an_unknown_role_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, CLUSTER),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-emperor"),
            x509.NameAttribute(NameOID.COMMON_NAME, NODE),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(errors.UnauthorizedError, match="swarm-emperor"):
        read_subject(certificate)


@pytest.mark.parametrize(("fraction", "hours"), [(0.0, 5.0), (0.5, 6.5), (1.0, 8.0)])
def test_renewal_falls_between_half_and_four_fifths_of_the_lifetime(fraction: float, hours: float) -> None:
    pem = issue(create_root(CLUSTER, NOW), generate_request().csr_pem, lifetime=timedelta(hours=10))
    assert abs(renewal_instant(pem, fraction) - (NOW + timedelta(hours=hours))) < timedelta(seconds=1)


def test_private_keys_do_not_show_in_reprs() -> None:
    assert "PRIVATE" not in repr(create_root(CLUSTER, NOW))
    assert "PRIVATE" not in repr(generate_request())
