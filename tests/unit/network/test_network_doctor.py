"""The doctor's comparisons and frames: what is right is one sentence, what differs is named."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from fleet.network.doctor.agreement import (
    Cable,
    SeenLinks,
    WantedLinks,
    compare_card,
    compare_forwarding,
    compare_links,
    compare_tunnel,
)
from fleet.network.doctor.finding import Check, Finding, Level
from fleet.network.doctor.frames import OUTER_BYTES, Mark, datagram, ladder, parse_frame
from fleet.network.doctor.inside import Question, judge_answer
from fleet.network.doctor.listing import compare_rules, dropping_rules, statements
from fleet.network.kernel.rtnetlink import FdbEntry, Link, NeighbourEntry
from fleet.network.links import Remotes
from fleet.network.topology import Interface
from fleet.network.tunnel.keeper import Contact, TunnelPeer

MAC = "02:42:0a:00:01:01"
FAR = "02:42:0a:00:01:0b"


def link(name: str, index: int, *, master: int = 0, kind: str = "veth", mtu: int = 1450, up: bool = True) -> Link:
    return Link(
        index=index, name=name, up=up, mtu=mtu, group=0, master=master, mac=MAC, alias="", kind=kind,
        vxlan_id=7, vxlan_local="192.0.2.1", vxlan_port=4789,
    )  # fmt: skip


WANTED = WantedLinks(
    network="front",
    bridge="fb1",
    mac=MAC,
    mtu=1450,
    addresses=frozenset({("10.0.1.1", 24)}),
    vxlan="fx1",
    tunnel=(7, 4789, "192.0.2.1"),
    cables=(Cable("fv1", of="web"),),
    remotes=Remotes(frozenset({FdbEntry(FAR, "192.0.2.2")}), frozenset({NeighbourEntry("10.0.1.11", FAR)})),
)
SEEN = SeenLinks(
    links={"fb1": link("fb1", 3, kind="bridge"), "fx1": link("fx1", 4, master=3), "fv1": link("fv1", 5, master=3)},
    addresses={("10.0.1.1", 24)},
    remotes=WANTED.remotes,
)


def sentences(found: list[Finding]) -> list[str]:
    assert all(finding.remedy for finding in found if finding.level is Level.WRONG)
    return [finding.says for finding in found if finding.level is Level.WRONG]


def with_links(**changed: Link | None) -> SeenLinks:
    links = {**SEEN.links, **changed}
    return replace(SEEN, links={name: each for name, each in links.items() if each is not None})


def test_links_that_agree_are_one_finding() -> None:
    found = compare_links(WANTED, SEEN) + compare_forwarding(WANTED, SEEN)
    assert [finding.level for finding in found] == [Level.RIGHT, Level.RIGHT]


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (with_links(fb1=None), ["bridge fb1 is missing"]),
        (with_links(fb1=link("fb1", 3, up=False)), ["bridge fb1 is down"]),
        (with_links(fb1=link("fb1", 3, mtu=1400)), ["bridge fb1 has an MTU of 1400 bytes; it should be 1450"]),
        (replace(SEEN, addresses=()), ["bridge fb1 lacks its address 10.0.1.1/24"]),
        (with_links(fx1=None), ["VXLAN device fx1 is missing"]),
        (with_links(fx1=link("fx1", 4)), ["VXLAN device fx1 is no port of bridge fb1"]),
        (with_links(fv1=None), ["cable fv1 of container web is missing"]),
        (with_links(fv1=link("fv1", 5, master=9)), ["cable fv1 of container web is no port of bridge fb1"]),
        (with_links(fv1=link("fv1", 5, master=3, mtu=9000)), ["cable fv1 of container web has an MTU of 9000"]),
    ],
)
def test_each_difference_of_links_is_one_sentence(seen: SeenLinks, says: list[str]) -> None:
    found = sentences(compare_links(WANTED, seen))
    assert len(found) == len(says)
    assert all(sentence.startswith(start) for sentence, start in zip(found, says, strict=True))


def test_forwarding_that_is_missing_misleading_or_left_over_is_named() -> None:
    moved = replace(SEEN, remotes=Remotes(frozenset({FdbEntry(FAR, "192.0.2.9")}), WANTED.remotes.neighbours))
    assert sentences(compare_forwarding(WANTED, moved)) == [
        f"1 forwarding entries lead to the wrong host: {FAR} leads to host 192.0.2.9, is at 192.0.2.2"
    ]
    empty = sentences(compare_forwarding(WANTED, replace(SEEN, remotes=Remotes())))
    assert (
        len(empty) == 2
        and "are missing" in empty[0]
        and "not answered for (ARP, neighbour discovery): 10.0.1.11" in empty[1]
    )
    surplus = sentences(compare_forwarding(replace(WANTED, remotes=Remotes()), SEEN))
    assert len(surplus) == 2 and "should not be" in surplus[0]


def test_an_encrypted_network_must_send_through_the_tunnel() -> None:
    sealed = replace(
        WANTED, link=8, remotes=Remotes(frozenset({FdbEntry(FAR, "192.0.2.2", 8)}), WANTED.remotes.neighbours)
    )
    assert sentences(compare_links(sealed, SEEN)) == [
        "VXLAN device fx1 does not send through the encrypted tunnel as it should"
    ]
    assert "is at 192.0.2.2 by link 8" in sentences(compare_forwarding(sealed, SEEN))[0]


def test_each_thing_that_ails_the_tunnel_is_said() -> None:
    up = Contact(peer=TunnelPeer("k", "192.0.2.2"), handshake_s=9.0, sent_bytes=1, received_bytes=1, is_connected=True)
    down = replace(up, peer=TunnelPeer("l", "192.0.2.3"), handshake_s=-1.0, is_connected=False)
    good = compare_tunnel(missing={}, contacts=[up], fault="", port=4790)
    assert [(f.level, f.says) for f in good] == [(Level.RIGHT, "the encrypted tunnel to 1 host is up")]
    bad = compare_tunnel(missing={"safe": {"192.0.2.4"}}, contacts=[up, down], fault="gone", port=4790)
    assert sentences(bad) == [
        "no key is known of 192.0.2.4, so nothing is sent there",
        "the encrypted tunnel does not work here: gone",
        "the encrypted tunnel to 192.0.2.3 is down (never agreed on keys): packets for it are dropped",
    ]


def test_a_card_without_its_address_is_named() -> None:
    card = Interface(network_id="n", name="eth0", address="10.0.1.5", prefix_len=24, mac=MAC)
    links = {"eth0": link("eth0", 2)}
    good = compare_card(card, of="web", network="front", links=links, addresses={("10.0.1.5", 24)})
    assert not good
    bad = compare_card(card, of="web", network="front", links=links, addresses=())
    assert sentences(bad) == ["card eth0 of container web lacks its address 10.0.1.5/24"]
    gone = compare_card(card, of="web", network="front", links={}, addresses=())
    assert sentences(gone) == ["container web has no card eth0"]


LISTING = """table ip fleet_a {
    set peers {
        type ipv4_addr
        elements = { 192.0.2.1, 192.0.2.2,
                 192.0.2.3 }
    }

    chain input {
        type filter hook input priority filter; policy accept;
        udp dport @vxlan_ports jump tunnels
    }
}
"""


def test_a_listing_is_taken_apart_into_rules_and_elements() -> None:
    assert statements(LISTING) >= {
        "set peers: 192.0.2.3",
        "chain input: udp dport @vxlan_ports jump tunnels",
        "chain input: type filter hook input priority filter; policy accept;",
    }


def test_rules_are_compared_whatever_the_order_of_elements_and_differences_are_named() -> None:
    turned = LISTING.replace("192.0.2.1, 192.0.2.2", "192.0.2.2, 192.0.2.1")
    assert compare_rules(LISTING, turned, where="host").level is Level.RIGHT
    changed = LISTING.replace("192.0.2.3", "192.0.2.4").replace("        udp dport @vxlan_ports jump tunnels\n", "")
    found = compare_rules(LISTING, changed, where="host")
    assert found.level is Level.WRONG and found.check is Check.RULES
    assert "2 missing (chain input: udp dport @vxlan_ports jump tunnels; set peers: 192.0.2.3)" in found.says
    assert "1 added (set peers: 192.0.2.4)" in found.says
    assert "the table of rules is missing" in compare_rules(LISTING, "", where="host").says


def test_rules_of_others_that_drop_the_port_are_suspects_and_ours_are_not() -> None:
    other = "table inet wall {\n\tchain in {\n\t\tudp dport 4789 counter drop\n\t\tudp dport 4789 accept\n\t}\n}\n"
    ours = "table ip fleet_a {\n\tchain tunnels {\n\t\tudp dport 4789 ip saddr != @peers drop\n\t}\n}\n"
    found = dropping_rules(ours + other, port=4789, ours="fleet_a")
    assert found == ["chain in of table inet wall: udp dport 4789 counter drop"]


@pytest.mark.parametrize("size", ladder(1450))
def test_a_mark_survives_its_packet_and_the_packet_has_the_size_it_says(size: int) -> None:
    mark = Mark(bytes(range(16)), 3, size)
    packet = datagram(mark, vni=4097, mac=FAR)
    assert len(packet) + 28 == size, "IPv4 and UDP headers are 28 bytes"
    assert int.from_bytes(packet[4:7], "big") == 4097
    assert parse_frame(packet[8:]) == mark


def test_frames_of_others_carry_no_mark() -> None:
    assert parse_frame(b"") is None
    assert parse_frame(b"\xff" * 1500) is None
    foreign = bytearray(datagram(Mark(bytes(16), 0, 200), vni=1, mac=MAC)[8:])
    foreign[14:18] = b"else"
    assert parse_frame(bytes(foreign)) is None


def test_the_ladder_begins_small_and_never_exceeds_the_full_size() -> None:
    for mtu in (576, 1230, 1450, 8950):
        small, full, *others = ladder(mtu)
        assert full == mtu + OUTER_BYTES and small < full
        assert all(small < size < full for size in others)


def test_what_a_name_is_answered_with_is_judged() -> None:
    with socket.socket() as sock:
        asked = Question(sandbox_id="web", network="front", name="db", expected=frozenset({"10.0.1.2"}), sock=sock)
    assert judge_answer(asked, frozenset({"10.0.1.2"})).level is Level.RIGHT
    assert "is answered with 10.0.1.9; it should be 10.0.1.2" in judge_answer(asked, frozenset({"10.0.1.9"})).says
    assert "answered with no address" in judge_answer(asked, frozenset()).says
    assert "gets no answer" in judge_answer(asked, None).says
