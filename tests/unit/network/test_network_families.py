"""IPv6 in the decisions behind the data plane: addresses, rules as text, names, neighbours, ways out."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import replace

import pytest

from fleet.errors import ConflictError, UserError
from fleet.network import desired
from fleet.network.cardrules import Card, link_local, plan_cards
from fleet.network.dns import wire
from fleet.network.dns.lookup import Directory, Table, View
from fleet.network.dns.records import TTL_TASK_S, TTL_VIP_S, zone_of
from fleet.network.ipam import UlaPool, next_address, parse_subnet6
from fleet.network.kernel.rtnetlink import NeighbourEntry
from fleet.network.links import remotes_of
from fleet.network.rules import HostPortRule, HostRules, NetworkRule, SandboxRules, plan_host, plan_sandbox
from fleet.network.store import SandboxRecord
from fleet.network.topology import (
    AttachmentSpec,
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
from fleet.network.tunnel.keeper import TunnelPeer

DUAL = NetworkSpec(
    id="dual",
    name="dual",
    driver="overlay",
    subnet="10.9.0.0/24",
    gateway="10.9.0.1",
    vni=1,
    subnet6="fd00:9::/64",
    gateway6="fd00:9::1",
)
FOUR = NetworkSpec(id="four", name="four", driver="overlay", subnet="10.8.0.0/24", gateway="10.8.0.1", vni=2)


def endpoint(number: int, node: str = "n1", *, ready: bool = True) -> Endpoint:
    return Endpoint(
        id=f"t{number}",
        service_id="s",
        names=(f"web.{number}",),
        address=f"10.9.0.{number}",
        address6=f"fd00:9::{number}",
        node_id=node,
        underlay=f"192.168.0.{node[1:]}",
        ready=ready,
    )


WEB = ServiceRecord(id="s", name="web", vip="10.9.0.2", vip6="fd00:9::2")


# -- addresses


def test_addresses_of_ipv6_begin_behind_the_routers_anycast_and_end_with_the_last() -> None:
    given: list[str] = []
    for _ in range(6):
        given.append(next_address("fd00:9::/125", "fd00:9::1", given))
    assert given == [f"fd00:9::{n}" for n in range(2, 8)]
    with pytest.raises(ConflictError, match="all 6 addresses"):
        next_address("fd00:9::/125", "fd00:9::1", given)
    assert next_address("fd00:9::/64", "fd00:9::1", given, after="fd00:9::7") == "fd00:9::8"
    assert next_address("fd00:9::/64", "fd00:9::1", (), ip_range="fd00:9::ff00/120") == "fd00:9::ff00"
    assert next_address("fd00:9::/64", "fd00:9::1", (), requested="fd00:9:0:0::77") == "fd00:9::77"


@pytest.mark.parametrize(
    ("requested", "kind", "sentence"),
    [
        ("10.0.0.1", UserError, "not an IPv6 address"),
        ("fd00:8::1", UserError, "not between"),
        ("fd00:9::", UserError, "not between"),
        ("fd00:9::1", ConflictError, "is the gateway"),
        ("fd00:9::2", ConflictError, "in use"),
    ],
)
def test_a_requested_address_that_cannot_be_says_why(requested: str, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        next_address("fd00:9::/64", "fd00:9::1", ["fd00:9::2"], requested=requested)


@pytest.mark.parametrize("text", ["fd00:9::1/64", "10.0.0.0/24", "fe80::/64", "ff02::/64", "::/16", "fd00::/127", "x"])
def test_subnets_that_no_network_can_have_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_subnet6(text)


def test_chosen_subnets_are_of_one_unique_local_prefix_and_differ() -> None:
    pool = UlaPool("cluster", [])
    first, second = pool.next_subnet(), pool.next_subnet()
    assert first != second
    for text in (first, second):
        subnet = ipaddress.IPv6Network(text)
        assert subnet.prefixlen == 64 and subnet.subnet_of(pool.prefix) and pool.prefix.prefixlen == 48
    assert UlaPool("cluster", [first]).next_subnet() == second  # found again from the state alone
    assert UlaPool("another", []).prefix != pool.prefix


def test_what_does_not_fit_a_network_is_refused() -> None:
    with pytest.raises(UserError, match="write it as fd00:9::1"):
        replace(DUAL, gateway6="fd00:9:0::1")
    with pytest.raises(UserError, match="outside the subnet"):
        replace(DUAL, gateway6="fd00:8::1")
    with pytest.raises(UserError, match="need an IPv6 subnet"):
        replace(FOUR, gateway6="fd00:8::1")
    with pytest.raises(UserError, match="1280"):
        replace(DUAL, mtu=1000)
    for bad in ("fe80::1%eth0", "10.0.0.1", "}"):
        with pytest.raises(UserError):
            AttachmentSpec(network_id="n", address6=bad)
    assert DUAL.without_ipv6() == replace(DUAL, subnet6="", gateway6="")


# -- kernel


def test_neighbours_of_both_families_lead_to_one_forwarding_entry() -> None:
    node = NodeRecord(node_id="n2", underlay="192.168.0.2", address="10.9.0.200", address6="fd00:9::200")
    state = NetworkState(network=DUAL, endpoints=(endpoint(5), endpoint(6, "n2")), nodes=(node,))
    remotes = remotes_of(state, node_id="n1", underlay="192.168.0.1")
    assert {entry.mac for entry in remotes.forwarding} == {"02:42:0a:09:00:06", "02:42:0a:09:00:c8"}
    assert NeighbourEntry("fd00:9::6", "02:42:0a:09:00:06") in remotes.neighbours
    assert NeighbourEntry("fd00:9::200", "02:42:0a:09:00:c8") in remotes.neighbours
    assert len(remotes.neighbours) == 4
    # a host whose kernel has no IPv6 knows the IPv4 half
    half = remotes_of(replace(state, network=DUAL.without_ipv6()), node_id="n1", underlay="192.168.0.1")
    assert {":" in entry.address for entry in half.neighbours} == {False}


def test_only_ready_hosts_keys_count_and_not_our_own() -> None:
    keys = [base64.b64encode(bytes([number]) * 32).decode() for number in range(4)]
    sealed = replace(FOUR, id="sealed", vni=9, encrypted=True)

    def at(number: int, key: str, *, ready: bool = True) -> Endpoint:
        where = f"192.168.0.{number % 10}"
        name = f"n{number % 10}"
        return Endpoint(
            id=f"t{number}", address=f"10.9.0.{number}", underlay=where, node_id=name, tunnel_key=key, ready=ready
        )

    everybody = (at(11, keys[1]), at(12, keys[2]), at(22, keys[3], ready=False), at(13, ""))
    state = NetworkState(network=sealed, endpoints=everybody)
    plain = NetworkState(network=FOUR, endpoints=(at(14, keys[0]),))
    assert desired.tunnel_peers([plain, state], node_id="n1", underlay="192.168.0.1") == {
        TunnelPeer(keys[2], "192.168.0.2")
    }
    remotes = remotes_of(state, node_id="n1", underlay="192.168.0.1", link=5)
    assert {entry.link for entry in remotes.forwarding} == {5}


def test_only_an_overlay_can_be_encrypted() -> None:
    with pytest.raises(UserError, match="only an overlay"):
        NetworkSpec(id="b", name="b", driver="bridge", subnet="10.1.0.0/24", gateway="10.1.0.1", encrypted=True)
    with pytest.raises(UserError, match="not 32 bytes in base64"):
        Endpoint(id="t", address="10.9.0.5", tunnel_key='x"; drop')


def card(network: NetworkSpec, name: str) -> Interface:
    six = "fd00:9::5" if network.subnet6 else ""
    return Interface(
        network_id=network.id,
        name=name,
        address=network.gateway.rpartition(".")[0] + ".5",
        prefix_len=24,
        mac="02:42:00:00:00:05",
        address6=six,
        prefix_len6=64 if six else 0,
    )


def test_each_family_leaves_by_the_first_network_that_has_it() -> None:
    networks = {spec.id: spec for spec in (FOUR, DUAL)}
    four, dual = desired.with_gateway([card(FOUR, "eth0"), card(DUAL, "eth1")], networks)
    assert (four.gateway, four.gateway6) == ("10.8.0.1", "")
    assert (dual.gateway, dual.gateway6) == ("", "fd00:9::1")
    (inside,) = desired.with_gateway([card(DUAL, "eth0")], {"dual": replace(DUAL, internal=True)})
    assert (inside.gateway, inside.gateway6) == ("", "")


# -- rules


def test_a_sandbox_without_ipv6_has_no_table_of_it() -> None:
    four = desired.sandbox_rules([NetworkState(network=FOUR)], seed="s", port=1)
    assert four.vips6 is None and "ip6" not in plan_sandbox(None, four)
    dual = desired.sandbox_rules([NetworkState(network=DUAL)], seed="s", port=1)
    assert "add table ip6 fleet" in plan_sandbox(None, dual)
    assert plan_sandbox(dual, four) == "delete table ip6 fleet\n"
    assert "add table ip fleet" not in plan_sandbox(four, dual)


def test_virtual_addresses_lead_to_ready_tasks_of_their_family() -> None:
    state = NetworkState(network=DUAL, endpoints=(endpoint(5), endpoint(6), endpoint(7, ready=False)), services=(WEB,))
    wanted = desired.sandbox_rules([state], seed="s", port=1)
    assert set(wanted.vips["10.9.0.2"]) == {"10.9.0.5", "10.9.0.6"}
    assert wanted.vips6 is not None and set(wanted.vips6["fd00:9::2"]) == {"fd00:9::5", "fd00:9::6"}
    before = SandboxRules(dns_port=1, vips6={"fd00:9::2": ("fd00:9::5", "fd00:9::6")})
    after = SandboxRules(dns_port=1, vips6={"fd00:9::2": ("fd00:9::5",)})
    assert plan_sandbox(before, after) == (
        "flush chain ip6 fleet vip_fd00_9__2\nadd rule ip6 fleet vip_fd00_9__2 dnat to fd00:9::5\n"
    )


def test_rules_of_the_host_are_of_one_family_each() -> None:
    ingress = replace(DUAL, id="in", ingress=True, node_address="10.9.0.9", node_address6="fd00:9::9")
    states = {
        "in": NetworkState(network=ingress, endpoints=(endpoint(5),), services=(WEB,)),
        "four": NetworkState(network=FOUR),
    }
    port = PublishedPort(protocol="tcp", published_port=80, target_port=8080, service_id="s")
    common = {
        "bridges": {"in": "fb1", "four": "fb2"},
        "records": (),
        "published": (port,),
        "seed": "n",
        "closed_router": True,
    }
    four = desired.host_rules(states, **common)  # type: ignore[arg-type]
    six = desired.host_rules(states, family="ip6", **common)  # type: ignore[arg-type]
    assert four is not None and six is not None
    assert {rule.bridge for rule in four.networks} == {"fb1", "fb2"}
    assert six.networks == {NetworkRule(bridge="fb1", subnet="fd00:9::/64", internal=False, node_address="fd00:9::9")}
    assert six.published == {("tcp", 80): (("fd00:9::5", 8080),)} and not six.tunnels and not six.peers
    assert "dnat ip6 to [fd00:9::5]:8080" in plan_host(None, six, table="t", family="ip6")
    assert desired.host_rules({"four": states["four"]}, family="ip6", **common) is None  # type: ignore[arg-type]
    assert plan_host(None, HostRules(), table="t").count("ip6") == 0


def test_a_host_port_is_open_at_addresses_of_the_families_it_names() -> None:
    (way_out,) = desired.with_gateway([card(DUAL, "eth0")], {"dual": DUAL})
    ports = tuple(
        HostPort(protocol="tcp", host_port=number, target_port=80, host_address=address)
        for number, address in enumerate(("", "0.0.0.0", "::", "192.0.2.1", "2001:db8::1"), 1)
    )
    record = SandboxRecord(spec=SandboxSpec(id="s", host_ports=ports), interfaces=(way_out,), veths=("v",), dns_port=1)

    def rules(family: str) -> set[tuple[int, str]]:
        found = desired.host_ports([record], family=family)  # type: ignore[arg-type]
        return {(rule.host_port, rule.host_address) for rule in found}

    assert rules("ip") == {(1, "0.0.0.0"), (2, "0.0.0.0"), (4, "192.0.2.1")}
    assert rules("ip6") == {(1, "::"), (3, "::"), (5, "2001:db8::1")}
    everywhere = HostPortRule(protocol="tcp", host_address="::", host_port=1, target=("fd00:9::5", 80))
    text = plan_host(HostRules(), HostRules(host_ports=frozenset({everywhere})), table="t", family="ip6")
    assert text == "add element ip6 t host_any { tcp . 1 : fd00:9::5 . 80 }\n"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("", "", True),
        ("", "::", True),
        ("", "192.0.2.1", True),
        ("0.0.0.0", "::", False),
        ("0.0.0.0", "192.0.2.1", True),
        ("::", "2001:db8::1", True),
        ("::", "192.0.2.1", False),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_host_ports_that_want_the_same_packets_overlap(one: str, other: str, same: bool) -> None:
    first, second = (
        HostPort(protocol="tcp", host_port=80, target_port=1, host_address=address) for address in (one, other)
    )
    assert first.overlaps(second) is second.overlaps(first) is same
    assert not first.overlaps(replace(second, host_port=81))


def test_a_card_may_send_from_its_own_addresses_only() -> None:
    one, two = Card("fv1", "02:42:0a:09:00:05", "fd00:9::5"), Card("fv2", "02:42:0a:09:00:06", "fd00:9::6")
    assert link_local(one.mac) == "fe80::42:aff:fe09:5"
    text = plan_cards(None, frozenset({one}), table="t")
    assert '"fv1" . fd00:9::5, "fv1" . fe80::42:aff:fe09:5' in text
    assert '"fv1" . 0xfd000009000000000000000000000005' in text
    assert "nd-router-advert, nd-redirect } drop" in text
    step = plan_cards(frozenset({one}), frozenset({two}), table="t")
    assert "add table" not in step and 'delete element bridge t cards { "fv1" }' in step
    assert plan_cards(frozenset({one}), frozenset({one}), table="t") == ""


# -- names


def directory(network: NetworkSpec = DUAL) -> Directory:
    state = NetworkState(network=network, endpoints=(endpoint(5), endpoint(6)), services=(WEB,))
    found = Directory()
    found.tables[network.id] = Table.from_json(zone_of(state).to_json(1))
    return found


def ask(name: str, kind: int, *, of: Directory) -> tuple[int, list[tuple[int, int, bytes]]] | None:
    query = wire.parse_query(wire.build_query(name, kind, identity=1))
    answer = of.answer(View("s", (*of.tables,)), query)
    return None if answer is None else (answer.code, answer.records)


def test_names_have_addresses_of_both_families() -> None:
    found = directory()
    assert ask("web", wire.AAAA, of=found) == (
        wire.NOERROR,
        [(wire.AAAA, TTL_VIP_S, wire.encode_aaaa("fd00:9::2"))],
    )
    assert ask("web", wire.A, of=found) == (wire.NOERROR, [(wire.A, TTL_VIP_S, wire.encode_a("10.9.0.2"))])
    tasks = ask("tasks.web", wire.AAAA, of=found)
    assert tasks is not None
    assert sorted(tasks[1]) == [(wire.AAAA, TTL_TASK_S, wire.encode_aaaa(f"fd00:9::{n}")) for n in (5, 6)]
    both = ask("web.5.dual", wire.ANY, of=found)
    assert both is not None and {record[0] for record in both[1]} == {wire.A, wire.AAAA}


def test_a_name_without_ipv6_is_there_all_the_same() -> None:
    found = directory(DUAL.without_ipv6())
    assert ask("web", wire.AAAA, of=found) == (wire.NOERROR, [])
    assert ask("nobody", wire.AAAA, of=found) is None


def test_reverse_names_of_ipv6() -> None:
    found = directory()
    name = ipaddress.IPv6Address("fd00:9::5").reverse_pointer
    assert ask(name, wire.PTR, of=found) == (wire.NOERROR, [(wire.PTR, 600, wire.encode_name("web.5.dual"))])
    ours = ipaddress.IPv6Address("fd00:9::99").reverse_pointer
    assert ask(ours, wire.PTR, of=found) == (wire.NXDOMAIN, [])
    for elsewhere in (
        ipaddress.IPv6Address("fd00:8::99").reverse_pointer,
        "5.0.ip6.arpa",
        "g" + name[1:],
        "00" + name[1:],
    ):
        assert ask(elsewhere, wire.PTR, of=found) is None
    assert ask(ours, wire.PTR, of=directory(DUAL.without_ipv6())) is None
