"""Mirrors before the registry, registries with authorities of their own, registries that lie or are busy."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.clocks import SleepingTimers

from fleet.errors import FleetError, RejectedFault, UnavailableError
from fleet.images import Credentials, Image, ImageStore, RegistryOptions, RegistryTarget
from fleet.images.registry import parse_mirrors, registry_sources
from tests.support import image_registry
from tests.support.image_layouts import layer_blob, write_layout
from tests.support.image_trees import Entry, make_tar

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not image_registry.available(), reason="needs docker-registry and skopeo (apt install both)"),
]

DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layout") / "oci"
    write_layout(folder, [layer_blob(make_tar([Entry(name="data", body=os.urandom(5000))]))])
    return folder


class Patient(SleepingTimers):
    """A clock whose sleeps take no time and are counted."""

    def __init__(self) -> None:
        from fleet.clock import SystemClock

        self._real = SystemClock()
        self.now, self.monotonic = self._real.now, self._real.monotonic
        self.slept: list[float] = []

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        await asyncio.sleep(0)


def pull(
    root: Path,
    reference: str,
    options: RegistryOptions,
    *,
    credentials: Credentials | None = None,
    clock: Any = None,
) -> Image:
    async def scenario() -> Image:
        store = await ImageStore.open(root, clock=clock, rng=random.Random(1))
        sources = registry_sources(reference, credentials=credentials, options=options)
        try:
            return await store.fetch(reference, sources)
        finally:
            for source in sources:
                await source.aclose()
            await store.close()

    return asyncio.run(scenario())


def blobs_asked_of(scratch: Path) -> int:
    return sum("/blobs/" in item.path and item.status == 200 for item in image_registry.requests_of(scratch))


def test_a_mirror_is_asked_first_and_the_registry_where_it_fails(layout: Path, tmp_path: Path) -> None:
    m, o = tmp_path / "mirror", tmp_path / "origin"
    with (
        image_registry.registry(m, logs_access=True) as mirror,
        image_registry.registry(o, logs_access=True) as origin,
    ):
        image_registry.push(layout, f"{origin}/team/app:1")
        image_registry.push(layout, f"{mirror}/team/app:1")
        image_registry.push(layout, f"{origin}/team/other:1")
        blobs = [blobs_asked_of(m), blobs_asked_of(o)]

        options = RegistryOptions(mirrors=parse_mirrors([f"{origin}=http://{mirror}"]))
        image = pull(tmp_path / "a", f"{origin}/team/app:1", options)
        assert image.references == (f"{origin}/team/app:1",), "the name is the registry's"
        assert [blobs_asked_of(m), blobs_asked_of(o)] == [blobs[0] + 2, blobs[1]]

        pull(tmp_path / "b", f"{origin}/team/other:1", options)  # the mirror does not have it
        assert [blobs_asked_of(m), blobs_asked_of(o)] == [blobs[0] + 2, blobs[1] + 2]

        options = RegistryOptions(mirrors=parse_mirrors([f"{origin}={DEAD}", f"{origin}=http://{mirror}"]))
        pull(tmp_path / "c", f"{origin}/team/app:1", options)  # the first mirror is dead, the second is asked
        assert [blobs_asked_of(m), blobs_asked_of(o)] == [blobs[0] + 4, blobs[1] + 2]

        options = RegistryOptions(mirrors=parse_mirrors([f"{origin}={DEAD}"]))
        pull(tmp_path / "d", f"{origin}/team/app:1", options)
        assert blobs_asked_of(o) == blobs[1] + 4


class Liar:
    """A registry with one image that answers as it is told: ``lies`` maps a part of the path to (status, headers, body) or to
    a list of them, used up one a request; then the truth."""

    def __init__(self, layout: Path, lies: dict[str, Any]) -> None:
        self.asked: list[tuple[str, str]] = []
        entry = json.loads((layout / "index.json").read_text())["manifests"][0]
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: Any) -> None:
                pass

            def do_GET(self) -> None:
                owner.asked.append((self.path, self.headers.get("Authorization", "")))
                for part, lie in lies.items():
                    if part in self.path and lie:
                        self.answer(*(lie.pop(0) if isinstance(lie, list) else lie))
                        return
                digest = entry["digest"] if "/manifests/" in self.path else self.path.rpartition("/")[2]
                kind = entry["mediaType"] if "/manifests/" in self.path else "application/octet-stream"
                path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
                body = path.read_bytes() if path.is_file() else b"{}"
                self.answer(200, {"Content-Type": kind}, body)

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @contextmanager
    def serving(self) -> Iterator[Liar]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def parts_of(layout: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Manifest entry, manifest, bytes of the layer."""
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    manifest = json.loads((layout / "blobs/sha256" / entry["digest"].removeprefix("sha256:")).read_bytes())
    layer = (layout / "blobs/sha256" / manifest["layers"][0]["digest"].removeprefix("sha256:")).read_bytes()
    return entry, manifest, layer


