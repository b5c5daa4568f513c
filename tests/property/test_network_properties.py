"""Allocation, DNS parsing and rule planning hold for any input."""

from __future__ import annotations

import ipaddress
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import ConflictError
from fleet.network.dns import wire
from fleet.network.dns.lookup import Directory, Table, View
from fleet.network.ipam import SubnetPool, mac_for, next_address
from fleet.network.rules import SandboxRules, plan_sandbox

unhurried = settings(deadline=None)  # the machine is shared; what matters is the answer

lengths = st.integers(min_value=24, max_value=30)


@unhurried
@given(prefix_len=lengths, data=st.data())
def test_addresses_are_unique_inside_and_exhausted_exactly(prefix_len: int, data: st.DataObject) -> None:
    subnet = ipaddress.IPv4Network((int(ipaddress.IPv4Address("10.20.30.0")), prefix_len))
    hosts = [str(host) for host in subnet.hosts()]
    gateway = data.draw(st.sampled_from(hosts))
    used: list[str] = []
    after = None
    for _ in range(len(hosts) - 1):
        address = next_address(str(subnet), gateway, used, after=after)
        assert address in hosts
        assert address != gateway
        assert address not in used
        used.append(address)
        after = address
    try:
        next_address(str(subnet), gateway, used, after=after)
    except ConflictError as error:
        assert str(len(hosts) - 1) in str(error)
    else:
        raise AssertionError("a full subnet gave an address")


@unhurried
@given(used=st.sets(st.integers(min_value=2, max_value=14), max_size=12), last=st.integers(min_value=1, max_value=14))
def test_next_address_is_the_first_free_one_after_the_last_given(used: set[int], last: int) -> None:
    """So an address that was just freed comes again only when all others between were given."""
    around = [number for number in (*range(last + 1, 15), *range(2, last + 1)) if number not in used and number >= 2]
    taken = [f"10.0.0.{number}" for number in used]
    assert next_address("10.0.0.0/28", "10.0.0.1", taken, after=f"10.0.0.{last}") == f"10.0.0.{around[0]}"


@unhurried
@given(used=st.sets(st.integers(min_value=0, max_value=15), max_size=15))
def test_subnets_never_overlap(used: set[int]) -> None:
    taken = [f"10.0.{number}.0/24" for number in used]
    pool = SubnetPool([("10.0.0.0/20", 24)], used=taken)
    given_out = [ipaddress.IPv4Network(pool.next_subnet()) for _ in range(16 - len(used))]
    everything = given_out + [ipaddress.IPv4Network(subnet) for subnet in taken]
    assert len(set(everything)) == 16


@unhurried
@given(address=st.ip_addresses(v=4))
def test_mac_addresses_are_unicast_and_reversible(address: ipaddress.IPv4Address) -> None:
    raw = bytes.fromhex(mac_for(str(address)).replace(":", ""))
    assert raw[0] & 1 == 0
    assert raw[0] & 2 == 2
    assert ipaddress.IPv4Address(raw[2:]) == address


@unhurried
@given(data=st.binary(max_size=600))
def test_any_bytes_are_a_question_or_refused(data: bytes) -> None:
    try:
        query = wire.parse_query(data)
    except wire.WireError:
        return
    answer = wire.build_response(
        query, code=0, answers=[(1, 1, b"\1\2\3\4")] * 40, authoritative=True, size_max=query.udp_size
    )
    assert len(answer) <= max(query.udp_size, 12 + len(query.question) + 11)
    assert answer[12 : 12 + len(query.question)] == query.question
    directory = Directory(rng=random.Random(0))
    directory.tables["n"] = Table("n", "net", 1)
    directory.answer(View("s", ("n",)), query)


labels = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1, max_size=63)


@unhurried
@given(name=st.lists(labels, min_size=1, max_size=3).map(".".join), kind=st.integers(min_value=0, max_value=65535))
def test_questions_survive_the_wire(name: str, kind: int) -> None:
    query = wire.parse_query(wire.build_query(name, kind, identity=99, edns_size=1232))
    assert (query.name, query.kind, query.id, query.udp_size) == (name.lower(), kind, 99, 1232)


backends = st.lists(st.integers(min_value=1, max_value=5).map(lambda n: f"10.0.0.{n}"), unique=True, max_size=4).map(
    tuple
)
tables = st.dictionaries(st.integers(min_value=1, max_value=4).map(lambda n: f"10.9.9.{n}"), backends, max_size=4)


@unhurried
@given(before=tables, after=tables)
def test_planned_transactions_lead_from_any_state_to_any_other(
    before: dict[str, tuple[str, ...]], after: dict[str, tuple[str, ...]]
) -> None:
    model = _Model()
    model.run(plan_sandbox(None, SandboxRules(dns_port=5, vips=before)))
    assert model.vips() == before
    model.run(plan_sandbox(SandboxRules(dns_port=5, vips=before), SandboxRules(dns_port=5, vips=after)))
    assert model.vips() == after


class _Model:
    """An nftables table in a few lines: chains, one map, one set; refuses what the kernel refuses."""

    def __init__(self) -> None:
        self.chains: dict[str, list[str]] = {}
        self.map: dict[str, str] = {}
        self.set: set[str] = set()

    def run(self, text: str) -> None:
        for line in text.splitlines():
            words = line.split()
            match words[:2]:
                case ["delete", "table"]:
                    self.__init__()  # type: ignore[misc]
                case ["add", "chain"]:
                    self.chains[words[4]] = []
                case ["flush", "chain"]:
                    self.chains[words[4]].clear()
                case ["delete", "chain"]:
                    assert words[4] not in self.map.values(), "chain is in use"
                    assert not self.chains.pop(words[4])
                case ["add", "rule"]:
                    self.chains[words[4]].append(" ".join(words[5:]))
                case ["add" | "delete" as verb, "element"]:
                    inner = line[line.index("{") + 1 : line.rindex("}")]
                    for element in (part.strip() for part in inner.split(",")):
                        self._element(verb, words[4], element)

    def _element(self, verb: str, container: str, element: str) -> None:
        if container == "vips":
            if verb == "add":
                key, _, chain = element.partition(" : goto ")
                assert chain in self.chains, "jump to nowhere"
                self.map[key] = chain
            else:
                del self.map[element]
        elif verb == "add":
            self.set.add(element)
        else:
            self.set.remove(element)

    def vips(self) -> dict[str, tuple[str, ...]]:
        assert self.set == set(self.map)
        found = {}
        for vip, chain in self.map.items():
            assert len(self.chains[chain]) <= 1
            rule = self.chains[chain][0].removeprefix("dnat to ") if self.chains[chain] else ""
            if "map {" in rule:
                inner = rule[rule.index("{") + 1 : rule.rindex("}")]
                found[vip] = tuple(part.split(" : ")[1].strip() for part in inner.split(","))
                assert rule.startswith(f"numgen inc mod {len(found[vip])} ")
            else:
                found[vip] = (rule,) if rule else ()
        return found
