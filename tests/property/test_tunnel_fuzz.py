"""Hostile datagrams against one end of the tunnel: nothing raises, nothing grows, nothing passes, and honest traffic goes on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.network.tunnel import wire
from fleet.network.tunnel.session import ReplayWindow
from tests.support.tunnel_world import World, ipv4

_HEADS = st.sampled_from([bytes([kind, 0, 0, 0]) for kind in range(6)] + [b"\x01\x00\x00\x01", b""])
_SIZES = st.sampled_from([0, 12, 28, 32, 60, 88, 144, 1436])
_DATAGRAMS = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda head, size, fill: head + bytes([fill]) * size, _HEADS, _SIZES, st.integers(0, 255)),
    st.builds(lambda head, tail: head + tail, _HEADS, st.binary(max_size=160)),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(_DATAGRAMS, max_size=30), st.integers(0, 10_000))
def test_hostile_datagrams_are_dropped_without_a_trace(datagrams: list[bytes], seed: int) -> None:
    world = World(seed)
    one, two = world.pair()
    known = len(two.tunnel._by_index)
    for datagram in datagrams:
        world.inject(("198.51.100.7", 53), two, datagram)
    assert two.payloads() == []
    assert len(two.tunnel._by_index) == known
    one.send(two, b"honest")
    world.run(0.1)
    assert two.payloads() == [b"honest"]


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 1000))
def test_a_changed_datagram_of_a_peer_is_dropped(data: st.DataObject, seed: int) -> None:
    world = World(seed)
    one, two = world.pair()
    world.filter = lambda source, target, datagram: 0
    world.sent.clear()
    one.send(two, b"payload")
    (_, _, datagram) = world.sent[-1]
    # the padding of a type is zero and everything else is authenticated
    place = data.draw(st.integers(0, len(datagram) - 1))
    changed = bytearray(datagram)
    changed[place] ^= data.draw(st.integers(1, 255))
    world.inject((one.address, 1), two, bytes(changed))
    assert two.payloads() == []
    world.inject((one.address, 1), two, datagram)
    assert two.payloads() == [b"payload"]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100))
def test_a_peer_that_seals_nonsense_gets_nothing_through(packet: bytes) -> None:
    world = World()
    one, two = world.pair()
    peer = next(iter(one.tunnel._peers.values()))
    peer.send([packet], world.now)
    world.run(0.1)
    for got in two.got:  # by chance an honest packet
        assert got[12:16] == bytes([10, 0, 0, 1])
        assert len(got) == int.from_bytes(got[2:4], "big") >= 20


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 20_000), max_size=80))
def test_the_replay_window_agrees_with_a_plain_one(counters: list[int]) -> None:
    window, seen, newest = ReplayWindow(), set[int](), -1
    for counter in counters:
        expected = counter not in seen and counter > newest - 8192
        assert window.is_new(counter) is expected
        if expected:
            window.take(counter)
            seen.add(counter)
            newest = max(newest, counter)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 2), min_size=10, max_size=60))
def test_after_any_weather_packets_pass_again(seed: int, weather: list[int]) -> None:
    """Whatever was lost, doubled or late: once the wire is good, both directions work within six seconds."""
    world = World(seed)
    one, two = world.end("10.0.0.1"), world.end("10.0.0.2")
    fates = iter(weather * 50)
    world.filter = lambda source, target, datagram: next(fates, 1)
    world.delay = lambda: world.chance.uniform(0.001, 2.0)
    one.know(two)
    two.know(one)
    for number in range(30):
        (one, two)[number % 2].send((two, one)[number % 2], b"x")
        if number == 15:
            two.start()
            two.know(one)
        world.run(world.chance.uniform(0.0, 12.0))
    world.filter = lambda source, target, datagram: 1
    world.delay = lambda: 0.001
    world.run(26.0)
    one.send(two, b"to two")
    two.send(one, b"to one")
    world.run(6.0)
    assert two.payloads()[-1] == b"to two"
    assert one.payloads()[-1] == b"to one"


def test_the_sizes_are_wireguards() -> None:
    world = World()
    world.pair()
    sizes = {datagram[0]: len(datagram) for _, _, datagram in world.sent}
    assert sizes[wire.INITIATION] == 148
    assert sizes[wire.RESPONSE] == 92
    assert sizes[wire.DATA] in (32, 48)
    assert len(ipv4("1.2.3.4", "1.2.3.4")) == 20
