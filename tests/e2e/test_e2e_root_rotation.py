"""The root certificate is replaced while the cluster runs, and removed nodes are refused everywhere."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

import httpx
import pytest
from support.lab import TestLab

from fleet.identity.authority import root_digest
from fleet.identity.keys import issuing_root, load_identity
from fleet.identity.tls import client_context

pytestmark = [pytest.mark.e2e, pytest.mark.story]


@pytest.fixture(scope="module")
def cluster(make_lab: object) -> TestLab:
    assert callable(make_lab)
    made = make_lab(managers=1, workers=3)
    assert isinstance(made, TestLab)
    made.load_hello()
    made.fleet(
        "service", "create", "--name", "web", "--mode", "global", "--restart-delay", "0s", "fleet/hello:1",
        "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done",
    )  # fmt: skip
    return made


def issuer_of(lab: TestLab, host: str) -> str:
    identity = load_identity(Path(lab.layout.data(host)) / "swarm" / "identity")
    assert identity is not None
    return issuing_root(identity)


def trusted_by(lab: TestLab, host: str) -> str:
    identity = load_identity(Path(lab.layout.data(host)) / "swarm" / "identity")
    assert identity is not None
    return identity.ca_pem


def tls_of(lab: TestLab, host: str) -> ssl.SSLContext:
    identity = load_identity(Path(lab.layout.data(host)) / "swarm" / "identity")
    assert identity is not None
    return client_context(identity)


def on_cluster_port(lab: TestLab, context: ssl.SSLContext, path: str, *, host: str) -> httpx.Response:
    return httpx.get(f"https://{lab.address(host)}:2377{path}", verify=context, timeout=5, trust_env=False)


def root_of(lab: TestLab) -> str:
    return lab.fleet("swarm", "ca").stdout.strip()


def task_ids(lab: TestLab) -> set[str]:
    return {task["ID"] for task in lab.tasks("web")}


def test_every_node_gets_a_certificate_of_the_new_root_and_no_task_notices(cluster: TestLab) -> None:
    old, before = root_of(cluster), task_ids(cluster)
    old_token = cluster.fleet("swarm", "join-token", "-q", "worker").stdout.strip()
    old_client = tls_of(cluster, "w1")
    done = cluster.fleet("swarm", "ca", "--rotate")
    new = done.stdout.strip()
    assert new.startswith("-----BEGIN CERTIFICATE-----")
    assert root_digest(new) != root_digest(old)
    assert "4 of 4" in done.stderr
    assert cluster.get("/swarm")["RootRotationInProgress"] is False
    for host in ("m1", "w1", "w2", "w3"):
        assert issuer_of(cluster, host).strip() == new
        cluster.wait_until(
            lambda host=host: trusted_by(cluster, host).strip() == new, 10, what="the old root is forgotten"
        )
    with pytest.raises(httpx.HTTPError):  # what the old root vouched for counts for nothing, with either end
        on_cluster_port(cluster, old_client, "/cluster/v1/images/holders?reference=x", host="m1")
    assert task_ids(cluster) == before
    refused = cluster.fleet("swarm", "leave", host="w3")
    assert refused.returncode == 0
    said = cluster.fleet("swarm", "join", "--token", old_token, f"{cluster.address('m1')}:2377", host="w3", check=False)
    assert "does not match the join token" in said.stderr
    token = cluster.fleet("swarm", "join-token", "-q", "worker").stdout.strip()
    cluster.fleet("swarm", "join", "--token", token, f"{cluster.address('m1')}:2377", host="w3")


def test_a_node_that_is_down_holds_the_rotation_up_until_it_is_removed(cluster: TestLab) -> None:
    for node in cluster.get("/nodes"):
        if node["Status"]["State"] == "down":
            cluster.fleet("node", "rm", node["ID"])
    old = root_of(cluster)
    cluster.fleet("swarm", "leave", host="w3")
    cluster.fleet("swarm", "ca", "--rotate", "--detach")
    again = cluster.fleet("swarm", "ca", "--rotate", check=False)
    assert again.returncode == 1
    assert "being rotated already" in again.stderr
    shown = cluster.fleet("swarm", "ca")
    assert "down: w3" in shown.stderr
    assert shown.stdout.strip() == old
    assert issuer_of(cluster, "w1").strip() == old  # nobody shows a certificate that w3 would not trust
    gone = next(n for n in cluster.get("/nodes") if n["Status"]["State"] == "down")
    cluster.fleet("node", "rm", gone["ID"])
    cluster.restart_daemon("m1", signum=signal.SIGKILL)  # in the middle of the steps that begin now
    cluster.restart_daemon("w1", signum=signal.SIGKILL)
    cluster.wait_until(lambda: cluster.get("/swarm")["RootRotationInProgress"] is False, 30, what="rotation ends")
    assert root_of(cluster) != old
    assert issuer_of(cluster, "w1").strip() == root_of(cluster)


def test_bad_roots_are_refused_and_say_why(cluster: TestLab, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("not a certificate")
    (tmp_path / "root.pem").write_text(root_of(cluster))
    said = cluster.fleet(
        "swarm", "ca", "--rotate", "--ca-cert", str(tmp_path / "junk"), "--ca-key", str(tmp_path / "junk"), check=False
    )
    assert "not a certificate in PEM form" in said.stderr
    said = cluster.fleet("swarm", "ca", "--rotate", "--ca-cert", str(tmp_path / "root.pem"), check=False)
    assert "needs the key as well" in said.stderr
    said = cluster.fleet(
        "swarm",
        "ca",
        "--rotate",
        "--ca-cert",
        str(tmp_path / "root.pem"),
        "--ca-key",
        str(tmp_path / "junk"),
        check=False,
    )
    assert "root key: expected" in said.stderr


def test_a_removed_node_is_refused_by_other_workers_too(cluster: TestLab) -> None:
    client = tls_of(cluster, "w2")
    path = "/cluster/v1/images/manifest?reference=nothing"
    assert on_cluster_port(cluster, client, path, host="w1").status_code == 404
    cluster.fleet("node", "rm", "--force", "w2")
    cluster.wait_until(
        lambda: on_cluster_port(cluster, client, path, host="w1").status_code == 403, 10, what="w1 refuses w2"
    )
    kept = cluster.layout.data("w1") / "swarm" / "identity" / "removed.json"
    cluster.wait_until(kept.exists, 10, what="it is on disk")
    cluster.kill("m1")
    cluster.restart_daemon("w1", signum=signal.SIGKILL)
    assert on_cluster_port(cluster, client, path, host="w1").status_code == 403, "with no manager to ask, too"
    cluster.start("m1")
