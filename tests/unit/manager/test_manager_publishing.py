"""Whose address a service sees at its published ports: what its labels say, and what nodes are told."""

from __future__ import annotations

import asyncio

import pytest
from support.memory_engine import MemoryEngine
from support.objects import make_network, make_node, make_service

from fleet.api import dispatch
from fleet.manager.assignments import Assembler
from fleet.model.ids import NetworkId, NodeId
from fleet.model.publishing import source_of
from fleet.model.service import ContainerSpec, Endpoint, PortConfig, Protocol, ServiceSpec, TaskSpec
from fleet.model.task import Attachment
from fleet.store import Store, Transaction

TCP = PortConfig(target_port=80, published_port=8080)
UDP = PortConfig(target_port=80, published_port=8080, protocol=Protocol.UDP)


@pytest.mark.parametrize(
    ("labels", "tcp", "udp"),
    [
        ({}, "node", "node"),
        ({"fleet.publish.source": "client"}, "client", "client"),
        ({"fleet.publish.source.80": "client"}, "client", "client"),
        ({"fleet.publish.source.80/udp": "client"}, "node", "client"),
        ({"fleet.publish.source": "client", "fleet.publish.source.80/tcp": "node"}, "node", "client"),
        ({"fleet.publish.source": "client", "fleet.publish.source.80": "node"}, "node", "node"),
        ({"fleet.publish.source.81": "client"}, "node", "node"),
    ],
)
def test_the_most_exact_label_counts(labels: dict[str, str], tcp: str, udp: str) -> None:
    assert (source_of(labels, TCP), source_of(labels, UDP)) == (tcp, udp)


def test_each_node_is_told_whose_address_a_port_shows() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        template = TaskSpec(container_spec=ContainerSpec(image="i"))
        spec = ServiceSpec(name="web", labels={"fleet.publish.source.80/udp": "client"}, task_template=template)
        service = make_service("web", spec=spec, endpoint=Endpoint(ports=(TCP, UDP)))
        place = Attachment(network_id=NetworkId("network-ingress"), addresses=("10.255.0.2/24",))
        node = make_node("w1", attachments=(place,))
        await store.commit(Transaction().create(make_network("ingress", ingress=True)).create(node).create(service))
        items = Assembler(store, vxlan_port=4789).items_for(NodeId("node-w1")).values()
        told = {item.protocol.value: item.source for item in items if isinstance(item, dispatch.PublishedItem)}
        assert told == {"tcp": "node", "udp": "client"}
        await store.close()
        await engine.close()

    asyncio.run(main())
