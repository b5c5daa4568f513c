"""Messages to and from the kernel's WireGuard: what is set is what would be read back (a kernel: test_network_encrypted)."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from fleet.network.kernel import genetlink
from fleet.network.kernel.genetlink import WireGuardPeer
from fleet.network.kernel.netlink import attributes, each_attribute

PEER = WireGuardPeer(public=bytes(range(32)), address="192.0.2.7", port=4790)


def test_a_peer_that_was_set_is_read_back_and_needs_no_second_setting() -> None:
    seen = genetlink._seen(genetlink._peer(PEER, 25))
    assert (seen.public, seen.endpoint, seen.allowed) == (PEER.public, ("192.0.2.7", 4790), (("192.0.2.7", 32),))
    assert seen.handshake_at == 0.0
    assert genetlink._is_as_wanted(PEER, seen)
    assert not genetlink._is_as_wanted(WireGuardPeer(PEER.public, "192.0.2.8", 4790), seen)
    assert not genetlink._is_as_wanted(WireGuardPeer(PEER.public, "192.0.2.7", 4791), seen)
    assert not genetlink._is_as_wanted(PEER, None)


def test_a_peer_is_laid_out_as_the_kernels_header_says() -> None:
    message = genetlink._peer(PEER, 25)
    fields = attributes(message)
    assert fields[1] == PEER.public
    assert fields[3] == struct.pack("=I", 2)  # WGPEER_F_REPLACE_ALLOWEDIPS
    assert fields[4] == struct.pack("=H", 2) + bytes.fromhex("12b6c0000207") + bytes(8)  # struct sockaddr_in
    assert fields[5] == struct.pack("=H", 25)
    assert len(message) % 4 == 0


@given(st.binary(max_size=200))
def test_whatever_the_kernel_says_is_read_without_an_end(body: bytes) -> None:
    assert len(list(each_attribute(body))) <= 50
