"""Certificates from an authority outside the cluster, which keeps the root's key to itself (SEC-06): CFSSL's ``/sign``.

The manager proves the node (token, or its present certificate), and asks with its own certificate for one with the subject
and the names that the cluster's own root would have written. How long it is valid is for the authority to say, and nothing
in its answer is believed: key, subject, names, issuer and use are checked before the node gets it. A chain must be direct,
as for the cluster's own roots: intermediates are refused.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet import errors
from fleet.clock import Clock
from fleet.identity.authority import NODE_DNS_NAME, certificate_names, parse_request, root_digest
from fleet.identity.certificates import parse_certificate, read_subject, subject_fields
from fleet.identity.keys import NodeIdentity
from fleet.identity.tls import present_identity
from fleet.logs import get_logger
from fleet.model.cluster import ExternalCa
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

__all__ = ["ExternalAuthority", "check_external", "external_cas_of"]

log = get_logger("external_ca")

_ANSWER_BYTES_MAX: Final = 256 * 1024
"""CFSSL's answer holds a certificate of about 1 KiB."""
_PATIENCE_S: Final = 10.0
_CAS_MAX: Final = 16
_USES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def check_external(cas: Sequence[ExternalCa]) -> None:
    """Raises ``UserError`` for a list that cannot serve: another protocol than cfssl, not https, not a certificate."""
    if len(cas) > _CAS_MAX:
        raise errors.UserError(f"external CAs: {len(cas)}, at most {_CAS_MAX}")
    for ca in cas:
        if ca.protocol.lower() != "cfssl":
            raise errors.UserError(f"external CA {ca.url!r}: protocol {ca.protocol!r} is not known; only cfssl is")
        try:
            parts = urlsplit(ca.url)
            is_usable = parts.scheme == "https" and bool(parts.hostname) and not parts.username
        except ValueError:
            is_usable = False
        if not is_usable:
            raise errors.UserError(
                f"external CA {ca.url!r}: expected the address of its sign endpoint, such as "
                "https://ca.example.com:8888/api/v1/cfssl/sign"
            )
        if ca.options:
            raise errors.UserError(f"external CA {ca.url!r}: unknown options {', '.join(sorted(ca.options))}")
        if ca.ca_cert:
            parse_certificate(ca.ca_cert, what=f"external CA {ca.url!r}: root certificate")


def external_cas_of(cas: Sequence[ExternalCa], *, root_pem: str, present_root_pem: str) -> tuple[ExternalCa, ...]:
    """Those that sign for the root; one that names none signs for the cluster's present root, as with Swarm."""
    wanted = root_digest(root_pem)
    return tuple(ca for ca in cas if root_digest(ca.ca_cert or present_root_pem) == wanted)


