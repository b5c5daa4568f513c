"""An authority outside the cluster: what it is asked, and what of its answers is believed."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet import errors
from fleet.clock import SystemClock
from fleet.identity.authority import RootAuthority, create_root
from fleet.identity.certificates import parse_certificate, read_subject
from fleet.identity.keys import KeyRequest, generate_request, make_identity
from fleet.identity.tls import prove_identity, server_context
from fleet.manager.admission import _founding_root
from fleet.manager.external_ca import ExternalAuthority, check_external, external_cas_of
from fleet.manager.signing import Signing
from fleet.model.cluster import CaConfig, ExternalCa
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

NOW = datetime.now(UTC)
CLUSTER = ClusterId("c" * 25)
NODE = NodeId("n" * 25)
ROOT = create_root(CLUSTER, NOW)
OTHER = create_root(CLUSTER, NOW)
DAY = timedelta(days=1)

Answer = Callable[[dict[str, Any]], bytes]


@contextmanager
def authority(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serves HTTPS on loopback as ``ROOT``'s; yields its address and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = answer(asked[-1])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    key = generate_request()
    own = ROOT.issue(
        key.csr_pem, node_id=NODE, role=NodeRole.WORKER, cluster_id=CLUSTER, lifetime=DAY, now=NOW, addresses=("127.0.0.1",)
    )  # fmt: skip
    identity = make_identity(cert_pem=own, key_pem=key.key_pem, ca_pem=ROOT.cert_pem)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = server_context(identity, client_certificates="optional")
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/api/v1/cfssl/sign", asked
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def signed(certificate: str) -> bytes:
    return json.dumps({"success": True, "result": {"certificate": certificate}, "errors": [], "messages": []}).encode()


def honest(root: RootAuthority = ROOT, **changes: Any) -> Answer:
    """Signs what it is asked for, but for the changes."""

    def answer(wish: dict[str, Any]) -> bytes:
        names = wish["subject"]["names"][0]
        told = {
            "node_id": NodeId(wish["subject"]["CN"]),
            "role": NodeRole.MANAGER if names["OU"] == "swarm-manager" else NodeRole.WORKER,
            "cluster_id": ClusterId(names["O"]),
            "addresses": tuple(wish["hosts"][2:]),
            "lifetime": DAY,
            "now": NOW,
        }
        return signed(root.issue(wish["certificate_request"], **{**told, **changes}))

    return answer


def by_hand(*, ca: bool, usages: bool) -> Answer:
    """A certificate that ``RootAuthority`` would never make."""

    def answer(wish: dict[str, Any]) -> bytes:
        request = x509.load_pem_x509_csr(wish["certificate_request"].encode())
        model = parse_certificate(json.loads(honest()(wish))["result"]["certificate"], what="model")
        root_key = serialization.load_pem_private_key(ROOT.key_pem.encode(), password=None)
        assert isinstance(root_key, ec.EllipticCurvePrivateKey)
        builder = (
            x509.CertificateBuilder(extensions=[])
            .subject_name(model.subject).issuer_name(model.issuer).public_key(request.public_key())
            .serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(model.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
        )  # fmt: skip
        if usages:
            uses = model.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            builder = builder.add_extension(uses, critical=False)
        else:
            only = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(only, critical=False)
        return signed(builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode())

    return answer


def ask(*urls: str, key: KeyRequest | None = None) -> str:
    cas = [ExternalCa(protocol="cfssl", url=url) for url in urls]
    return asyncio.run(
        ExternalAuthority(SystemClock()).issue(
            cas,
            (key or generate_request()).csr_pem,
            root_pem=ROOT.cert_pem,
            trusted_pem=ROOT.cert_pem,
            node_id=NODE,
            role=NodeRole.MANAGER,
            cluster_id=CLUSTER,
            addresses=("10.0.0.7",),
        )
    )


def test_its_certificate_is_as_good_as_one_of_the_clusters_own() -> None:
    key = generate_request()
    with authority(honest()) as (url, asked):
        pem = ask(url, key=key)
    prove_identity(make_identity(cert_pem=pem, key_pem=key.key_pem, ca_pem=ROOT.cert_pem))
    assert read_subject(parse_certificate(pem, what="answer")).role is NodeRole.MANAGER
    assert asked[0]["hosts"] == [NODE, "fleet-node", "10.0.0.7"]
    assert asked[0]["subject"] == {"CN": NODE, "names": [{"O": CLUSTER, "OU": "swarm-manager"}]}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (honest(OTHER), "not of the cluster's root"),
        (honest(node_id=NodeId("m" * 25)), "for somebody else"),
        (honest(role=NodeRole.WORKER), "for somebody else"),
        (honest(cluster_id=ClusterId("d" * 25)), "for somebody else"),
        (honest(addresses=()), "lacks the names 10.0.0.7"),
        (honest(now=NOW - 5 * DAY), "not valid now"),
        (by_hand(ca=True, usages=True), "one of an authority"),
        (by_hand(ca=False, usages=False), "may not be used for clientAuth"),
        (lambda wish: honest()({**wish, "certificate_request": generate_request().csr_pem}), "another key"),
        (lambda _: b"<html>", "no JSON object"),
        (lambda _: b"[" * 100_000, "no JSON object"),
        (lambda _: b"[]", "no JSON object"),
        (lambda _: b'{"success": true, "result": null}', "no certificate and no reason"),
        (lambda _: b'{"success": true, "result": {"certificate": "junk"}}', "not a certificate"),
        (lambda _: b'{"success": false, "errors": [{"code": 1, "message": "policy says no"}]}', "policy says no"),
        (lambda _: b'{"success": false, "errors": [7, {"message": null}]}', "no certificate and no reason"),
        (lambda _: b" " * 300_000, "longer than"),
    ],
)
def test_nothing_in_an_answer_is_believed(answer: Answer, words: str) -> None:
    with authority(answer) as (url, _), pytest.raises(errors.UnavailableError, match=words) as caught:
        ask(url)
    assert url in str(caught.value)


def test_the_next_one_is_asked_when_one_fails_and_all_are_named_when_none_signs() -> None:
    with authority(honest()) as (good, asked), authority(honest(OTHER)) as (bad, _):
        assert ask("https://127.0.0.1:1/sign", bad, good)
        assert len(asked) == 1
        with pytest.raises(errors.UnavailableError) as caught:
            ask("https://127.0.0.1:1/sign", bad)
        assert "127.0.0.1:1" in str(caught.value) and bad in str(caught.value)


def test_an_address_that_somebody_else_vouches_for_is_told_nothing() -> None:
    with authority(honest()) as (url, asked):
        cas = (ExternalCa(protocol="cfssl", url=url),)
        with pytest.raises(errors.UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            asyncio.run(
                ExternalAuthority(SystemClock()).issue(
                    cas,
                    generate_request().csr_pem,
                    root_pem=OTHER.cert_pem,
                    trusted_pem=OTHER.cert_pem,
                    node_id=NODE,
                    role=NodeRole.WORKER,
                    cluster_id=CLUSTER,
                )
            )
    assert not asked


@pytest.mark.parametrize(
    ("ca", "words"),
    [
        (ExternalCa(protocol="acme", url="https://ca/sign"), "only cfssl"),
        (ExternalCa(protocol="cfssl", url="http://ca/sign"), "expected the address"),
        (ExternalCa(protocol="cfssl", url="https:///sign"), "expected the address"),
        (ExternalCa(protocol="cfssl", url="https://user:word@ca/sign"), "expected the address"),
        (ExternalCa(protocol="cfssl", url="https://[::1/sign"), "expected the address"),
        (ExternalCa(protocol="cfssl", url="https://ca/sign", ca_cert="junk"), "not a certificate"),
        (ExternalCa(protocol="cfssl", url="https://ca/sign", options={"label": "x"}), "unknown options label"),
    ],
)
def test_what_cannot_serve_is_refused(ca: ExternalCa, words: str) -> None:
    with pytest.raises(errors.UserError, match=words):
        check_external([ca])


def test_one_that_names_no_root_signs_for_the_present_one() -> None:
    nameless = ExternalCa(protocol="cfssl", url="https://a/sign")
    named = ExternalCa(protocol="cfssl", url="https://b/sign", ca_cert=OTHER.cert_pem.replace("\n", "\r\n"))
    cas = (nameless, named)
    assert external_cas_of(cas, root_pem=ROOT.cert_pem, present_root_pem=ROOT.cert_pem) == (nameless,)
    assert external_cas_of(cas, root_pem=OTHER.cert_pem, present_root_pem=ROOT.cert_pem) == (named,)


def test_a_key_in_the_state_is_no_fallback_for_an_authority_that_is_away() -> None:
    away = CaConfig(external_cas=(ExternalCa(protocol="cfssl", url="https://127.0.0.1:1/sign"),))

    def prove(root: RootAuthority, config: CaConfig) -> None:
        both = f"{ROOT.cert_pem}{OTHER.cert_pem}"
        asyncio.run(Signing(SystemClock()).prove(root, config=config, trusted_pem=both, cluster_id=CLUSTER))

    prove(ROOT, CaConfig())
    prove(OTHER, away)  # that one signs for the present root
    with pytest.raises(errors.UnavailableError, match=r"127\.0\.0\.1:1"):
        prove(ROOT, away)
    with pytest.raises(errors.UnavailableError, match="nobody signs"):
        prove(RootAuthority(cert_pem=OTHER.cert_pem), away)


def test_a_swarm_begins_with_the_root_it_is_told() -> None:
    ca = ExternalCa(protocol="cfssl", url="https://ca/sign")
    named = ExternalCa(protocol="cfssl", url="https://ca/sign", ca_cert=OTHER.cert_pem)
    assert _founding_root(CLUSTER, CaConfig(external_cas=(named,)), NOW) == RootAuthority(cert_pem=OTHER.cert_pem)
    given = CaConfig(signing_ca_cert=OTHER.cert_pem, signing_ca_key=OTHER.key_pem)
    assert _founding_root(CLUSTER, given, NOW) == OTHER
    with pytest.raises(errors.UserError, match="needs the root certificate"):
        _founding_root(CLUSTER, CaConfig(external_cas=(ca,)), NOW)
