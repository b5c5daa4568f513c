"""Rules as text, gateways, host ports, places: the decisions behind the data plane."""

from __future__ import annotations

from fleet.network.desired import host_ports, published_backends, sandbox_rules, turned, with_gateway
from fleet.network.kernel.conntrack import UDP, Flow
from fleet.network.kernel.rtnetlink import FdbEntry, NeighbourEntry
from fleet.network.links import Remotes, remotes_of
from fleet.network.rules import HostPortRule, HostRules, NetworkRule, SandboxRules, plan_host, plan_sandbox
from fleet.network.store import SandboxRecord
from fleet.network.sweeper import Sweep
from fleet.network.topology import (
    Endpoint,
    HostPort,
    Interface,
    NetworkSpec,
    NetworkState,
    NodeRecord,
    PublishedPort,
    SandboxSpec,
    ServiceRecord,
)

BACK = NetworkSpec(id="back", name="back", driver="overlay", subnet="10.0.1.0/24", gateway="10.0.1.1", vni=1)
INSIDE = NetworkSpec(
    id="in", name="in", driver="overlay", subnet="10.0.3.0/24", gateway="10.0.3.1", vni=3, internal=True
)
INGRESS = NetworkSpec(
    id="ing",
    name="ingress",
    driver="overlay",
    subnet="10.9.0.0/24",
    gateway="10.9.0.1",
    vni=2,
    ingress=True,
    node_address="10.9.0.2",
)


def endpoint(number: int, node: str, *, ready: bool = True) -> Endpoint:
    return Endpoint(
        id=f"t{number}",
        service_id="s",
        address=f"10.0.1.{number}",
        node_id=node,
        underlay=f"192.168.0.{node[1:]}",
        ready=ready,
    )


def test_unchanged_rules_need_no_transaction() -> None:
    rules = SandboxRules(dns_port=5353, vips={"10.0.1.2": ("10.0.1.5",)})
    assert plan_sandbox(rules, rules) == ""
    assert plan_host(HostRules(), HostRules(), table="t") == ""


def test_changed_backends_replace_one_chain_only() -> None:
    before = SandboxRules(dns_port=5353, vips={"10.0.1.2": ("10.0.1.5", "10.0.1.6"), "10.0.1.3": ("10.0.1.9",)})
    after = SandboxRules(dns_port=5353, vips={"10.0.1.2": ("10.0.1.5",), "10.0.1.3": ("10.0.1.9",)})
    assert plan_sandbox(before, after) == (
        "flush chain ip fleet vip_10_0_1_2\nadd rule ip fleet vip_10_0_1_2 dnat to 10.0.1.5\n"
    )


def test_address_without_backends_keeps_its_place_so_that_it_is_refused() -> None:
    before = SandboxRules(dns_port=5353, vips={"10.0.1.2": ("10.0.1.5",)})
    assert (
        plan_sandbox(before, SandboxRules(dns_port=5353, vips={"10.0.1.2": ()}))
        == "flush chain ip fleet vip_10_0_1_2\n"
    )
    gone = plan_sandbox(before, SandboxRules(dns_port=5353))
    assert gone.splitlines() == [
        "delete element ip fleet vips { 10.0.1.2 }",
        "delete element ip fleet vip_addresses { 10.0.1.2 }",
        "flush chain ip fleet vip_10_0_1_2",
        "delete chain ip fleet vip_10_0_1_2",
    ]


def test_unknown_state_replaces_the_whole_table_in_one_transaction() -> None:
    text = plan_sandbox(None, SandboxRules(dns_port=5353))
    assert text.splitlines()[:3] == ["add table ip fleet", "delete table ip fleet", "add table ip fleet"]
    assert "udp dport 53 dnat to 127.0.0.11:5353" in text


