"""Pulling as a user does, from a real registry on the lab's network, with the daemon killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import image_registry
from support.image_layouts import layer_blob, write_layout
from support.image_trees import Entry, make_tar
from support.lab import REPOSITORY, TestLab

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not image_registry.available(), reason="not run: needs docker-registry and skopeo"),
]

LAYERS, LAYER_BYTES = 4, 50 << 20
STALL_BYTES = 30 << 20


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    return make_lab(managers=1, workers=0, swarm=False, daemon_args=("--insecure-registry", "10.0.0.0/8"))


def sizes(images: Path) -> dict[str, int]:
    """Bytes of the blobs that are half there."""
    return {path.name: path.stat().st_size for path in (images / "partial").iterdir()}


def test_a_pull_killed_with_9_goes_on_where_it_was(lab: TestLab, tmp_path: Path) -> None:
    noise = [make_tar([Entry(name=f"file{number}", body=os.urandom(LAYER_BYTES))]) for number in range(LAYERS)]
    write_layout(tmp_path / "oci", [layer_blob(layer, compression="plain") for layer in noise])
    scratch = tmp_path / "registry"
    here = lab.machine_address()
    with (
        image_registry.registry(scratch, logs_access=True) as origin,
        image_registry.stalling_proxy(origin, after_bytes=STALL_BYTES, address=here) as proxy,
    ):
        image_registry.push(tmp_path / "oci", f"{origin}/big:1")
        name = f"{proxy.address}/big:1"
        pull = subprocess.Popen(
            [sys.executable, "-m", "fleet.cli.main", "image", "pull", name],
            env=lab.command_environment("m1"), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        lab.wait_until(lambda: proxy.stalled >= 3, 60, what="three layers are under way, and half there")
        images = lab.layout.data("m1") / "images"
        # what the daemon was sent it has written, but for the last piece of a megabyte
        lab.wait_until(lambda: sum(sizes(images).values()) >= 3 * (STALL_BYTES - (1 << 20)), 60, what="it is written")
        lab.signal_daemon("m1", signal.SIGKILL)
        out, _ = pull.communicate(timeout=30)
        assert pull.returncode != 0, out
        had = sizes(images)
        assert len(had) == 3
        before = len(image_registry.requests_of(scratch))
        proxy.is_stalling = False
        lab.start_daemon("m1")
        lab.fleet("image", "pull", name)
        asked = [r for r in image_registry.requests_of(scratch)[before:] if "/blobs/" in r.path and r.status < 300]
        fetched = {r.path.rpartition("sha256:")[2]: r for r in asked if r.sent_bytes > 4096}
        assert len(fetched) == LAYERS
        for digest, size in had.items():
            whole = image_registry.blob_file(scratch, digest).stat().st_size
            assert (fetched[digest].status, fetched[digest].sent_bytes) == (206, whole - size), "only what was missing"
        assert sizes(images) == {}
        assert list((images / "pulls").iterdir()) == []
