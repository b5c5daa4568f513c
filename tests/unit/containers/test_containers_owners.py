"""Owners on disk and owners in the container: ids, capabilities, access control lists."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.containers.owners import attribute_inside, attribute_outside, owner_inside, owner_outside
from fleet.containers.subids import IdRange
from fleet.errors import RejectedFault

IDS = IdRange(first_id=1_000_000)
PLAIN = struct.pack("<I4I", 0x02000001, 1 << 13, 0, 0, 0)
GIVEN_BY_ITS_ROOT = struct.pack("<I4II", 0x03000001, 1 << 13, 0, 0, 0, 1_000_000)
GIVEN_BY_ANOTHER = struct.pack("<I4II", 0x03000001, 1 << 13, 0, 0, 0, 5_000_000)


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_without_ids_of_its_own_nothing_is_changed() -> None:
    assert (owner_inside(None, 7), owner_outside(None, 7)) == (7, 7)
    assert attribute_inside(None, "security.capability", GIVEN_BY_ITS_ROOT) == GIVEN_BY_ITS_ROOT
    assert attribute_outside(None, "security.capability", PLAIN) == PLAIN


def test_ids_are_shifted_and_strangers_are_nobody() -> None:
    assert [owner_inside(IDS, host) for host in (1_000_000, 1_000_033, 0, 1_065_536)] == [0, 33, 65534, 65534]
    assert owner_outside(IDS, 33) == 1_000_033
    with pytest.raises(RejectedFault, match="owner 65536 does not exist in a user namespace of 65536 ids"):
        owner_outside(IDS, 65_536)


def test_capabilities_its_root_gave_are_plain_ones_elsewhere() -> None:
    assert attribute_inside(IDS, "security.capability", GIVEN_BY_ITS_ROOT) == PLAIN
    assert attribute_outside(IDS, "security.capability", PLAIN) == GIVEN_BY_ITS_ROOT


def test_capabilities_of_another_namespace_are_not_made_plain() -> None:
    assert attribute_inside(IDS, "security.capability", GIVEN_BY_ANOTHER) == GIVEN_BY_ANOTHER


def test_named_entries_of_access_control_lists_are_shifted() -> None:
    outside = acl((0x01, 6, 0xFFFFFFFF), (0x02, 4, 1_000_033), (0x08, 4, 1_000_005), (0x10, 4, 0xFFFFFFFF))
    inside = acl((0x01, 6, 0xFFFFFFFF), (0x02, 4, 33), (0x08, 4, 5), (0x10, 4, 0xFFFFFFFF))
    assert attribute_inside(IDS, "system.posix_acl_access", outside) == inside
    assert attribute_outside(IDS, "system.posix_acl_access", inside) == outside
    with pytest.raises(RejectedFault):
        attribute_outside(IDS, "system.posix_acl_access", acl((0x02, 4, 70_000)))


@given(st.sampled_from(["security.capability", "system.posix_acl_access", "user.any"]), st.binary(max_size=64))
def test_any_value_is_taken(name: str, value: bytes) -> None:
    assert isinstance(attribute_inside(IDS, name, value), bytes)
    try:
        assert isinstance(attribute_outside(IDS, name, value), bytes)
    except RejectedFault as refusal:
        assert "owner" in str(refusal)