def test_host_ports_and_networks_change_by_elements() -> None:
    net = NetworkRule(bridge="fb1", subnet="10.0.1.0/24", internal=False)
    port = HostPortRule(protocol="tcp", host_address="0.0.0.0", host_port=80, target=("10.0.1.5", 8080))
    own = HostPortRule(protocol="tcp", host_address="127.0.0.1", host_port=81, target=("10.0.1.5", 8080))
    text = plan_host(HostRules(), HostRules(networks=frozenset({net}), host_ports=frozenset({port, own})), table="t")
    assert text.splitlines() == [
        'add element ip t bridges { "fb1" }',
        'add element ip t pairs { "fb1" . "fb1" }',
        "add element ip t subnets { 10.0.1.0/24 }",
        "add element ip t host_any { tcp . 80 : 10.0.1.5 . 8080 }",
        "add element ip t host_at { 127.0.0.1 . tcp . 81 : 10.0.1.5 . 8080 }",
    ]


def test_published_port_without_backends_is_closed() -> None:
    key = ("tcp", 8080)
    text = plan_host(HostRules(published={key: (("10.9.0.9", 80),)}), HostRules(published={key: ()}), table="t")
    assert text == "flush chain ip t port_tcp_8080\n"


def test_host_that_was_no_router_forwards_nothing_for_strangers() -> None:
    assert "iifname != @bridges drop" in plan_host(None, HostRules(closed_router=True), table="t")
    assert "iifname != @bridges drop" not in plan_host(None, HostRules(), table="t")


def test_backends_are_the_ready_endpoints_in_an_order_of_the_sandboxs_own() -> None:
    state = NetworkState(
        network=BACK,
        endpoints=tuple(endpoint(n, "n1", ready=n != 7) for n in range(3, 12)),
        services=(ServiceRecord(id="s", name="web", vip="10.0.1.200"), ServiceRecord(id="rr", name="rr")),
    )
    rules = sandbox_rules([state], seed="one", port=5)
    assert set(rules.vips) == {"10.0.1.200"}
    backends = rules.vips["10.0.1.200"]
    assert sorted(backends) == sorted(e.address for e in state.endpoints if e.ready)
    assert backends == sandbox_rules([state], seed="one", port=5).vips["10.0.1.200"]
    assert len({sandbox_rules([state], seed=seed, port=5).vips["10.0.1.200"][0] for seed in "abcdefgh"}) > 2
    assert turned([], seed="x") == ()


def test_published_ports_need_an_ingress_network() -> None:
    port = PublishedPort(protocol="udp", published_port=53, target_port=5353, service_id="s")
    assert published_backends(None, [port], seed="n") == {}
    state = NetworkState(network=INGRESS, endpoints=(Endpoint(id="t", service_id="s", address="10.9.0.9"),))
    assert published_backends(state, [port], seed="n") == {("udp", 53): (("10.9.0.9", 5353),)}


def interface(spec: NetworkSpec, name: str, address: str) -> Interface:
    return Interface(network_id=spec.id, name=name, address=address, prefix_len=24, mac="02:42:00:00:00:00")


def test_default_route_prefers_the_first_network_with_a_way_out_and_ingress_last() -> None:
    networks = {spec.id: spec for spec in (BACK, INSIDE, INGRESS)}
    cards = [
        interface(INGRESS, "eth0", "10.9.0.5"),
        interface(INSIDE, "eth1", "10.0.3.5"),
        interface(BACK, "eth2", "10.0.1.5"),
    ]
    assert [card.gateway for card in with_gateway(cards, networks)] == ["", "", "10.0.1.1"]
    assert [card.gateway for card in with_gateway(cards[:2], networks)] == ["10.9.0.1", ""]
    assert [card.gateway for card in with_gateway(cards[1:2], networks)] == [""]


def test_host_port_leads_to_the_address_by_which_the_container_leaves() -> None:
    networks = {spec.id: spec for spec in (BACK, INSIDE)}
    cards = with_gateway([interface(INSIDE, "eth0", "10.0.3.5"), interface(BACK, "eth1", "10.0.1.5")], networks)
    spec = SandboxSpec(id="c", host_ports=(HostPort(protocol="tcp", host_port=80, target_port=8080),))
    record = SandboxRecord(spec=spec, interfaces=cards, veths=("a", "b"), dns_port=1)
    assert {rule.target for rule in host_ports([record])} == {("10.0.1.5", 8080)}
    closed = SandboxRecord(spec=spec, interfaces=cards[:1], veths=("a",), dns_port=1)
    assert host_ports([closed]) == frozenset()