def test_lying_registries_are_found_out_and_nothing_of_theirs_stays(layout: Path, tmp_path: Path) -> None:
    entry, manifest, layer = parts_of(layout)
    digest = manifest["layers"][0]["digest"]
    oci = {"Content-Type": entry["mediaType"]}
    both = json.dumps({**manifest, "manifests": []}).encode()
    index = "application/vnd.oci.image.index.v1+json"
    unsized = json.dumps({**manifest, "layers": [{**manifest["layers"][0], "size": len(layer) - 1}]}).encode()
    for what, lies, why in (
        ("other bytes", {digest: (200, {}, layer[:-1] + b"?")}, "content has digest"),
        ("a longer layer", {digest: (200, {}, layer + b"more")}, "longer than"),
        ("another digest", {"/manifests/": (200, {**oci, "Docker-Content-Digest": digest}, both)}, "has digest"),
        ("an index and a manifest", {"/manifests/": (200, oci, both)}, "both an index and a manifest"),
        ("an index by its header", {"/manifests/": (200, {"Content-Type": index}, both)}, "says it is"),
        ("no type", {"/manifests/": (200, {}, both)}, "is not an image"),
        ("a wrong size", {"/manifests/": (200, oci, unsized)}, "longer than"),
    ):
        with Liar(layout, lies).serving() as liar:
            root = tmp_path / hashlib.sha256(what.encode()).hexdigest()[:8]
            with pytest.raises(RejectedFault, match=why):
                pull(root, f"{liar.address}/app:1", RegistryOptions())
            left = [path for part in ("partial", "ingest", "pulls", "blobs/sha256") for path in (root / part).iterdir()]
            assert left == [], what


def test_a_lying_mirror_is_passed_over(layout: Path, tmp_path: Path) -> None:
    _, manifest, layer = parts_of(layout)
    lies = {manifest["layers"][0]["digest"]: (200, {}, layer[:-1] + b"?")}
    with Liar(layout, lies).serving() as mirror, Liar(layout, {}).serving() as origin:
        options = RegistryOptions(mirrors=parse_mirrors([f"{origin.address}=http://{mirror.address}"]))
        image = pull(tmp_path, f"{origin.address}/app:1", options)
        assert (image.layer_dirs[0] / "data").stat().st_size == 5000


def test_a_mirror_never_sees_the_login_of_the_registry(layout: Path, tmp_path: Path) -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    with (
        Liar(layout, {"/manifests/": (401, challenge, b"")}).serving() as mirror,
        Liar(layout, {"/manifests/": [(401, challenge, b"")]}).serving() as origin,
    ):
        options = RegistryOptions(mirrors=parse_mirrors([f"{origin.address}=http://{mirror.address}"]))
        login = Credentials(username="ann", password="sea")
        pull(tmp_path, f"{origin.address}/app:1", options, credentials=login)
        assert {said for _, said in mirror.asked} == {""}
        assert {said for path, said in origin.asked if "/blobs/" in path} <= {"", "Basic YW5uOnNlYQ=="}
        assert ("/v2/app/manifests/1", "Basic YW5uOnNlYQ==") in origin.asked


