"""Pulling as a user does, from a real registry on the lab's network, with the daemon killed on the way."""

from __future__ import annotations

import os
import shutil
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

from fleet.cli.registry_auth import auth_headers

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not image_registry.available(), reason="not run: needs docker-registry and skopeo"),
]

LAYERS, LAYER_BYTES = 4, 50 << 20
STALL_BYTES = 30 << 20


ANN, PASSWORD = "ann", "sea-shell:7"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    return make_lab(managers=1, workers=1, daemon_args=("--insecure-registry", "10.0.0.0/8"))


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


def files_with(folder: Path, needle: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_a_service_brings_its_login_to_nodes_that_never_logged_in(lab: TestLab, tmp_path: Path) -> None:
    auth = image_registry.htpasswd_auth(tmp_path, {ANN: PASSWORD})
    root = subprocess.run([REPOSITORY / "scripts/hello-image", "--tar"], check=True, capture_output=True).stdout
    for tag in ("1", "2", "3"):  # images of their own: what is on the node already needs no login
        layers = [root, make_tar([Entry(name="tag", body=tag.encode())])]
        config = {"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"]}
        write_layout(tmp_path / tag, [layer_blob(layer) for layer in layers], config=config)
    settings = tmp_path / "docker-of-ann"

    def fleet(*args: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "fleet.cli.main", *args]
        environment = {**lab.command_environment("m1"), "DOCKER_CONFIG": str(settings)}
        done = subprocess.run(
            argv, env=environment, cwd=REPOSITORY, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def create(name: str, image: str, *flags: str) -> None:
        fleet("service", "create", "-d", "--name", name, "--constraint", "node.role==worker", *flags, image)

    with image_registry.registry(tmp_path / "registry", auth=auth, address=lab.machine_address()) as address:
        for tag in ("1", "2", "3"):
            image_registry.push(tmp_path / tag, f"{address}/app:{tag}", "--dest-creds", f"{ANN}:{PASSWORD}")
        fleet("login", "-u", ANN, "--password-stdin", address, stdin=PASSWORD)
        assert (settings / "config.json").stat().st_mode & 0o777 == 0o600
        create("stranger", f"{address}/app:1")
        lab.wait_until(lambda: lab.tasks("stranger", state="rejected"), 60, what="the task is rejected")
        said = lab.tasks("stranger", state="rejected")[0]["Status"]["Err"]
        assert "no basic auth credentials" in said
        fleet("service", "rm", "stranger")

        create("app", f"{address}/app:1", "--with-registry-auth")
        lab.wait_until(lambda: lab.tasks("app"), 60, what="it runs where nobody logged in")
        (first,) = lab.tasks("app")
        fleet("service", "update", "-d", "--image", f"{address}/app:2", "app")
        lab.wait_until(
            lambda: [t["ID"] for t in lab.tasks("app")] not in ([], [first["ID"]]), 60, what="an update keeps the login"
        )
        lab.restart_daemon("w1")
        fleet("service", "update", "-d", "--force", "app")
        for said in (
            fleet("service", "inspect", "app"),
            fleet("service", "ps", "app"),
            fleet("inspect", "app", check=False),
        ):
            assert "RegistryLogin" not in said.stdout
        header = auth_headers(f"{address}/app", {"DOCKER_CONFIG": str(settings)})["X-Registry-Auth"].encode()
        for host in ("m1", "w1"):
            for needle in (PASSWORD.encode(), header[:60]):
                assert needle not in lab.log_path(host).read_bytes()
                assert files_with(lab.layout.data(host), needle) == []
        fleet("service", "rm", "app")

        if (docker := shutil.which("docker")) is not None:
            argv = [docker, "service", "create", "-q", "-d", "--with-registry-auth", "--name", "docked"]
            environment = {**lab.command_environment("m1"), "DOCKER_CONFIG": str(settings)}
            done = subprocess.run(
                [*argv, "--constraint", "node.role==worker", f"{address}/app:3"],
                env=environment, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "@sha256:" in lab.get("/services/docked")["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
            lab.wait_until(lambda: lab.tasks("docked"), 60, what="docker's service runs")
            fleet("service", "rm", "docked")
