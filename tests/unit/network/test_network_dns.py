"""Names: from state to tables, from questions to answers, as bytes."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest

from fleet.network.dns import wire
from fleet.network.dns.lookup import Directory, Table, View
from fleet.network.dns.records import TTL_TASK_S, TTL_VIP_S, zone_of
from fleet.network.resolv import HostResolver, parse_resolv_conf, render_resolv_conf
from fleet.network.topology import Endpoint, NetworkSpec, NetworkState, ServiceRecord

NET = NetworkSpec(id="n1", name="Back", driver="overlay", subnet="10.0.1.0/24", gateway="10.0.1.1", vni=4097)


def task(number: int, *, ready: bool = True, service: str = "s", aliases: tuple[str, ...] = ()) -> Endpoint:
    return Endpoint(
        id=f"t{number}",
        service_id=service,
        names=(f"Web.{number}.t{number}",),
        aliases=aliases,
        address=f"10.0.1.{number}",
        ready=ready,
    )


def hosts_of(*endpoints: Endpoint, services: tuple[ServiceRecord, ...]) -> dict[str, tuple[int, tuple[str, ...]]]:
    return zone_of(NetworkState(network=NET, endpoints=endpoints, services=services)).hosts


def test_vip_service_resolves_to_its_address_and_tasks_to_the_ready_ones() -> None:
    web = ServiceRecord(id="s", name="Web", aliases=("www",), vip="10.0.1.100")
    hosts = hosts_of(task(5), task(6), task(7, ready=False), services=(web,))
    assert hosts["web"] == hosts["www"] == (TTL_VIP_S, ("10.0.1.100",))
    assert hosts["tasks.web"] == hosts["tasks.www"] == (TTL_TASK_S, ("10.0.1.5", "10.0.1.6"))
    assert hosts["web.7.t7"] == (TTL_TASK_S, ("10.0.1.7",))


def test_dnsrr_service_resolves_to_ready_tasks_and_keeps_its_name_without_any() -> None:
    rr = ServiceRecord(id="s", name="web")
    assert hosts_of(task(5), task(6, ready=False), services=(rr,))["web"] == (TTL_TASK_S, ("10.0.1.5",))
    assert hosts_of(services=(rr,))["web"] == (TTL_TASK_S, ())


def test_alias_shared_by_services_resolves_to_all_and_service_names_win_over_containers() -> None:
    one = ServiceRecord(id="a", name="a", aliases=("db",), vip="10.0.1.101")
    two = ServiceRecord(id="b", name="b", aliases=("db",), vip="10.0.1.102")
    impostor = task(9, service="c", aliases=("a", "own"))
    hosts = hosts_of(impostor, services=(one, two))
    assert hosts["db"][1] == ("10.0.1.101", "10.0.1.102")
    assert hosts["a"][1] == ("10.0.1.101",)
    assert hosts["own"][1] == ("10.0.1.9",)


def test_the_ingress_network_has_no_names() -> None:
    web = ServiceRecord(id="s", name="web", vip="10.0.1.100")
    zone = zone_of(
        NetworkState(network=replace(NET, ingress=True), endpoints=(task(5, aliases=("own",)),), services=(web,))
    )
    assert (zone.hosts, zone.reverse, zone.subnet) == ({}, {}, NET.subnet)


def test_local_containers_are_added_unless_known() -> None:
    state = NetworkState(network=NET, endpoints=(task(5),))
    local = [
        Endpoint(id="t5", names=("other",), address="10.0.1.77"),
        Endpoint(id="c", names=("box",), address="10.0.1.9"),
    ]
    hosts = zone_of(state, local).hosts
    assert "other" not in hosts
    assert hosts["box"][1] == ("10.0.1.9",)


def test_names_too_long_for_dns_do_not_break_the_zone() -> None:
    endpoint = Endpoint(id="x", names=("a" * 64,), address="10.0.1.9")
    zone = zone_of(NetworkState(network=NET, endpoints=(endpoint,)))
    assert zone.reverse == {}


def directory() -> tuple[Directory, View]:
    web = ServiceRecord(id="s", name="web", vip="10.0.1.100")
    zone = zone_of(NetworkState(network=NET, endpoints=(task(5), task(6)), services=(web,)))
    known = Directory(rng=random.Random(1))
    known.tables["n1"] = Table.from_json(zone.to_json(3))
    return known, View("box", ("n0", "n1"))


def ask(name: str, kind: int = wire.A) -> tuple[int, int] | None:
    known, view = directory()
    answer = known.answer(view, wire.parse_query(wire.build_query(name, kind, identity=7)))
    return None if answer is None else (answer.code, len(answer.records))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("web", wire.A, (wire.NOERROR, 1)),
        ("WeB", wire.A, (wire.NOERROR, 1)),
        ("web.back", wire.A, (wire.NOERROR, 1)),
        ("web.front", wire.A, None),
        ("tasks.web", wire.A, (wire.NOERROR, 2)),
        ("tasks.web.back", wire.A, (wire.NOERROR, 2)),
        ("web", wire.AAAA, (wire.NOERROR, 0)),
        ("web", 15, (wire.NOERROR, 0)),
        ("web", wire.ANY, (wire.NOERROR, 1)),
        ("other", wire.A, None),
        ("", wire.A, None),
        ("5.1.0.10.in-addr.arpa", wire.PTR, (wire.NOERROR, 1)),
        ("100.1.0.10.in-addr.arpa", wire.PTR, (wire.NOERROR, 1)),
        ("200.1.0.10.in-addr.arpa", wire.PTR, (wire.NXDOMAIN, 0)),
        ("1.0.0.127.in-addr.arpa", wire.PTR, None),
        ("1.0.10.in-addr.arpa", wire.PTR, None),
        ("x.1.0.10.in-addr.arpa", wire.PTR, None),
        ("²56.1.0.10.in-addr.arpa", wire.PTR, None),
    ],
)
def test_questions_are_answered_forwarded_or_denied(name: str, kind: int, expected: tuple[int, int] | None) -> None:
    assert ask(name, kind) == expected


def test_other_networks_names_are_not_seen() -> None:
    known, _ = directory()
    answer = known.answer(View("box", ("n9",)), wire.parse_query(wire.build_query("web", wire.A, identity=7)))
    assert answer is None


def test_answer_that_does_not_fit_is_cut_and_says_so() -> None:
    query = wire.parse_query(wire.build_query("web", wire.A, identity=7))
    records = [(wire.A, 2, wire.encode_a(f"10.0.0.{n}")) for n in range(100)]
    short = wire.build_response(query, code=0, answers=records, authoritative=True, size_max=512)
    assert len(short) <= 512
    assert struct.unpack_from("!H", short, 2)[0] & 0x0200
    assert struct.unpack_from("!H", short, 6)[0] == (512 - 12 - len(query.question)) // 16
    whole = wire.build_response(query, code=0, answers=records, authoritative=True, size_max=65535)
    assert not struct.unpack_from("!H", whole, 2)[0] & 0x0200
    assert struct.unpack_from("!H", whole, 6)[0] == 100


def test_edns_size_is_honoured_within_bounds() -> None:
    for offered, used in ((100, 512), (1232, 1232), (65535, 4096)):
        query = wire.parse_query(wire.build_query("web", wire.A, identity=7, edns_size=offered))
        assert (query.edns, query.udp_size) == (True, used)
    answer = wire.build_response(query, code=0, answers=[], authoritative=True, size_max=512)
    assert struct.unpack_from("!H", answer, 10)[0] == 1
    assert answer.endswith(b"\0\0\x29\x10\0" + bytes(6))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 11,
        wire.build_query("web", wire.A, identity=1)[:-1],
        b"\0\1\x80\0" + wire.build_query("web", wire.A, identity=1)[4:],  # an answer
        b"\0\1\x28\0" + wire.build_query("web", wire.A, identity=1)[4:],  # opcode update
        wire.build_query("web", wire.A, identity=1)[:12] + b"\xc0\x0c\0\1\0\1",  # a name that points at itself
        wire.build_query("web", wire.A, identity=1)[:12] + b"\x3fabc\0\0\1\0\1",
        wire.build_query("web", wire.A, identity=1)[:12] + b"\x01a" * 130 + b"\0\0\1\0\1",
    ],
)
def test_what_is_no_question_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.parse_query(data)


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".".join(["abc"] * 64)])
def test_names_that_cannot_be_written_are_refused(name: str) -> None:
    with pytest.raises(wire.WireError):
        wire.encode_name(name)


def test_hosts_resolver_is_read_as_libc_does() -> None:
    servers = "nameserver 10.0.0.1 ; x\nnameserver fe80::1%eth0\nnameserver 127.0.0.11\nnameserver 10.0.0.1\n"
    text = f"# comment\n{servers}domain a\nsearch b c\nbogus\n"
    assert parse_resolv_conf(text) == HostResolver(("10.0.0.1",), ("b", "c"))


def test_sandbox_resolver_has_the_users_wishes_or_the_hosts() -> None:
    host = HostResolver(("10.0.0.1",), ("corp",))
    plain = render_resolv_conf(search=(), options=(), host=host, embedded=True)
    assert plain == "nameserver 127.0.0.11\nsearch corp\noptions ndots:0\n"
    own = render_resolv_conf(search=("x", "y"), options=("ndots:2", "timeout:1"), host=host, embedded=True)
    assert own == "nameserver 127.0.0.11\nsearch x y\noptions ndots:2 timeout:1\n"
    none = render_resolv_conf(search=(".",), options=(), host=host, embedded=False)
    assert none == "nameserver 10.0.0.1\noptions ndots:0\n"