def test_a_busy_registry_is_asked_again_when_it_says(layout: Path, tmp_path: Path) -> None:
    _, manifest, layer = parts_of(layout)
    lies = {
        "/manifests/": [(429, {"Retry-After": "7"}, b"slow down"), (503, {}, b"")],
        manifest["layers"][0]["digest"]: [
            (500, {}, b""),
            (502, {"Retry-After": "3"}, b""),
            (200, {"Content-Length": str(len(layer))}, layer[:100]),  # cut off
        ],
    }
    clock = Patient()
    with Liar(layout, lies).serving() as busy:
        pull(tmp_path, f"{busy.address}/app:1", RegistryOptions(), clock=clock)
    assert len(clock.slept) == 5
    assert 7.0 in clock.slept
    assert 3.0 in clock.slept
    assert all(0 < delay < 2 for delay in clock.slept if delay not in {7.0, 3.0})


def test_one_that_stays_busy_is_given_up_and_says_so(layout: Path, tmp_path: Path) -> None:
    clock = Patient()
    with (
        Liar(layout, {"/manifests/": (429, {"Retry-After": "9999"}, b"go away")}).serving() as busy,
        pytest.raises(UnavailableError, match=r"HTTP 429: go away"),
    ):
        pull(tmp_path, f"{busy.address}/app:1", RegistryOptions(), clock=clock)
    assert clock.slept == [60.0, 60.0], "no more than a minute each time"


def test_a_push_is_tried_again(layout: Path, tmp_path: Path) -> None:
    """The registry behind a proxy that refuses each kind of request once."""
    with image_registry.registry(tmp_path / "r") as address:
        image_registry.push(layout, f"{address}/app:1")
        with image_registry.refusing_proxy(address, status=503) as proxy:
            clock = Patient()

            async def scenario() -> None:
                store = await ImageStore.open(tmp_path / "a", clock=clock)
                name = f"{proxy.address}/copy:1"
                sources = registry_sources(f"{address}/app:1", options=RegistryOptions())
                await store.fetch(f"{address}/app:1", sources)
                await store.tag(f"{address}/app:1", name)
                target = RegistryTarget(name)
                try:
                    await store.push(name, target)
                finally:
                    for source in (*sources, target):
                        await source.aclose()
                    await store.close()

            asyncio.run(scenario())
            assert proxy.refused == {"HEAD", "POST", "PUT"}
            assert clock.slept
        assert pull(tmp_path / "b", f"{address}/copy:1", RegistryOptions()).size_bytes == 5000


def test_own_authorities_are_read_from_a_folder_per_registry(layout: Path, tmp_path: Path) -> None:
    from tests.kernel.test_images_registry import _self_signed

    (tmp_path / "key").mkdir()
    certificate = _self_signed(tmp_path / "key")
    tls = f", tls: {{certificate: {certificate}, key: {tmp_path}/key/key.pem}}"
    with image_registry.registry(tmp_path / "registry", tls=tls) as address:
        image_registry.push(layout, f"{address}/tls:1")
        folder = tmp_path / "certs.d" / address
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(certificate.read_bytes())
        options = RegistryOptions(certificates=tmp_path / "certs.d")
        assert pull(tmp_path / "a", f"{address}/tls:1", options).size_bytes == 5000

        other = tmp_path / "other"
        other.mkdir()
        (folder / "ca.crt").write_bytes(_self_signed(other).read_bytes())
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            pull(tmp_path / "b", f"{address}/tls:1", options)
        (folder / "ca.crt").write_text("nonsense")
        with pytest.raises(FleetError, match=r"certificates of registry .*ca\.crt"):
            pull(tmp_path / "c", f"{address}/tls:1", options)
