"""A node's own identity on disk: private key, certificate and the root it trusts, always a set that fits together.

A renewal brings a new key with a new certificate; a crash between two file writes must not leave one without the other.
So every save makes a new *generation*, a directory, and then swings one symbolic link, which rename(2) does atomically:

    <folder>/current -> generation-7
    <folder>/generation-7/{node.key (0600), node.crt, ca.crt}

Crash before the swing: the old set is current, the new directory is swept by the next save. After it: the new set is
current, the old directory is swept likewise.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet import errors
from fleet.durable import sync_directory
from fleet.identity.certificates import PEM_BYTES_MAX, parse_certificate, read_subject
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

__all__ = [
    "KeyRequest",
    "LockedError",
    "NodeIdentity",
    "generate_request",
    "issuing_root",
    "load_identity",
    "lock_key",
    "make_identity",
    "remove_identity",
    "save_identity",
    "unlock_key",
]

_KEY: Final = "node.key"
_CERTIFICATE: Final = "node.crt"
_ROOT: Final = "ca.crt"
_CURRENT: Final = "current"
_ENCRYPTED: Final = "-----BEGIN ENCRYPTED PRIVATE KEY-----"
_GENERATION: Final = re.compile(r"generation-(\d{1,9})")


class LockedError(errors.UnavailableError):
    """A key on disk is encrypted, and the passphrase is missing or wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    """A fresh private key and the request that asks the authority to certify it."""

    key_pem: str = field(repr=False)
    csr_pem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Who this node is, and the means to prove it. ``ca_pem`` may hold several roots during a rotation."""

    node_id: NodeId
    role: NodeRole
    cluster_id: ClusterId
    cert_pem: str
    key_pem: str = field(repr=False)
    ca_pem: str
    not_after: datetime


def generate_request() -> KeyRequest:
    """A new ECDSA P-256 key and a signing request for it; the subject is empty, since the authority decides it."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return KeyRequest(
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        csr_pem=request.public_bytes(serialization.Encoding.PEM).decode(),
    )


def make_identity(*, cert_pem: str, key_pem: str, ca_pem: str) -> NodeIdentity:
    """Join the three parts. Raises ``UnauthorizedError`` unless key, certificate and root belong to each other."""
    certificate = parse_certificate(cert_pem, what="node certificate")
    peer = read_subject(certificate)
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
        raise errors.UnauthorizedError("node key: does not parse") from cause
    if key.public_key() != certificate.public_key():
        raise errors.UnauthorizedError(f"certificate of node {peer.node_id} is not for this node's key")
    if not any(_issued_by(certificate, root) for root in _roots(ca_pem)):
        raise errors.UnauthorizedError(f"certificate of node {peer.node_id} was not issued by the cluster's root")
    return NodeIdentity(
        node_id=peer.node_id,
        role=peer.role,
        cluster_id=peer.cluster_id,
        cert_pem=cert_pem,
        key_pem=key_pem,
        ca_pem=ca_pem,
        not_after=peer.not_after,
    )


def issuing_root(identity: NodeIdentity) -> str:
    """The PEM of that root among the trusted ones which issued the node's certificate."""
    certificate = parse_certificate(identity.cert_pem, what="node certificate")
    for root in _roots(identity.ca_pem):
        if _issued_by(certificate, root):
            return root.public_bytes(serialization.Encoding.PEM).decode()
    raise errors.InvariantError(f"identity of node {identity.node_id}: none of its roots issued its certificate")


def save_identity(folder: Path, identity: NodeIdentity, *, passphrase: bytes | None = None) -> None:
    """Make ``identity`` the current one, durably and at once; idempotent. Its key is encrypted if there is a ``passphrase``.
    Blocks on fsync. Raises ``OSError``."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    generation = folder / f"generation-{max(_generations(folder), default=0) + 1}"
    generation.mkdir(mode=0o700)
    for name, text, mode in (
        (_KEY, lock_key(identity.key_pem, passphrase), 0o600),
        (_CERTIFICATE, identity.cert_pem, 0o644),
        (_ROOT, identity.ca_pem, 0o644),
    ):
        _write_durably(generation / name, text.encode(), mode)
    sync_directory(generation)
    sync_directory(folder)
    swing = folder / f"{_CURRENT}.new"
    swing.unlink(missing_ok=True)
    swing.symlink_to(generation.name)
    swing.rename(folder / _CURRENT)
    sync_directory(folder)
    _sweep(folder, keep=generation.name)


def load_identity(folder: Path, *, passphrase: bytes | None = None) -> NodeIdentity | None:
    """The current identity, or None when this node has none. Raises ``UnauthorizedError`` when it does not fit, ``LockedError``
    when its key is encrypted and this is not the passphrase."""
    current = folder / _CURRENT
    try:
        cert_pem, key_pem, ca_pem = (_read(current / name) for name in (_CERTIFICATE, _KEY, _ROOT))
    except FileNotFoundError:
        if current.is_symlink():
            raise errors.UnauthorizedError(f"node identity in {folder} is incomplete; leave and join again") from None
        return None
    return make_identity(cert_pem=cert_pem, key_pem=unlock_key(key_pem, passphrase), ca_pem=ca_pem)


def lock_key(key_pem: str, passphrase: bytes | None) -> str:
    """The key as PKCS #8 encrypted by the passphrase, which must be long and random; as it is without one."""
    if passphrase is None:
        return key_pem
    key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    ).decode()


def unlock_key(key_pem: str, passphrase: bytes | None) -> str:
    """The opposite; a key that is not encrypted is returned as it is. Raises ``LockedError``."""
    if not key_pem.startswith(_ENCRYPTED):
        return key_pem
    if passphrase is None:
        raise LockedError("the node's key is locked")
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
        raise LockedError("this is not the key that the node's key was locked with") from cause
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def remove_identity(folder: Path) -> None:
    """Forget who this node is (leave). Idempotent; a crash on the way leaves no current identity."""
    if not folder.is_dir():
        return
    (folder / _CURRENT).unlink(missing_ok=True)
    sync_directory(folder)
    _sweep(folder, keep=None)


def _issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _roots(ca_pem: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(ca_pem.encode())
    except ValueError as cause:
        raise errors.UnauthorizedError(f"root certificate: not in PEM form: {cause}") from cause


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(PEM_BYTES_MAX + 1)
    if len(data) > PEM_BYTES_MAX:
        raise errors.TooLargeError(f"{path}: longer than {PEM_BYTES_MAX} bytes")
    return data.decode("ascii", errors="replace")


def _write_durably(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _generations(folder: Path) -> list[int]:
    return [int(m[1]) for m in (_GENERATION.fullmatch(entry.name) for entry in folder.iterdir()) if m]


def _sweep(folder: Path, *, keep: str | None) -> None:
    for number in _generations(folder):
        name = f"generation-{number}"
        if name != keep:
            shutil.rmtree(folder / name)
