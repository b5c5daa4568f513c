"""Who is in, who is out, and what a certificate allows."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from support.lab import TestLab

from fleet.clock import SystemClock
from fleet.identity.authority import create_root
from fleet.identity.keys import generate_request, load_identity, make_identity
from fleet.identity.tls import client_context
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeRole

pytestmark = [pytest.mark.e2e, pytest.mark.story]


@pytest.fixture(scope="module")
def bare(make_lab: object) -> TestLab:
    """Daemons run; nobody has said init."""
    assert callable(make_lab)
    made = make_lab(managers=1, workers=2, swarm=False)
    assert isinstance(made, TestLab)
    return made


@pytest.fixture(scope="module")
def cluster(bare: TestLab) -> TestLab:
    assert bare.fleet("node", "ls", check=False).returncode == 1
    out = bare.fleet("swarm", "init", "--advertise-addr", bare.address("m1")).stdout
    assert "SWMTKN-1-" in out
    return bare


def token(lab: TestLab, role: str = "worker") -> str:
    return lab.fleet("swarm", "join-token", "-q", role).stdout.strip()


def join(lab: TestLab, host: str, with_token: str, *, check: bool = True) -> str:
    done = lab.fleet("swarm", "join", "--token", with_token, f"{lab.address('m1')}:2377", host=host, check=check)
    return done.stdout + done.stderr


def states(lab: TestLab) -> dict[str, str]:
    return {n["Description"]["Hostname"]: n["Status"]["State"] for n in lab.get("/nodes")}


def tls_of(lab: TestLab, host: str) -> ssl.SSLContext:
    identity = load_identity(Path(lab.layout.data(host)) / "swarm" / "identity")
    assert identity is not None
    return client_context(identity)


def on_cluster_port(lab: TestLab, context: ssl.SSLContext | bool, path: str, *, host: str = "m1") -> httpx.Response:
    return httpx.get(f"https://{lab.address(host)}:2377{path}", verify=context, timeout=5, trust_env=False)


def test_bad_tokens_are_refused_and_say_why(cluster: TestLab) -> None:
    good = token(cluster)
    assert "expected the form" in join(cluster, "w1", "nonsense", check=False)
    cut = join(cluster, "w1", good[:-3], check=False)
    assert "copy it whole" in cut
    head, digest, secret = good.rsplit("-", 2)
    wrong_secret = f"{head}-{digest}-{'0' * len(secret)}"
    assert "valid join token is necessary" in join(cluster, "w1", wrong_secret, check=False)
    other_digest = f"{head}-{('0' if digest[0] != '0' else '1') + digest[1:]}-{secret}"
    assert "does not match" in join(cluster, "w1", other_digest, check=False)
    assert list(states(cluster)) == ["m1"]


def test_a_rotated_token_no_longer_admits_and_the_new_one_does(cluster: TestLab) -> None:
    old = token(cluster)
    new = cluster.fleet("swarm", "join-token", "-q", "--rotate", "worker").stdout.strip()
    assert new != old
    assert "valid join token is necessary" in join(cluster, "w1", old, check=False)
    assert "joined a swarm as a worker" in join(cluster, "w1", new)
    cluster.wait_until(lambda: states(cluster).get("w1") == "ready", 15, what="w1 is ready")
    assert "already part of a swarm" in join(cluster, "w1", new, check=False)


def test_a_worker_can_not_act_as_a_manager(cluster: TestLab) -> None:
    refused = cluster.fleet("service", "ls", host="w1", check=False)
    assert refused.returncode == 1
    assert "not a swarm manager" in refused.stderr
    answer = on_cluster_port(cluster, tls_of(cluster, "w1"), "/cluster/v1/containers/x/logs?stdout=1", host="w1")
    assert answer.status_code == 401, answer.text
    assert "expected a manager" in answer.text


def test_without_a_certificate_only_the_root_and_the_gate_are_open(cluster: TestLab) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    assert on_cluster_port(cluster, context, "/cluster/v1/root").status_code == 200
    assert on_cluster_port(cluster, context, "/cluster/v1/images/holders?reference=x").status_code == 401
    assert on_cluster_port(cluster, context, "/cluster/v1/blobs/sha256:" + "0" * 64).status_code == 401


def test_a_certificate_of_another_cluster_is_refused(cluster: TestLab) -> None:
    now = SystemClock().now()
    foreign = create_root(ClusterId("a" * 25), now)
    request = generate_request()
    certificate = foreign.issue(
        request.csr_pem, node_id=NodeId("n" * 25), role=NodeRole.MANAGER, cluster_id=ClusterId("a" * 25),
        lifetime=timedelta(days=1), now=now,
    )  # fmt: skip
    identity = make_identity(cert_pem=certificate, key_pem=request.key_pem, ca_pem=foreign.cert_pem)
    context = client_context(identity)
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(httpx.HTTPError):
        on_cluster_port(cluster, context, "/cluster/v1/images/holders?reference=x")


def test_leaving_empties_the_host_and_the_node_can_be_removed(cluster: TestLab) -> None:
    cluster.load_hello()
    join(cluster, "w2", token(cluster))
    cluster.fleet(
        "service", "create", "--name", "everywhere", "--mode", "global", "--restart-delay", "0s", "fleet/hello:1",
        "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done",
    )  # fmt: skip
    assert cluster.get("/containers/json", host="w2")
    still_in = cluster.fleet("node", "rm", "w2", check=False)
    assert still_in.returncode == 1
    assert "not down" in still_in.stderr
    cluster.fleet("swarm", "leave", host="w2")
    assert cluster.get("/containers/json", host="w2", all=True) == []
    assert cluster.get("/info", host="w2")["Swarm"]["LocalNodeState"] == "inactive"
    cluster.wait_until(lambda: states(cluster)["w2"] == "down", 10, what="w2 is down")
    cluster.fleet("node", "rm", "w2")
    assert "w2" not in states(cluster)


def test_a_removed_node_is_cut_off_though_its_certificate_is_good(cluster: TestLab) -> None:
    context = tls_of(cluster, "w1")
    assert on_cluster_port(cluster, context, "/cluster/v1/images/holders?reference=x").status_code == 200
    cluster.fleet("node", "rm", "--force", "w1")
    assert on_cluster_port(cluster, context, "/cluster/v1/images/holders?reference=x").status_code == 403


def test_the_last_manager_leaves_only_by_force(cluster: TestLab) -> None:
    refused = cluster.fleet("swarm", "leave", check=False)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    cluster.fleet("swarm", "leave", "--force")
    assert cluster.get("/info")["Swarm"]["LocalNodeState"] == "inactive"
    cluster.fleet("swarm", "init", "--advertise-addr", cluster.address("m1"))
    assert list(states(cluster)) == ["m1"]
