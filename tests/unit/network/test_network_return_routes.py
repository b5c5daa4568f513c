"""Which sandboxes lead replies back to the node their clients came by, and by which marks."""

from __future__ import annotations

from dataclasses import replace

from fleet.network import desired, rules
from fleet.network.ipam import mac_for
from fleet.network.return_routes import MARK_BASE, NO_RETURNS, return_routes
from fleet.network.rules import HostRules, SandboxRules
from fleet.network.topology import Endpoint, Interface, NetworkSpec, NetworkState, NodeRecord, PublishedPort

NET = NetworkSpec(
    id="in", name="ingress", driver="overlay", subnet="10.0.0.0/16", gateway="10.0.0.1", vni=1, ingress=True
)
OWN = NetworkSpec(id="own", name="own", driver="overlay", subnet="10.1.0.0/16", gateway="10.1.0.1", vni=2)
NODES = tuple(NodeRecord(node_id=f"n{n}", underlay=f"192.0.2.{n}", address=f"10.0.{n}.2") for n in range(1, 4))
ENDS = (Endpoint(id="a", service_id="web", address="10.0.0.9"), Endpoint(id="b", service_id="db", address="10.0.0.8"))
STATE = NetworkState(network=NET, endpoints=ENDS, nodes=NODES)
PORT = PublishedPort(protocol="tcp", published_port=80, target_port=8080, service_id="web", source="client")


def cards(address: str) -> tuple[Interface, ...]:
    own = Interface(network_id="own", name="eth0", address="10.1.0.9", prefix_len=16, mac=mac_for("10.1.0.9"))
    return own, Interface(network_id="in", name="eth1", address=address, prefix_len=16, mac=mac_for(address))


def test_each_node_has_a_mark_of_its_own_that_stays() -> None:
    found = return_routes(STATE, card="eth1", ipv6=False)
    assert {route.mark: route.via for route in found.routes} == {
        MARK_BASE | 0x102: "10.0.1.2",
        MARK_BASE | 0x202: "10.0.2.2",
        MARK_BASE | 0x302: "10.0.3.2",
    }
    fewer = return_routes(replace(STATE, nodes=NODES[1:]), card="eth1", ipv6=False)
    assert fewer.routes < found.routes


def test_only_services_that_ask_for_it_lead_replies_back() -> None:
    def needs(address: str, *ports: PublishedPort) -> bool:
        return desired.returns_of(cards(address), ingress=STATE, published=ports) != NO_RETURNS

    assert needs("10.0.0.9", PORT)
    assert not needs("10.0.0.9", replace(PORT, source="node")) and not needs("10.0.0.9")
    assert not needs("10.0.0.8", PORT), "another service's"
    assert desired.returns_of(cards("10.0.0.9"), ingress=None, published=(PORT,)) == NO_RETURNS


def test_their_default_route_is_the_ingress_networks() -> None:
    networks = {"own": OWN, "in": NET}
    for first, gateways in ((False, ["10.1.0.1", ""]), (True, ["", "10.0.0.1"])):
        found = desired.with_gateway(cards("10.0.0.9"), networks, ingress_first=first)
        assert [interface.gateway for interface in found] == gateways


def test_rules_of_replies_come_and_go_with_what_asks_for_them() -> None:
    plain = SandboxRules(dns_port=53)
    marking = replace(plain, returns=return_routes(STATE, card="eth1", ipv6=False))
    assert "entrances" not in rules.plan_sandbox(None, plain)
    added, removed = rules.plan_sandbox(plain, marking), rules.plan_sandbox(marking, plain)
    assert f"{mac_for('10.0.1.2')} : {MARK_BASE | 0x102:#x}" in added and "hook output" in added
    assert "delete map ip fleet entrances" in removed and rules.plan_sandbox(marking, marking) == ""


def test_the_entry_node_leaves_the_source_alone_for_those_ports_alone() -> None:
    backends = {("tcp", 80): (("10.0.0.9", 8080),), ("tcp", 81): (("10.0.0.8", 8080),)}
    before = HostRules(published=backends)
    after = replace(before, client_ports=frozenset({("tcp", 80)}))
    text = rules.plan_host(before, after, table="t")
    assert text.splitlines() == [
        "add element ip t client_ports { tcp . 80 }",
        "add element ip t client_targets { tcp . 10.0.0.9 . 8080 }",
    ]
    gone = rules.plan_host(after, replace(after, published={}), table="t")
    assert "delete element ip t client_targets { tcp . 10.0.0.9 . 8080 }" in gone
