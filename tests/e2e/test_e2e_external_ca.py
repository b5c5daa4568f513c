"""A real CFSSL signs the nodes' certificates, and the root's key is outside the cluster (SEC-06)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.lab import TestLab

from fleet.clock import SystemClock
from fleet.identity.authority import RootAuthority, create_root
from fleet.identity.keys import generate_request, issuing_root, load_identity
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

pytestmark = [pytest.mark.e2e, pytest.mark.story]

OUTSIDE = ClusterId("c" * 25)
PROFILE = {"signing": {"default": {"expiry": "48h", "usages": ["digital signature", "server auth", "client auth"]}}}


class Cfssl:
    """The authority's program, on the machine that the lab is on; it asks its callers for certificates of ``clients_pem``."""

    def __init__(self, lab: TestLab, folder: Path, root: RootAuthority) -> None:
        self._folder = folder
        self.root = root
        self._address = lab.machine_address()
        with socket.create_server((self._address, 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"https://{self._address}:{self._port}/api/v1/cfssl/sign"
        self._process: subprocess.Popen[bytes] | None = None
        key = generate_request()
        own = root.issue(
            key.csr_pem, node_id=NodeId("a" * 25), role=NodeRole.WORKER, cluster_id=OUTSIDE, addresses=(self._address,),
            lifetime=timedelta(days=1), now=SystemClock().now(),
        )  # fmt: skip
        for name, text in (
            ("root.pem", root.cert_pem),
            ("root-key.pem", root.key_pem),
            ("own.pem", own),
            ("own-key.pem", key.key_pem),
            ("profile.json", json.dumps(PROFILE)),
        ):
            (folder / name).write_text(text)
        self.flag = f"protocol=cfssl,url={self.url},cacert={folder / 'root.pem'}"

    def start(self, *, clients_pem: str = "") -> None:
        argv = ["cfssl", "serve", "-address", self._address, "-port", str(self._port), "-config", "profile.json"]
        argv += ["-ca", "root.pem", "-ca-key", "root-key.pem", "-tls-cert", "own.pem", "-tls-key", "own-key.pem"]
        if clients_pem:
            (self._folder / "clients.pem").write_text(clients_pem)
            argv += ["-mutual-tls-ca", "clients.pem"]
        with (self._folder / "cfssl.log").open("ab") as log:
            self._process = subprocess.Popen(argv, cwd=self._folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((self._address, self._port), timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self._process.poll() is None, "cfssl does not listen"
                time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def signed(self) -> int:
        return (self._folder / "cfssl.log").read_text().count("signed certificate with serial number")


@pytest.fixture(scope="module")
def cluster(make_lab: object) -> TestLab:
    if shutil.which("cfssl") is None:
        pytest.skip("not run: needs cfssl (package golang-cfssl; scripts/setup installs it)")
    assert callable(make_lab)
    made = make_lab(managers=1, workers=2)
    assert isinstance(made, TestLab)
    made.load_hello()
    return made


@pytest.fixture(scope="module")
def cfssl(cluster: TestLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cfssl]:
    made = Cfssl(cluster, tmp_path_factory.mktemp("cfssl"), create_root(OUTSIDE, SystemClock().now()))
    yield made
    made.stop()


def identity_of(lab: TestLab, host: str) -> Any:
    identity = load_identity(Path(lab.layout.data(host)) / "swarm" / "identity")
    assert identity is not None
    return identity


def token(lab: TestLab) -> str:
    return lab.fleet("swarm", "join-token", "-q", "worker").stdout.strip()


def rejoin(lab: TestLab, host: str, *, check: bool = True) -> str:
    if lab.get("/info", host=host)["Swarm"]["LocalNodeState"] != "inactive":
        lab.fleet("swarm", "leave", "--force", host=host)
    return lab.fleet(
        "swarm", "join", "--token", token(lab), f"{lab.address('m1')}:2377", host=host, check=check
    ).stderr  # fmt: skip


def test_an_authority_that_does_not_sign_is_not_taken(cluster: TestLab, cfssl: Cfssl) -> None:
    before = cluster.get("/swarm")
    rotate = ("swarm", "ca", "--rotate", "--ca-cert", str(Path(cfssl.flag.rpartition("=")[2])))
    said = cluster.fleet(*rotate, check=False)
    assert said.returncode == 2 and "--external-ca" in said.stderr
    said = cluster.fleet(*rotate, "--external-ca", cfssl.flag, check=False)
    assert said.returncode == 1 and cfssl.url in said.stderr, "nobody listens there yet"
    for flag, words in (
        ("protocol=acme,url=https://x", "only cfssl"),
        ("protocol=cfssl", "url missing"),
        ("protocol=cfssl,url=http://x/sign", "expected the address"),
        ("protocol=cfssl,url=https://x/sign,cacert=/nowhere", "/nowhere"),
        (f"protocol=cfssl,url={cfssl.url}", "no certificate from the external CA"),
    ):
        said = cluster.fleet("swarm", "update", "--external-ca", flag, check=False)
        assert said.returncode != 0 and words in said.stderr, said.stderr
    assert cluster.get("/swarm")["Spec"] == before["Spec"]


def test_the_root_moves_out_and_every_certificate_comes_from_outside(cluster: TestLab, cfssl: Cfssl) -> None:
    cfssl.start(clients_pem=cluster.fleet("swarm", "ca").stdout + cfssl.root.cert_pem)
    root_file = cfssl.flag.rpartition("=")[2]
    cluster.fleet("swarm", "ca", "--rotate", "--ca-cert", root_file, "--external-ca", cfssl.flag, timeout_s=90)
    for host in ("m1", "w1", "w2"):
        assert issuing_root(identity_of(cluster, host)).strip() == cfssl.root.cert_pem.strip()
    assert cfssl.signed() >= 4, "the trial and one for each node"
    shown = cluster.get("/swarm")
    assert shown["Spec"]["CAConfig"]["ExternalCAs"][0]["URL"] == cfssl.url
    assert "KEY" not in json.dumps(shown)
    before = cfssl.signed()
    rejoin(cluster, "w2")
    assert cfssl.signed() == before + 1
    lifetime = identity_of(cluster, "w2").not_after - SystemClock().now()
    assert 40 * 3600 < lifetime.total_seconds() < 50 * 3600, "how long is for the authority to say"


def test_without_the_authority_nobody_joins_and_what_runs_goes_on(cluster: TestLab, cfssl: Cfssl) -> None:
    cluster.fleet("service", "create", "--name", "web", "--replicas", "3", "fleet/hello:1", "sleep", "1000")
    tasks = {task["ID"] for task in cluster.tasks("web")}
    cfssl.stop()
    said = rejoin(cluster, "w2", check=False)
    assert cfssl.url in said and "no certificate from the external CA" in said
    assert cluster.get("/info", host="w2")["Swarm"]["LocalNodeState"] == "inactive"
    left = [t for t in cluster.tasks("web") if t["ID"] in tasks and t["DesiredState"] == "running"]
    assert left, "tasks of the other hosts go on"
    said = cluster.fleet(
        "swarm", "update", "--external-ca", "protocol=cfssl,url=https://127.0.0.1:1/s", check=False
    ).stderr
    assert "127.0.0.1:1" in said, "nobody could sign after that"
    cfssl.start(clients_pem=cfssl.root.cert_pem)
    rejoin(cluster, "w2")
    cluster.fleet("service", "rm", "web")


def test_the_swarm_takes_a_root_of_its_own_again(cluster: TestLab, cfssl: Cfssl) -> None:
    for node in cluster.get("/nodes"):
        if node["Status"]["State"] == "down":
            cluster.fleet("node", "rm", node["ID"])
    cluster.fleet("swarm", "ca", "--rotate", timeout_s=90)
    for host in ("m1", "w1", "w2"):
        assert issuing_root(identity_of(cluster, host)).strip() != cfssl.root.cert_pem.strip()
    cfssl.stop()
    rejoin(cluster, "w2")


def test_a_swarm_begins_with_an_authority_outside(cluster: TestLab, cfssl: Cfssl) -> None:
    cluster.fleet("swarm", "leave", host="w2")
    said = cluster.fleet("swarm", "init", "--external-ca", cfssl.flag, host="w2", check=False)
    assert said.returncode == 1 and cfssl.url in said.stderr
    assert cluster.get("/info", host="w2")["Swarm"]["LocalNodeState"] == "inactive"
    cfssl.start()
    cluster.fleet("swarm", "init", "--external-ca", cfssl.flag, host="w2")
    assert cluster.fleet("swarm", "ca", host="w2").stdout.strip() == cfssl.root.cert_pem.strip()
    assert issuing_root(identity_of(cluster, "w2")).strip() == cfssl.root.cert_pem.strip()
