"""Whom the managers ask for a number, and whom they are not made to ask by somebody's label."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from typing import Any

import msgspec
import pytest
from support.clocks import START
from support.decision_builders import a_node, a_service, a_task
from support.memory_engine import MemoryEngine

from fleet import errors
from fleet.manager.prometheus_targets import PrometheusTargets
from fleet.model.autoscale import check_autoscale
from fleet.model.cluster import Cluster, SwarmSpec
from fleet.model.ids import ClusterId, NodeId
from fleet.model.node import NodeStatus
from fleet.model.prometheus_access import ALLOW_LABEL, parse_allowed
from fleet.model.service import Endpoint, PortConfig, Protocol, PublishMode
from fleet.model.task import PortStatus, TaskState
from fleet.store import Store, Transaction

replace = msgspec.structs.replace


def refusals(*objects: Any, allow: str = "", ask: list[tuple[str, int]]) -> list[str]:
    """What is said of each (address, port) with these objects in the store."""

    async def body() -> list[str]:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        labels = {ALLOW_LABEL: allow} if allow else {}
        cluster = Cluster(id=ClusterId("c"), created_at=START, updated_at=START, spec=SwarmSpec(labels=labels))
        for each in (cluster, *objects):
            await store.commit(Transaction().create(each))
        targets = PrometheusTargets(store)
        try:
            return [targets.explain_refusal(host, ipaddress.ip_address(host), port) for host, port in ask]
        finally:
            await store.close()

    return asyncio.run(body())


def node(name: str, address: str) -> Any:
    return replace(a_node(name), status=NodeStatus(addr=address), cluster_addr=f"{address}:2377")


def published(mode: PublishMode, *, protocol: Protocol = Protocol.TCP) -> Any:
    port = PortConfig(target_port=9090, published_port=9091, publish_mode=mode, protocol=protocol)
    return replace(a_service(), endpoint=Endpoint(ports=(port,)))


def running(node_id: str, *, state: TaskState = TaskState.RUNNING, port: int = 0) -> Any:
    task = a_task(slot=1, node=NodeId(node_id), state=state)
    ports = (PortConfig(target_port=9090, published_port=port, publish_mode=PublishMode.HOST),) if port else ()
    return replace(task, status=replace(task.status, port_status=PortStatus(ports=ports)))


def test_nothing_is_asked_by_default() -> None:
    (said,) = refusals(node("n1", "10.0.0.1"), ask=[("10.0.0.1", 2379)])
    assert said == (
        "no running service publishes port 2379 at 10.0.0.1; an administrator can allow it: "
        "fleet swarm update --prometheus-allow 10.0.0.1"
    )


def test_a_published_port_is_asked_on_every_node_while_a_task_stands_behind_it() -> None:
    nodes = (node("n1", "10.0.0.1"), node("n2", "10.0.0.2"))
    ask = [("10.0.0.1", 9091), ("10.0.0.2", 9091), ("::ffff:10.0.0.2", 9091), ("10.0.0.2", 9090), ("10.0.0.3", 9091)]
    service = published(PublishMode.INGRESS)
    assert [not each for each in refusals(*nodes, service, running("n1"), ask=ask)] == [True, True, True, False, False]
    assert all(refusals(*nodes, service, running("n1", state=TaskState.STARTING), ask=ask))
    assert all(refusals(*nodes, published(PublishMode.INGRESS, protocol=Protocol.UDP), running("n1"), ask=ask))


def test_a_port_of_a_host_is_asked_where_the_task_is() -> None:
    nodes = (node("n1", "10.0.0.1"), node("n2", "10.0.0.2"))
    service = published(PublishMode.HOST)
    ask = [("10.0.0.1", 9091), ("10.0.0.2", 9091)]
    assert [not each for each in refusals(*nodes, service, running("n2", port=9091), ask=ask)] == [False, True]


def test_loopback_and_metadata_are_not_asked_whatever_is_published() -> None:
    nodes = (node("n1", "127.0.0.1"), node("n2", "169.254.169.254"), node("n3", "::1"))
    hosts = ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "0.0.0.0", "::")
    said = refusals(*nodes, published(PublishMode.INGRESS), running("n1"), ask=[(host, 9091) for host in hosts])
    assert all("is loopback, the managers' own" in each for each in said[:4])
    assert all("it is never asked" in each for each in said[4:])


def test_an_administrator_allows_addresses_networks_and_loopback() -> None:
    allow = "10.0.0.5, 10.1.0.0/16, 127.0.0.1, fd00::/8"
    yes = ["10.0.0.5", "10.1.255.1", "127.0.0.1", "::ffff:127.0.0.1", "fd00::9"]
    no = ["10.0.0.6", "127.0.0.2", "::1", "fd00:ec2::254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe", "224.0.0.1"]
    assert not any(refusals(allow=allow, ask=[(host, 80) for host in yes]))
    assert all(refusals(allow=allow + ", ::/0", ask=[(host, 80) for host in no if host != "::1"]))
    assert all(refusals(allow=allow, ask=[(host, 80) for host in no]))


def test_a_name_that_is_allowed_leads_anywhere_but_to_the_managers_themselves() -> None:
    allowed = parse_allowed({ALLOW_LABEL: "Prometheus.example.org, localhost"})
    lan, own = ipaddress.ip_address("192.168.1.1"), ipaddress.ip_address("127.0.0.1")
    assert allowed.covers("prometheus.EXAMPLE.org.", lan)
    assert not allowed.covers("other.example.org", lan)
    assert allowed.covers("localhost", own)
    only = parse_allowed({ALLOW_LABEL: "prometheus.example.org"})
    assert not only.covers("prometheus.example.org", own)
    assert not only.covers("prometheus.example.org", ipaddress.ip_address("::ffff:127.0.0.1"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' is neither an address, a network nor a host name"),
        ("http://x:9090", "is neither an address"),
        ("300.1.1.1", "'300.1.1.1' is neither an address"),
        (
            "169.254.169.254",
            "169.254.169.254 is link-local, where clouds have their metadata services: it is never asked",
        ),
        ("fe80::/64", "fe80::/64 is link-local: it is never asked"),
        (",".join(f"10.0.0.{number}" for number in range(101)), "has 101 entries; at most 100 are taken"),
    ],
)
def test_what_can_not_be_allowed_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(errors.UserError, match=re.escape(sentence)):
        parse_allowed({ALLOW_LABEL: text})


def test_a_service_with_an_address_that_is_never_asked_is_refused_at_once() -> None:
    labels = {"max": "3", "query": "x", "query-target": "1", "prometheus": "http://169.254.169.254/latest"}
    spec = replace(a_service().spec, labels={f"fleet.autoscale.{name}": text for name, text in labels.items()})
    with pytest.raises(errors.UserError, match=r"label fleet\.autoscale\.prometheus: .* link-local, .* never asked"):
        check_autoscale(spec)