class ExternalAuthority:
    """The manager as a client of such authorities. ``identity``: its own, None before it has one (then only authorities that
    ask for no certificate answer)."""

    def __init__(self, clock: Clock, *, identity: Callable[[], NodeIdentity | None] = lambda: None) -> None:
        self._clock = clock
        self._identity = identity

    async def issue(
        self,
        cas: Sequence[ExternalCa],
        csr_pem: str,
        *,
        root_pem: str,
        trusted_pem: str,
        node_id: NodeId,
        role: NodeRole,
        cluster_id: ClusterId,
        addresses: Sequence[str] = (),
    ) -> str:
        """A certificate (PEM) of ``root_pem`` from the first of ``cas`` that gives a good one.

        ``trusted_pem``: roots that may vouch for the authority's own address, besides the host's and ``ca.ca_cert``.
        Raises ``UserError`` for a bad request, ``UnavailableError`` naming what each authority answered.
        """
        request = parse_request(csr_pem)
        names = certificate_names(node_id, addresses)
        wish = {
            "hosts": [node_id, NODE_DNS_NAME, *addresses],
            "certificate_request": csr_pem,
            "subject": subject_fields(node_id=node_id, role=role, cluster_id=cluster_id),
        }
        failures = []
        for ca in cas:
            try:
                certificate = await self._ask(ca, wish, trusted_pem)
                self._check(certificate, request, root_pem, names, node_id=node_id, role=role, cluster_id=cluster_id)
            except errors.FleetError as cause:
                failures.append(f"{ca.url}: {cause}")
                log.warning("external CA gave no certificate", url=ca.url, node=node_id, cause=str(cause))
            else:
                log.info("certificate from an external CA", url=ca.url, node=node_id, role=role.value)
                return certificate
        raise errors.UnavailableError(f"no certificate from the external CA: {'; '.join(failures)}", retry_after_s=5)

    async def _ask(self, ca: ExternalCa, wish: dict[str, Any], trusted_pem: str) -> str:
        import httpx  # only where there is such an authority: it costs several MiB

        context = self._context(ca, trusted_pem)
        answer = bytearray()
        try:
            async with (
                httpx.AsyncClient(verify=context, trust_env=False, timeout=_PATIENCE_S) as client,
                client.stream("POST", ca.url, json=wish) as response,
            ):
                async for piece in response.aiter_bytes():
                    answer += piece
                    if len(answer) > _ANSWER_BYTES_MAX:
                        raise errors.TooLargeError(f"its answer is longer than {_ANSWER_BYTES_MAX} bytes")
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as cause:
            raise errors.UnavailableError(str(cause) or type(cause).__name__) from cause
        return _certificate_in(bytes(answer), status=response.status_code)

    def _context(self, ca: ExternalCa, trusted_pem: str) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cadata=f"{trusted_pem.rstrip()}\n{ca.ca_cert}")
        except ssl.SSLError as cause:
            raise errors.UserError(f"its root certificate is not usable: {cause}") from cause
        identity = self._identity()
        if identity is not None:
            present_identity(context, identity)
        return context

    def _check(
        self,
        pem: str,
        request: x509.CertificateSigningRequest,
        root_pem: str,
        names: Sequence[x509.GeneralName],
        *,
        node_id: NodeId,
        role: NodeRole,
        cluster_id: ClusterId,
    ) -> None:
        certificate = parse_certificate(pem, what="its certificate")
        if certificate.public_key() != request.public_key():
            raise errors.UnavailableError("its certificate is for another key than was asked for")
        try:
            certificate.verify_directly_issued_by(parse_certificate(root_pem, what="root certificate"))
        except (ValueError, TypeError, InvalidSignature) as cause:
            raise errors.UnavailableError(
                "its certificate is not of the cluster's root; name the root that it signs for (cacert=FILE)"
            ) from cause
        try:
            subject = read_subject(certificate)
        except errors.UnauthorizedError as cause:
            raise errors.UnavailableError(f"its certificate has not the subject that was asked for: {cause}") from cause
        if (subject.node_id, subject.role, subject.cluster_id) != (node_id, role, cluster_id):
            raise errors.UnavailableError("its certificate is for somebody else than was asked for")
        now = self._clock.now()
        if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
            raise errors.UnavailableError(f"its certificate is not valid now ({now}): {_span(certificate)}")
        _check_extensions(certificate, names)


def _span(certificate: x509.Certificate) -> str:
    times: tuple[datetime, datetime] = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    return f"from {times[0]} to {times[1]}"


def _check_extensions(certificate: x509.Certificate, names: Sequence[x509.GeneralName]) -> None:
    try:
        extensions = certificate.extensions
        uses = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        shown = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as cause:
        raise errors.UnavailableError(f"its certificate lacks what a node's has: {cause}") from cause
    if missing := [use for use in _USES if use not in uses]:
        raise errors.UnavailableError(
            f"its certificate may not be used for {' and '.join(use._name for use in missing)}; give the profile of the "
            "authority the usages 'server auth' and 'client auth'"
        )
    if missing_names := [str(name.value) for name in names if name not in shown]:
        raise errors.UnavailableError(f"its certificate lacks the names {', '.join(missing_names)}")
    try:
        is_authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if is_authority:
        raise errors.UnavailableError("its certificate is one of an authority: a node could sign for others")


def _certificate_in(answer: bytes, *, status: int) -> str:
    """The certificate in CFSSL's answer: ``{"success": true, "result": {"certificate": PEM}, "errors": [...]}``."""
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise errors.UnavailableError(
            f"answered {status} and no JSON object: is it the address of CFSSL's sign endpoint?"
        )
    result = said.get("result")
    certificate = result.get("certificate") if isinstance(result, dict) else None
    if said.get("success") is True and isinstance(certificate, str) and certificate:
        return certificate
    problems = said.get("errors")
    messages = [
        str(problem["message"])[:200]
        for problem in (problems if isinstance(problems, list) else [])[:5]
        if isinstance(problem, dict) and problem.get("message")
    ]
    raise errors.UnavailableError(f"answered {status}: {'; '.join(messages) or 'no certificate and no reason'}")
