"""The encrypted tunnel's protocol against published vectors, and two ends of it against each other in simulated time."""

from __future__ import annotations

from hashlib import blake2s

import pytest

from fleet.network.tunnel import noise, wire
from fleet.network.tunnel.noise import HandshakeError, Initiator, KeyPair, Responder
from fleet.network.tunnel.session import ReplayWindow
from tests.support.tunnel_world import PORT, End, World, ipv4


def _hex(text: str) -> bytes:
    return bytes.fromhex(text)


# From the collection of the Haskell implementation "cacophony", protocol Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s.
PROLOGUE = b"John Galt"
PSK = b"This is my Austrian perspective!"
INITIATOR = KeyPair(_hex("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1"))
INITIATOR_EPHEMERAL = KeyPair(_hex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"))
RESPONDER = KeyPair(_hex("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893"))
RESPONDER_EPHEMERAL = KeyPair(_hex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b"))
FIRST = _hex(
    "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944001e21de9f98ddd8e2ad57527207feb56253c9c94a9e4967"
    "82ecfcb2a75fbcaf1b52948cc48daefe660c62119ab5000980c84831215f2441eba616548e832985464cf17e51ee93109008399a21f7e13f"
)
SECOND = _hex(
    "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843cb765f2caef0751b8f007572dab0322217755c0632f36571"
    "7edbf34d33e87a"
)
THIRD = (b"F. A. Hayek", _hex("8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7"))
FOURTH = (b"Carl Menger", _hex("07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef"))


def _initiator(psk: bytes = PSK) -> Initiator:
    return Initiator(
        static=INITIATOR,
        remote=RESPONDER.public,
        ephemeral=INITIATOR_EPHEMERAL,
        prologue=PROLOGUE,
        payload=b"Ludwig von Mises",
        psk=psk,
    )


def test_the_handshake_is_that_of_the_published_vector() -> None:
    initiator = _initiator()
    assert initiator.first == FIRST
    responder = Responder(static=RESPONDER, message=FIRST, prologue=PROLOGUE)
    assert (responder.remote, responder.payload) == (INITIATOR.public, b"Ludwig von Mises")
    answer, theirs = responder.answer(ephemeral=RESPONDER_EPHEMERAL, payload=b"Murray Rothbard", psk=PSK)
    assert answer == SECOND
    ours, payload = initiator.finish(SECOND)
    assert payload == b"Murray Rothbard"
    assert (ours.send, ours.receive) == (theirs.receive, theirs.send)
    for key, (plain, sealed) in ((ours.send, THIRD), (theirs.send, FOURTH)):
        assert noise.ChaCha20Poly1305(key).encrypt(bytes(12), plain, b"") == sealed


def test_the_first_hashes_are_those_that_wireguard_implementations_publish() -> None:
    chaining_key = blake2s(noise.CONSTRUCTION).digest()
    assert chaining_key.hex() == "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
    first = blake2s(chaining_key + wire.PROLOGUE).hexdigest()
    assert first == "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"


def test_cookies_are_sealed_as_the_draft_of_xchacha_says() -> None:
    key = bytes(range(32))
    nonce = _hex("000000090000004a0000000031415927")  # draft-irtf-cfrg-xchacha-03, section 2.2.1
    assert wire._hchacha20(key, nonce).hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    sealed = wire.seal_cookie(b"c" * 16, key=key, nonce=bytes(24), mac1=b"m" * 16)
    assert wire.open_cookie(sealed, key=key, nonce=bytes(24), mac1=b"m" * 16) == b"c" * 16
    assert wire.open_cookie(sealed, key=key, nonce=bytes(24), mac1=b"n" * 16) is None


def test_a_changed_handshake_is_refused_whichever_byte_it_is() -> None:
    for place in range(len(FIRST)):
        changed = bytearray(FIRST)
        changed[place] ^= 1
        with pytest.raises(HandshakeError):
            Responder(static=RESPONDER, message=bytes(changed), prologue=PROLOGUE)
    for place in range(len(SECOND)):
        changed = bytearray(SECOND)
        changed[place] ^= 1
        with pytest.raises(HandshakeError):
            _initiator().finish(bytes(changed))
    with pytest.raises(HandshakeError):
        _initiator(psk=bytes(32)).finish(SECOND)


def test_a_key_of_small_order_is_refused() -> None:
    with pytest.raises(HandshakeError):
        INITIATOR.exchange(bytes(32))


def test_the_replay_window_takes_each_counter_once_and_nothing_that_is_far_back() -> None:
    window = ReplayWindow()
    taken: set[int] = set()
    for counter in (0, 2, 1, 1, 9000, 8999, 2, 809, 808, 9000, 1 << 40, 9001):
        if window.is_new(counter):
            assert counter not in taken
            window.take(counter)
            taken.add(counter)
    assert taken == {0, 2, 1, 9000, 8999, 809, 1 << 40}


# --- two ends -------------------------------------------------------------------------------------------------------------


def test_packets_pass_sealed_padded_and_in_both_directions() -> None:
    world = World()
    one, two = world.pair()
    world.sent.clear()
    one.send(two, b"marker" * 5)
    two.send(one, b"answer")
    world.run(0.1)
    assert two.payloads() == [b"marker" * 5]
    assert one.payloads() == [b"answer"]
    data = [datagram for _, _, datagram in world.sent]
    assert all(b"marker" not in datagram and b"answer" not in datagram for datagram in data)
    assert sorted(map(len, data)) == [64, 96]  # 16 + 32 + 16, 16 + 64 + 16


def test_ends_that_learn_of_each_other_at_different_times_are_connected_at_once() -> None:
    world = World()
    one, two = world.end("10.0.0.1"), world.end("10.0.0.2")
    one.know(two)
    one.send(two, b"early")
    world.run(1.3)
    assert not one.is_connected(two)
    two.know(one)
    world.run(0.05)
    assert one.is_connected(two)
    assert two.is_connected(one)
    assert two.payloads() == [b"early"]


def test_ends_that_learn_of_each_other_in_the_same_moment_are_connected_at_once() -> None:
    world = World()
    one, two = world.pair()
    for sender, receiver in ((one, two), (two, one)):
        sender.send(receiver, b"now")
    world.run(0.05)
    assert (one.payloads(), two.payloads()) == ([b"now"], [b"now"])


def test_nothing_is_lost_over_an_hour_with_new_keys_every_two_minutes() -> None:
    world = World()
    one, two = world.pair()
    expected = [b"%d" % number for number in range(3600)]
    for payload in expected:
        one.send(two, payload)
        two.send(one, payload)
        world.run(1.0)
    assert two.payloads() == expected
    assert one.payloads() == expected
    handshakes = sum(datagram[0] == wire.INITIATION for _, _, datagram in world.sent)
    assert 25 <= handshakes <= 62  # both ends may begin in the same moment


def test_keys_are_not_used_after_three_minutes_without_a_new_handshake() -> None:
    world = World()
    one, two = world.pair()
    world.filter = lambda source, target, datagram: int(datagram[0] == wire.DATA)  # no handshake passes any more
    for _ in range(200):
        one.send(two, b"x")
        world.run(1.0)
    assert not one.is_connected(two)
    last_data = max(i for i, (_, _, datagram) in enumerate(world.sent) if datagram[0] == wire.DATA)
    got = len(two.payloads())
    assert 175 <= got <= 181
    world.run(400.0)
    assert all(datagram[0] != wire.DATA for _, _, datagram in world.sent[last_data + 1 :])


def test_packets_that_wait_are_bounded_and_the_newest_of_them_arrive() -> None:
    world = World()
    one, two = world.end("10.0.0.1"), world.end("10.0.0.2")
    one.know(two)
    for number in range(1000):
        one.send(two, b"%d" % number)
    two.know(one)
    world.run(0.1)
    assert two.payloads() == [b"%d" % number for number in range(872, 1000)]


def test_lost_handshakes_are_tried_again_until_the_other_side_answers() -> None:
    world = World()
    one, two = world.end("10.0.0.1"), world.end("10.0.0.2")
    world.filter = lambda source, target, datagram: 0
    one.know(two)
    two.know(one)
    world.run(600.0)
    tries = len(world.sent)
    assert 150 <= tries <= 250  # each about every five seconds, for ever
    world.filter = lambda source, target, datagram: 1
    world.run(6.0)
    assert one.is_connected(two)
    assert two.is_connected(one)


def test_an_end_that_starts_anew_is_connected_again_at_once() -> None:
    world = World()
    one, two = world.pair()
    world.run(50.0)
    two.start()
    two.know(one)
    world.run(0.1)
    one.send(two, b"back")
    two.send(one, b"again")
    world.run(0.1)
    assert (one.payloads(), two.payloads()) == ([b"again"], [b"back"])


def test_an_end_that_starts_anew_unseen_is_found_by_its_silence() -> None:
    world = World()
    one, two = world.pair()
    two.start()
    world.filter = lambda source, target, datagram: int(source != "10.0.0.2" or world.now > 1.0)
    two.know(one)  # its greeting is lost
    for _ in range(25):
        one.send(two, b"x")
        world.run(1.0)
    assert two.payloads()[-1] == b"x"


def test_loss_doubling_and_reordering_give_each_packet_at_most_once_and_most_of_them() -> None:
    world = World(seed=7)
    one, two = world.pair()
    world.filter = lambda source, target, datagram: world.chance.choice((0, 1, 1, 1, 2))
    world.delay = lambda: world.chance.uniform(0.001, 0.3)
    for number in range(2000):
        one.send(two, b"%d" % number)
        world.run(0.2)
    got = two.payloads()
    assert len(got) == len(set(got))
    assert len(got) > 1400


def test_a_replayed_datagram_is_not_believed_again() -> None:
    world = World()
    one, two = world.pair()
    one.send(two, b"once")
    world.run(0.1)
    assert two.payloads() == [b"once"]
    for source, _, datagram in list(world.sent):
        world.inject(source, two, datagram)
    world.run(1.0)
    assert two.payloads() == []
    one.send(two, b"still")
    world.run(0.1)
    assert two.payloads() == [b"still"]


def test_packets_sent_at_once_have_a_counter_each_and_go_to_the_peer_whose_they_are() -> None:
    world = World()
    one, two, three = (world.end(f"10.0.0.{number}") for number in (1, 2, 3))
    one.know(two, three)
    two.know(one)
    three.know(one)
    world.run(0.1)
    world.sent.clear()
    targets = [two, two, three, two, three, three]
    packets = [ipv4(one.address, end.address, b"%d" % number) for number, end in enumerate(targets)]
    one.tunnel.send([*packets[:3], ipv4(one.address, "10.0.0.77", b"nobody's"), *packets[3:]], world.now)
    world.run(0.1)
    assert two.payloads() == [b"0", b"1", b"3"]
    assert three.payloads() == [b"2", b"4", b"5"]
    keys = [wire.DATA_HEADER.unpack_from(datagram) for _, _, datagram in world.sent]
    assert len(set(keys)) == len(keys) == 6
    assert one.tunnel.unrouted == 1


def test_of_datagrams_the_kernel_joined_each_is_judged_by_itself() -> None:
    world = World()
    ends = [world.end(f"10.0.0.{number}") for number in (1, 2, 3)]
    two, *others = ends
    for end in ends:
        end.know(*(other for other in ends if other is not end))
    world.run(0.1)
    world.filter = lambda source, target, datagram: 0
    world.sent.clear()
    for end in others:
        for number in range(3):
            end.send(two, end.address.encode() + b" %d" % number)
    sent = [datagram for _, _, datagram in world.sent]
    size = len(sent[0])
    assert all(len(datagram) == size for datagram in sent)
    assert len({datagram[4:8] for datagram in sent}) == 2  # as two sessions' of one peer would be
    forged = sent[1][:-1] + bytes([sent[1][-1] ^ 1])
    parts = [sent[0], forged, sent[3], sent[0], sent[4], sent[1], bytes(size), sent[2], sent[5], sent[5][:31]]
    joined = memoryview(b"".join(parts))
    got = two.tunnel.receive(joined, size, (others[0].address, PORT), world.now)
    a, b = (end.address.encode() for end in others)
    assert [packet[20:] for packet in got] == [a + b" 0", b + b" 0", b + b" 1", a + b" 1", a + b" 2", b + b" 2"]
    assert two.tunnel.receive(joined, size, (others[0].address, PORT), world.now) == []


def test_a_replayed_handshake_changes_nothing() -> None:
    world = World()
    _, two = world.pair()
    initiations = [datagram for _, target, datagram in world.sent if datagram[0] == 1 and target[0] == two.address]
    world.run(10.0)
    world.sent.clear()
    for datagram in initiations:
        world.inject(("10.0.0.9", 1), two, datagram)
    assert world.sent == []


def test_a_peer_can_send_from_its_own_addresses_only() -> None:
    world = World()
    one, two = world.pair()
    one.tunnel.send([ipv4("10.0.0.3", two.address, b"forged")], world.now)
    one.tunnel.send([ipv4(two.address, two.address, b"forged")], world.now)
    one.send(two, b"honest")
    world.run(0.1)
    assert two.payloads() == [b"honest"]


def test_a_packet_for_nobody_is_dropped_and_counted() -> None:
    world = World()
    one, _ = world.pair()
    world.sent.clear()
    one.tunnel.send([ipv4(one.address, "10.0.0.77", b"secret")], world.now)
    world.run(1.0)
    assert world.sent == []
    assert one.tunnel.unrouted == 1


def test_a_stranger_gets_no_answer() -> None:
    world = World()
    _, two = world.pair()
    stranger = End(world, "10.0.0.66")
    world.ends[stranger.address] = stranger
    stranger.know(two)
    world.run(20.0)
    assert not stranger.is_connected(two)
    assert all(target[0] != stranger.address for _, target, _ in world.sent)


def test_a_peer_that_is_taken_away_is_not_heard_any_more() -> None:
    world = World()
    one, two = world.pair()
    two.tunnel.set_peers({}, world.now)
    one.send(two, b"x")
    world.run(30.0)
    assert two.payloads() == []
    two.know(one)
    world.run(0.1)
    one.send(two, b"y")
    world.run(0.1)
    assert two.payloads()[-1:] == [b"y"]


def test_two_peers_cannot_have_one_address() -> None:
    world = World()
    one, two = world.end("10.0.0.1"), world.end("10.0.0.2")
    three = End(world, "10.0.0.2")
    with pytest.raises(ValueError, match="given to two peers"):
        one.know(two, three)


def test_the_endpoint_is_what_the_state_says_whoever_sends() -> None:
    world = World()
    one, two = world.end("10.0.0.1"), world.end("10.0.0.2")
    world.filter = lambda source, target, datagram: 0
    one.know(two)
    initiation = world.sent[-1][2]
    world.filter = lambda source, target, datagram: 1
    two.know(one)
    world.sent.clear()
    world.inject(("203.0.113.9", 9), two, initiation)
    assert [target for _, target, _ in world.sent] == [("10.0.0.1", PORT)]


def test_under_load_a_peer_is_served_after_it_proved_its_address() -> None:
    world = World()
    one, two = world.end("10.0.0.1"), world.end("10.0.0.2")
    two.know(one)
    world.run(0.01)
    flood = _initiations(world, to=two, count=80)
    for datagram in flood:
        world.inject(("198.51.100.1", 7), two, datagram)
    cookies = [datagram for _, target, datagram in world.sent if datagram[0] == wire.COOKIE]
    assert 0 < len(cookies) <= 200
    one.know(two)
    for _ in range(12):
        for datagram in flood:
            world.inject(("198.51.100.1", 7), two, datagram)
        world.run(0.5)
    assert one.is_connected(two)


def test_a_flood_of_good_marks_costs_a_bounded_number_of_handshakes() -> None:
    world = World()
    two = world.end("10.0.0.2")
    flood = _initiations(world, to=two, count=60)
    for number in range(3000):
        world.inject((f"198.51.{number // 250}.{number % 250}", 7), two, flood[number % 60])
    cookies = [datagram for _, _, datagram in world.sent if datagram[0] == wire.COOKIE]
    assert len(cookies) == 200
    assert len(two.tunnel._load.sources) == 0


def test_timestamps_grow_when_the_clock_is_set_back() -> None:
    world = World()
    one, two = world.pair()
    one.clock_ns -= 3600 * 10**9
    world.run(400.0)
    one.send(two, b"x")
    world.run(0.1)
    assert two.payloads() == [b"x"]
    assert one.is_connected(two)


def _initiations(world: World, *, to: End, count: int) -> list[bytes]:
    """Of strangers who know ``to``'s public key."""
    kept, world.sent = world.sent, []
    for number in range(count):
        End(world, f"10.1.0.{number}").know(to)
    made = [datagram for _, _, datagram in world.sent]
    world.sent = kept
    world.run(0.01)
    return made
