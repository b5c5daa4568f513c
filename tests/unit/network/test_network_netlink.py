"""What all families of netlink have in common: attributes, refusals, batches. With a real kernel: tests/kernel/test_network_*."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.network.kernel.netlink import (
    Message,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    each_attribute,
    u32,
)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=20), st.binary(max_size=12))
def test_attributes_are_read_as_they_were_written_whatever_lies_before(
    written: list[tuple[int, bytes]], header: bytes
) -> None:
    body = header + b"".join(attribute(kind, value) for kind, value in written)
    assert list(each_attribute(body, len(header))) == written
    assert attributes(body, len(header)) == dict(written)


class Kernel(NetlinkSocket):
    """A socket whose other end the test holds, instead of the kernel."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)
        self.close()
        self._socket, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(5)

    def say(self, kind: int, sequence: int, body: bytes, flags: int = 0) -> None:
        self.end.send(struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body)

    def refuse(self, sequence: int, number: int, text: str = "") -> None:
        body = struct.pack("=iIHHII", -number, 16, 0, 0, sequence, 0)
        self.say(2, sequence, body + (attribute(1, text.encode() + b"\0") if text else b""), 0x200 if text else 0)

    def ask(self, flags: int) -> list[bytes]:
        return list(self._ask(18, b"", flags=flags, what="list links"))


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel() as opened, opened.end:
        yield opened


def message(number: int, *, tolerate: tuple[int, ...] = ()) -> Message:
    return Message(kind=16, flags=0, body=u32(1, number), describe=f"make {number}", tolerate=tolerate)


def test_the_first_refusal_of_a_batch_is_raised_with_the_kernels_words(kernel: Kernel) -> None:
    kernel.refuse(1, errno.EEXIST)
    kernel.refuse(7, errno.EPERM)  # a late answer to something else
    kernel.refuse(2, errno.EINVAL, "no such thing")
    kernel.refuse(3, errno.EBUSY)
    with pytest.raises(NetlinkError, match=r"make 2: Invalid argument \(no such thing\)") as refused:
        kernel.send(message(1, tolerate=(errno.EEXIST,)), message(2), message(3))
    assert refused.value.number == errno.EINVAL


def test_a_list_ends_where_the_kernel_says_and_a_single_answer_with_itself(kernel: Kernel) -> None:
    for number in (1, 2):
        kernel.say(16, 1, bytes([number] * 4))
    kernel.say(16, 9, b"late")
    kernel.say(3, 1, bytes(4))
    assert kernel.ask(0x300) == [bytes([1] * 4), bytes([2] * 4)]
    kernel.say(16, 2, b"only")
    assert kernel.ask(0) == [b"only"]
    kernel.refuse(3, errno.ENODEV)
    with pytest.raises(NetlinkError, match="list links: No such device"):
        kernel.ask(0)
