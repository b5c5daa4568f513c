"""What the doctor makes of packets that were sent and not heard."""

from __future__ import annotations

from fleet.daemon.doctor.verdict import HostSeen, judge_ways, targets_of, way_ears
from fleet.daemon.doctor.words import EarWord, HeardWord, ListenAnswer, LookAnswer, TooBig
from fleet.network.doctor.finding import Finding, Level
from fleet.network.doctor.frames import ladder

ALL = ("192.0.2.0", "192.0.2.1", "192.0.2.2")
NAMES = ("m1", "w1", "w2")


def ear(network: str = "n1", *, mtu: int = 1450, peers: tuple[str, ...] = ALL) -> EarWord:
    return EarWord(
        network=network, name=f"net-{network}", vni=7, port=4789, mac="02:42:0a:00:01:01", mtu=mtu, peers=peers
    )


def host(number: int, *ears: EarWord, examined: bool = True) -> HostSeen:
    answer = ListenAnswer(underlay=ALL[number], ears=ears or (ear(),))
    others = tuple(other for other in range(3) if other != number)
    heard = tuple(
        HeardWord(sender=other, network=each.network, sizes=ladder(each.mtu))
        for other in others
        for each in answer.ears
    )
    return HostSeen(
        number=number,
        name=NAMES[number],
        listening=answer,
        examined=examined,
        look=LookAnswer(pinged=others),
        heard=heard,
    )


def without(seen: HostSeen, sender: int, network: str = "n1", *, above: int = 0) -> None:
    """Forget what was heard from there, but for packets up to ``above`` bytes."""
    kept = []
    for word in seen.heard:
        sizes = word.sizes
        if (word.sender, word.network) == (sender, network):
            sizes = tuple(size for size in sizes if size <= above)
        if sizes:
            kept.append(HeardWord(sender=word.sender, network=word.network, sizes=sizes))
    seen.heard = tuple(kept)


def wrong(found: list[Finding]) -> list[tuple[str, str]]:
    assert all(finding.remedy for finding in found if finding.level is Level.WRONG)
    return [(finding.host, finding.says) for finding in found if finding.level is Level.WRONG]


def test_ways_that_work_are_one_sentence_a_host() -> None:
    found = judge_ways([host(0), host(1), host(2)])
    assert [(f.host, f.says) for f in found] == [
        ("m1", "full-sized VXLAN packets arrive at w1 and w2"),
        ("w1", "full-sized VXLAN packets arrive at m1 and w2"),
        ("w2", "full-sized VXLAN packets arrive at m1 and w1"),
    ]


def test_silence_with_pings_is_a_firewall_in_that_direction_only_and_its_rule_is_told() -> None:
    near, far = host(0), host(1)
    without(far, 0)
    far.look = LookAnswer(pinged=(0,), suspects=("chain in of table ip wall: udp dport 4789 drop",))
    found = judge_ways([near, far])
    assert [(name, "though it answers pings" in says) for name, says in wrong(found)] == [("m1", True)]
    remedy = next(f.remedy for f in found if f.level is Level.WRONG)
    assert remedy.startswith("let UDP port 4789 from 192.0.2.0 to 192.0.2.1 pass")
    assert "on w1, chain in of table ip wall: udp dport 4789 drop" in remedy


def test_silence_without_pings_is_no_way_at_all() -> None:
    near, far = host(0), host(1)
    without(far, 0)
    near.look = LookAnswer()
    assert "cannot be reached from 192.0.2.0" in wrong(judge_ways([near, far]))[0][1]


def test_silence_on_one_network_of_two_is_that_networks() -> None:
    near, far = host(0, ear("n1"), ear("n2")), host(1, ear("n1"), ear("n2"))
    without(far, 0, "n2")
    found = judge_ways([near, far])
    assert [f.network for f in found if f.level is Level.WRONG] == ["net-n2"]


def test_large_packets_that_are_lost_are_measured_and_the_nearest_mtu_is_offered() -> None:
    near, far = host(0), host(1)
    without(far, 0, above=1420)
    found = [f for f in judge_ways([near, far]) if f.level is Level.WRONG]
    assert len(found) == 1 and found[0].host == "m1" and found[0].network == "net-n1"
    assert "packets of 1500 bytes to w1 are lost on the way (the largest that arrived had 1420)" in found[0].says
    assert "com.docker.network.driver.mtu=1370" in found[0].remedy
    near.look = LookAnswer(pinged=(1,), too_big=(TooBig(target=1, network="n1", size=1500),))
    assert "do not fit this host's link" in wrong(judge_ways([near, far]))[0][1]


def test_hosts_that_disagree_about_an_mtu_are_told_which() -> None:
    found = wrong(judge_ways([host(0), host(1, ear(mtu=1350)), host(2)]))
    assert (
        "",
        "its MTU is 1450 bytes on m1 and w2 and 1350 bytes on w1: large packets from the first are lost at the last",
    ) in found


def test_only_networks_on_both_hosts_that_let_each_other_in_are_tried() -> None:
    closed = ear("n2", peers=("192.0.2.1",))
    near, far = host(0, ear("n1"), ear("n2"), ear("n3")), host(1, closed, ear("n4"))
    assert way_ears(near, far) == []
    found = judge_ways([near, far])
    assert not wrong(found) and "was not tried" in found[0].says
    bare = host(1, EarWord(port=4789, mtu=1450))
    assert len(way_ears(near, bare)) == 1, "a host without overlays listens on the port itself"


def test_with_one_node_asked_for_the_others_send_to_it_alone() -> None:
    hosts = [host(0, examined=False), host(1), host(2, examined=False)]
    assert [[target.name for target in targets_of(each, hosts)] for each in hosts] == [["w1"], ["m1", "w2"], ["w1"]]


def test_a_firewall_that_takes_the_tunnels_port_is_told_from_one_that_takes_all() -> None:
    sealed = EarWord(
        network="n2", name="safe", vni=8, port=4789, mac="02:42:0a:00:02:01", mtu=1390, peers=ALL, encrypted=True
    )
    hosts = [host(0, ear(), sealed), host(1, ear(), sealed)]
    without(hosts[1], 0, "n2")
    found = judge_ways(hosts)
    assert wrong(found) == [("m1", "packets of the encrypted network safe do not arrive at w1, those of others do")]
    assert any("UDP port 4790" in finding.remedy for finding in found)
    hosts = [host(0, sealed), host(1, sealed)]
    without(hosts[1], 0, "n2")
    ((_, says),) = wrong(judge_ways(hosts))
    assert says.startswith("packets of encrypted networks (UDP port 4790) do not arrive at w1")
