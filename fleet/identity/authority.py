"""The cluster's certificate authority: one self-signed ECDSA P-256 root that signs node certificates itself.

No intermediates: whoever holds the root key is a manager with the store, so an intermediate would protect nothing
(SwarmKit chose the same). ``path_length=0`` and ``CA:FALSE`` on what it signs keep a node from signing for others.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet import errors
from fleet.identity.certificates import BACKDATE, parse_certificate, subject_name
from fleet.model.common import TlsInfo
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

__all__ = [
    "NODE_DNS_NAME",
    "RootAuthority",
    "certificate_names",
    "create_root",
    "import_certificate",
    "import_root",
    "parse_request",
    "root_digest",
    "root_info",
]

ROOT_LIFETIME: Final = timedelta(days=20 * 365)
CSR_BYTES_MAX: Final = 8 * 1024
"""A P-256 request is about 500 bytes."""
ADDRESSES_MAX: Final = 32
_RSA_BITS_MIN: Final = 2048
NODE_DNS_NAME: Final = "fleet-node"
"""In every node's certificate: a name that clients which insist on checking one can ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootAuthority:
    """The root's key pair. Its bearer can make any identity of the cluster. Without the key an authority outside signs."""

    cert_pem: str
    key_pem: str = field(repr=False, default="")

    def issue(
        self,
        csr_pem: str,
        *,
        node_id: NodeId,
        role: NodeRole,
        cluster_id: ClusterId,
        lifetime: timedelta,
        now: datetime,
        addresses: Sequence[str] = (),
    ) -> str:
        """A certificate (PEM) for the request's public key, valid from an hour ago until ``now + lifetime``.

        The request proves possession of the key and says nothing else: its subject and extensions are ignored.
        Raises ``UserError`` for a request that is malformed, too large, not P-256 or not signed by its own key.
        """
        request = parse_request(csr_pem)
        key = _signing_key(self.key_pem)
        root = parse_certificate(self.cert_pem, what="root certificate")
        if lifetime <= timedelta(0):
            raise errors.UserError(f"certificate lifetime is {lifetime}, must be positive")
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject_name(node_id=node_id, role=role, cluster_id=cluster_id))
            .issuer_name(root.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(min(now + lifetime, root.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(certificate_names(node_id, addresses)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.public_key()), critical=False)
            .add_extension(_authority_key_identifier(root), critical=False)
        )
        return _pem(builder.sign(key, hashes.SHA256()))


def create_root(cluster_id: ClusterId, now: datetime) -> RootAuthority:
    """A new root for the cluster, valid 20 years (SEC-02)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
            x509.NameAttribute(NameOID.COMMON_NAME, "fleet-ca"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return RootAuthority(cert_pem=_pem(certificate), key_pem=key_pem.decode())


def import_root(cert_pem: str, key_pem: str, now: datetime) -> RootAuthority:
    """A root that somebody brings along (``swarm ca --rotate --ca-cert --ca-key``).

    Raises ``UserError`` unless it is one self-signed CA certificate, valid now, with its own key, ECDSA or RSA from 2048
    bits. Whether OpenSSL accepts what it signs is proved by ``tls.prove_identity``.
    """
    root = _authority_certificate(cert_pem, now)
    try:
        key = _signing_key(key_pem)
    except errors.InvariantError as cause:
        raise errors.UserError("root key: expected an unencrypted ECDSA or RSA key in PEM form") from cause
    if key.public_key() != root.public_key():
        raise errors.UserError("root key: not the key of the given certificate")
    return RootAuthority(cert_pem=_pem(root), key_pem=key_pem)


def import_certificate(cert_pem: str, now: datetime) -> RootAuthority:
    """The same without the key: an authority outside the cluster has it, and signs. Raises ``UserError``."""
    return RootAuthority(cert_pem=_pem(_authority_certificate(cert_pem, now)))


def _authority_certificate(cert_pem: str, now: datetime) -> x509.Certificate:
    root = parse_certificate(cert_pem, what="root certificate")
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise errors.UserError("root certificate: its key is neither ECDSA nor RSA")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_BITS_MIN:
        raise errors.UserError(f"root key: {key.key_size} bits RSA, at least {_RSA_BITS_MIN}")
    try:
        root.verify_directly_issued_by(root)
        is_authority = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as cause:
        raise errors.UserError("root certificate: not a self-signed certificate of an authority") from cause
    if not is_authority:
        raise errors.UserError("root certificate: its basic constraints say that it is no authority (CA:FALSE)")
    if not root.not_valid_before_utc <= now < root.not_valid_after_utc:
        raise errors.UserError(
            f"root certificate: valid from {root.not_valid_before_utc} to {root.not_valid_after_utc}, now is {now}"
        )
    return root


def root_info(cert_pem: str) -> TlsInfo:
    """The root as Docker's API shows it: its PEM, and subject and public key as base64 of the DER."""
    root = parse_certificate(cert_pem, what="root certificate")
    key = root.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return TlsInfo(
        trust_root=cert_pem,
        cert_issuer_subject=base64.b64encode(root.subject.public_bytes()).decode(),
        cert_issuer_public_key=base64.b64encode(key).decode(),
    )


def root_digest(cert_pem: str) -> bytes:
    """SHA-256 (32 bytes) of the root certificate in DER: line ends and comments of the PEM do not count."""
    return parse_certificate(cert_pem, what="root certificate").fingerprint(hashes.SHA256())


def parse_request(csr_pem: str) -> x509.CertificateSigningRequest:
    """A node's signing request. Raises ``UserError`` unless it is one for a P-256 key, signed by that key."""
    if len(csr_pem) > CSR_BYTES_MAX:
        raise errors.TooLargeError(f"certificate request: {len(csr_pem)} bytes, at most {CSR_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as cause:
        raise errors.UserError(f"certificate request: does not parse: {cause}") from cause
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise errors.UserError("certificate request: the key must be ECDSA P-256")
    if not proven:
        raise errors.UserError("certificate request: not signed by the key it names")
    return request


def _signing_key(key_pem: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
        raise errors.InvariantError("the stored root key does not parse") from cause
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise errors.InvariantError("the stored root key is neither ECDSA nor RSA")
    return key


def _authority_key_identifier(root: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """As the root spells its own: others than fleet derive it in other ways."""
    try:
        own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = root.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def certificate_names(node_id: NodeId, addresses: Sequence[str]) -> list[x509.GeneralName]:
    """What a node's certificate is good for: its id, the name of all nodes, its addresses. Raises ``UserError``."""
    if len(addresses) > ADDRESSES_MAX:
        raise errors.UserError(f"certificate: {len(addresses)} addresses, at most {ADDRESSES_MAX}")
    names: list[x509.GeneralName] = [x509.DNSName(node_id), x509.DNSName(NODE_DNS_NAME)]
    for text in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError as cause:
            raise errors.UserError(f"certificate: {text!r} is not an IP address") from cause
    return names


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