def test_only_other_hosts_endpoints_are_forwarded() -> None:
    state = NetworkState(
        network=INGRESS,
        endpoints=(
            endpoint(5, "n1"),
            endpoint(6, "n2"),
            endpoint(7, "n3", ready=False),
            Endpoint(id="x", address="10.0.1.8"),
        ),
        nodes=(
            NodeRecord(node_id="n1", underlay="192.168.0.1", address="10.9.0.2"),
            NodeRecord(node_id="n2", underlay="192.168.0.2", address="10.9.0.3"),
        ),
    )
    expected = Remotes(
        forwarding=frozenset(
            {
                FdbEntry("02:42:0a:00:01:06", "192.168.0.2"),
                FdbEntry("02:42:0a:00:01:07", "192.168.0.3"),
                FdbEntry("02:42:0a:09:00:03", "192.168.0.2"),
            }
        ),
        neighbours=frozenset(
            {
                NeighbourEntry("10.0.1.6", "02:42:0a:00:01:06"),
                NeighbourEntry("10.0.1.7", "02:42:0a:00:01:07"),
                NeighbourEntry("10.9.0.3", "02:42:0a:09:00:03"),
            }
        ),
    )
    assert remotes_of(state, node_id="n1", underlay="192.168.0.1") == expected
    # by address alone, for a host that does not know its node id
    assert remotes_of(state, node_id="", underlay="192.168.0.1") == expected


def test_sweep_forgets_what_it_should_and_nothing_else() -> None:
    sweep = Sweep(lost={"10.0.1.5", "10.0.1.6"}, dead={"10.0.1.6"}, opened={53})

    def flow(protocol: int, answers: str, *, destination: str = "10.0.1.2", port: int = 80) -> Flow:
        return Flow(protocol=protocol, destination=destination, port=port, answers=answers, key=b"")

    tcp = 6
    assert sweep.picks(flow(UDP, "10.0.1.5"))
    assert not sweep.picks(flow(tcp, "10.0.1.5"))
    assert sweep.picks(flow(tcp, "10.0.1.6"))
    assert not sweep.picks(flow(UDP, "10.0.1.7"))
    # asked directly, not through us: not ours to forget
    assert not sweep.picks(flow(UDP, "10.0.1.6", destination="10.0.1.6"))
    assert sweep.picks(flow(UDP, "192.168.0.1", destination="192.168.0.1", port=53))
    assert not sweep.picks(flow(tcp, "192.168.0.1", destination="192.168.0.1", port=53))


def test_encrypted_networks_have_chains_of_their_own_which_come_and_go_with_them() -> None:
    plain = HostRules(tunnels=frozenset({(4789, 7)}))
    sealed = HostRules(tunnels=frozenset({(4789, 7), (4789, 8)}), sealed=frozenset({(4789, 8)}), tunnel="ft1")
    assert "sealed" not in plan_host(None, plain, table="t")
    text = plan_host(plain, sealed, table="t")
    for line in (
        'add rule ip t sealed_in iifname "ft1" udp dport 4789 @th,96,24 8 accept',
        "add rule ip t sealed_in udp dport 4789 @th,96,24 8 drop",
        'add rule ip t sealed_in iifname "ft1" drop',
        'add rule ip t sealed_out oifname != "ft1" udp dport 4789 @th,96,24 8 drop',
        'add rule ip t sealed_through iifname "ft1" drop',
    ):
        assert line + "\n" in text
    assert plan_host(sealed, sealed, table="t") == ""
    back = plan_host(sealed, plain, table="t")
    assert "add chain" not in back
    assert back.count("delete chain ip t sealed_") == 3
