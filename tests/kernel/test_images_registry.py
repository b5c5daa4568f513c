"""Pulling from a real registry (Debian's docker-registry), filled by skopeo: formats, platforms, logins, TLS, breaks."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import ipaddress
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.errors import NotFoundError, RejectedFault, UnauthorizedError, UnavailableError
from fleet.images import (
    Credentials,
    Image,
    ImageStore,
    Platform,
    RegistryOptions,
    RegistrySource,
    RegistryTarget,
    parse_registry_auth,
)
from fleet.images.inspect import distribution_inspect
from tests.support import image_registry
from tests.support.image_layouts import layer_blob, write_layout
from tests.support.image_trees import Entry, make_tar
from tests.support.images import busybox_rootfs_tar

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not image_registry.available(), reason="needs docker-registry and skopeo (apt install both)"),
]

SECOND = make_tar([Entry(name="etc/second", body=b"second")])


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("layout")
    busybox_rootfs_tar(base / "rootfs.tar", applets=False)
    write_layout(base / "oci", [layer_blob((base / "rootfs.tar").read_bytes()), layer_blob(SECOND, compression="zstd")])
    write_layout(base / "docker", [layer_blob((base / "rootfs.tar").read_bytes()), layer_blob(SECOND)])
    return base


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[str]:
    with image_registry.registry(tmp_path_factory.mktemp("registry")) as address:
        image_registry.push(layout / "oci", f"{address}/oci:1")
        image_registry.push(layout / "docker", f"{address}/team/docker:1", "--format", "v2s2")
        yield address


def pull(
    root: Path,
    reference: str,
    *,
    credentials: Credentials | None = None,
    options: RegistryOptions | None = None,
    platform: Platform | None = None,
) -> Image:
    async def scenario() -> Image:
        store = await ImageStore.open(root, platform=platform)
        source = RegistrySource(reference, credentials=credentials, options=options)
        try:
            image = await store.fetch(reference, [source])
            assert store.get(reference) == image
            return image
        finally:
            await source.aclose()
            await store.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("name", ["oci:1", "team/docker:1"])
def test_pulls_by_tag_and_by_digest(name: str, open_registry: str, tmp_path: Path) -> None:
    image = pull(tmp_path / "a", f"{open_registry}/{name}")
    assert (image.layer_dirs[0] / "etc/second").read_bytes() == b"second"
    assert (image.layer_dirs[1] / "bin/busybox").stat().st_mode & 0o777 == 0o755
    assert image.references == (f"{open_registry}/{name}",)
    assert image.repo_digests == (f"{open_registry}/{name.partition(':')[0]}@{image.manifest_digest}",)
    again = pull(tmp_path / "b", image.repo_digests[0])
    assert (again.id, again.references) == (image.id, ())


def test_pulls_the_platform_of_the_host_from_an_index(open_registry: str, layout: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    entries = []
    for architecture in ("amd64", "arm64"):
        blob = layer_blob(make_tar([Entry(name="arch", body=architecture.encode())]))
        write_layout(both, [blob], architecture=architecture)
    manifests = json.loads((both / "index.json").read_text())["manifests"]
    for entry in manifests:
        entry.pop("annotations")
        entries.append(entry)
    body = json.dumps(
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    ).encode()
    digest = hashlib.sha256(body).hexdigest()
    (both / "blobs/sha256" / digest).write_bytes(body)
    descriptor = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": f"sha256:{digest}",
        "size": len(body),
        "annotations": {"org.opencontainers.image.ref.name": "tiny"},
    }
    (both / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    reference = f"{open_registry}/multi:1"
    image_registry.push(both, reference, "--all")

    for architecture in ("amd64", "arm64"):
        image = pull(tmp_path / architecture, reference, platform=Platform(os="linux", architecture=architecture))
        assert (image.layer_dirs[0] / "arch").read_text() == architecture
        assert image.repo_digests == (f"{open_registry}/multi@sha256:{digest}",)
    with pytest.raises(RejectedFault, match=r"no matching manifest for linux/s390x .* linux/amd64, linux/arm64"):
        pull(tmp_path / "s390x", reference, platform=Platform(os="linux", architecture="s390x"))

    async def ask() -> dict[str, object]:
        source = RegistrySource(reference)
        try:
            return await distribution_inspect(reference, source)
        finally:
            await source.aclose()

    told = asyncio.run(ask())
    assert told["Descriptor"] == {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": f"sha256:{digest}",
        "size": len(body),
    }
    assert told["Platforms"] == [{"architecture": a, "os": "linux"} for a in ("amd64", "arm64")]


def test_says_what_does_not_exist(open_registry: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent:9"):
        pull(tmp_path, f"{open_registry}/absent:9")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
        pull(tmp_path, "127.0.0.1:9/nobody:1")


def test_a_name_and_password_are_asked_for_and_used(layout: Path, tmp_path: Path) -> None:
    auth = image_registry.htpasswd_auth(tmp_path, {"user": "pass"})
    with image_registry.registry(tmp_path / "registry", auth=auth) as address:
        image_registry.push(layout / "docker", f"{address}/private:1", "--dest-creds", "user:pass")
        with pytest.raises(UnauthorizedError, match="wants a login"):
            pull(tmp_path / "a", f"{address}/private:1")
        with pytest.raises(UnauthorizedError, match="401"):
            pull(tmp_path / "a", f"{address}/private:1", credentials=Credentials(username="user", password="no"))
        header = base64.urlsafe_b64encode(b'{"username":"user","password":"pass","serveraddress":"x"}').decode()
        image = pull(tmp_path / "a", f"{address}/private:1", credentials=parse_registry_auth(header))
        assert len(image.layer_dirs) == 2


def test_a_bearer_token_is_fetched_with_the_scope_that_was_asked_for(layout: Path, tmp_path: Path) -> None:
    basic = "Basic " + base64.b64encode(b"user:pass").decode()
    with image_registry.registry(tmp_path / "fill") as filling:
        image_registry.push(layout / "docker", f"{filling}/team/private:1")
    (tmp_path / "registry").mkdir()
    (tmp_path / "fill/data").rename(tmp_path / "registry/data")
    with image_registry.TokenService(authorization=basic) as tokens:
        auth = f"auth: {{silly: {{realm: '{tokens.url}', service: here}}}}\n"
        with image_registry.registry(tmp_path / "registry", auth=auth) as address:
            reference = f"{address}/team/private:1"
            with pytest.raises(UnauthorizedError, match="wrong password"):
                pull(tmp_path / "a", reference, credentials=Credentials(username="user", password="no"))
            image = pull(tmp_path / "a", reference, credentials=Credentials(username="user", password="pass"))
            assert image.references == (reference,)
            assert set(tokens.requests[1:]) == {(basic, "repository:team/private:pull", "here")}
            assert len(tokens.requests) == 2, "the token is kept for blobs"


def test_a_download_that_breaks_off_goes_on_where_it_stopped(open_registry: str, tmp_path: Path) -> None:
    with image_registry.cutting_proxy(open_registry, cut_bytes=300_000) as proxy:
        image = pull(tmp_path, f"{proxy.address}/team/docker:1")
        assert (image.layer_dirs[1] / "bin/busybox").exists()
        starts = [int(text.removeprefix("bytes=").rstrip("-")) for text in proxy.ranges]
        assert starts
        assert starts == sorted(set(starts))


def test_pushed_image_is_pulled_back_the_same(open_registry: str, layout: Path, tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield (layout / "rootfs.tar").read_bytes()

    async def scenario() -> Image:
        store = await ImageStore.open(tmp_path / "a")
        name = f"{open_registry}/pushed/by-fleet:1"
        image = await store.import_tar(chunks(), reference=name, changes=["CMD sh"])
        stages: list[list[str]] = []
        for _ in range(2):
            target = RegistryTarget(name)
            stages.append([])
            manifest = await store.push(name, target, progress=lambda step: stages[-1].append(step.stage))
            assert manifest.digest == image.manifest_digest
            with pytest.raises(NotFoundError):
                await store.push("absent:1", target)
            await target.aclose()
        assert set(stages[0]) == {"pushing", "pushed"}
        assert set(stages[1]) == {"exists"}, "what is there is not sent again"
        await store.close()
        return image

    image = asyncio.run(scenario())
    again = pull(tmp_path / "b", f"{open_registry}/pushed/by-fleet:1")
    assert (again.id, again.manifest_digest, again.config) == (image.id, image.manifest_digest, image.config)


def test_push_logs_in(tmp_path: Path) -> None:
    auth = image_registry.htpasswd_auth(tmp_path, {"user": "pass"})

    async def chunks() -> AsyncIterator[bytes]:
        yield SECOND

    async def scenario(address: str) -> None:
        store = await ImageStore.open(tmp_path / "a")
        await store.import_tar(chunks(), reference=f"{address}/x:1")
        for credentials in (None, Credentials(username="user", password="no")):
            target = RegistryTarget(f"{address}/x:1", credentials=credentials)
            with pytest.raises(UnauthorizedError):
                await store.push(f"{address}/x:1", target)
            await target.aclose()
        target = RegistryTarget(f"{address}/x:1", credentials=Credentials(username="user", password="pass"))
        await store.push(f"{address}/x:1", target)
        await target.aclose()
        await store.close()

    with image_registry.registry(tmp_path / "registry", auth=auth) as address:
        asyncio.run(scenario(address))
        pull(tmp_path / "b", f"{address}/x:1", credentials=Credentials(username="user", password="pass"))


def test_credentials_stay_with_the_registry_when_it_redirects_to_another_host() -> None:
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

        def do_GET(self) -> None:
            seen.append((self.headers["Host"].partition(":")[0], self.headers.get("Authorization", "")))
            if self.headers["Host"].startswith("localhost"):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"content")
            elif "Authorization" not in self.headers:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
                self.end_headers()
            else:
                self.send_response(307)
                self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/elsewhere")
                self.end_headers()

    async def scenario(port: int) -> bytes:
        source = RegistrySource(f"127.0.0.1:{port}/app:1", credentials=Credentials(username="u", password="p"))
        try:
            return b"".join([data async for data in source.blob("sha256:" + "1" * 64)])
        finally:
            await source.aclose()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        assert asyncio.run(scenario(server.server_address[1])) == b"content"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert seen == [("127.0.0.1", ""), ("127.0.0.1", "Basic dTpw"), ("localhost", "")]


def test_tls_is_verified_against_the_authority_given(layout: Path, tmp_path: Path) -> None:
    certificate = _self_signed(tmp_path)
    tls = f", tls: {{certificate: {tmp_path}/cert.pem, key: {tmp_path}/key.pem}}"
    with image_registry.registry(tmp_path / "registry", tls=tls) as address:
        image_registry.push(layout / "docker", f"{address}/tls:1")
        trusting = ssl.create_default_context(cafile=str(certificate))
        image = pull(tmp_path / "a", f"{address}/tls:1", options=RegistryOptions(ssl_contexts={address: trusting}))
        assert image.references == (f"{address}/tls:1",)
        stranger = ssl.create_default_context()
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            pull(tmp_path / "b", f"{address}/tls:1", options=RegistryOptions(ssl_contexts={address: stranger}))
        assert pull(tmp_path / "c", f"{address}/tls:1").id == image.id, "loopback is trusted as Docker trusts it"


def _self_signed(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry under test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (directory / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory / "cert.pem"
