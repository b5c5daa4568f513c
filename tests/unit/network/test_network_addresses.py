"""Subnets, addresses, MAC addresses, names of kernel objects."""

from __future__ import annotations

import pytest

from fleet.errors import ConflictError, UserError
from fleet.network.ipam import SubnetPool, mac_for, next_address, parse_subnet
from fleet.network.naming import Owner


def test_subnets_come_in_order_and_skip_what_overlaps() -> None:
    pool = SubnetPool([("10.0.0.0/8", 24)], used=["10.0.1.0/24", "10.0.2.0/23"])
    assert [pool.next_subnet() for _ in range(3)] == ["10.0.0.0/24", "10.0.4.0/24", "10.0.5.0/24"]
    assert pool.next_subnet(avoid=["10.0.6.0/24"]) == "10.0.7.0/24"


def test_freed_subnet_is_given_again_only_after_all_others() -> None:
    pool = SubnetPool([("10.0.0.0/28", 30)])
    given = [pool.next_subnet() for _ in range(3)]
    pool.release(given[0])
    assert pool.next_subnet() == "10.0.0.12/30"
    assert pool.next_subnet() == given[0]


def test_second_pool_is_used_when_the_first_is_full_and_then_it_says_so() -> None:
    pool = SubnetPool([("10.0.0.0/29", 30), ("192.168.0.0/30", 30)])
    assert [pool.next_subnet() for _ in range(3)] == ["10.0.0.0/30", "10.0.0.4/30", "192.168.0.0/30"]
    with pytest.raises(
        ConflictError, match=r"all 3 of the address pools \(10.0.0.0/29 in /30, 192.168.0.0/30 in /30\)"
    ):
        pool.next_subnet()


def test_chosen_subnet_must_not_overlap() -> None:
    pool = SubnetPool([("10.0.0.0/8", 24)], used=["10.0.1.0/24"])
    with pytest.raises(ConflictError, match=r"overlaps 10\.0\.1\.0/24"):
        pool.reserve("10.0.0.0/16")
    pool.reserve("172.20.0.0/16")
    with pytest.raises(ConflictError):
        pool.reserve("172.20.5.0/24")


@pytest.mark.parametrize(
    ("cidr", "length"), [("10.0.0.0/24", 16), ("10.0.0.0/8", 31), ("nonsense", 24), ("10.0.0.1/8", 24)]
)
def test_pools_that_cannot_be_cut_are_refused(cidr: str, length: int) -> None:
    with pytest.raises(UserError):
        SubnetPool([(cidr, length)])


@pytest.mark.parametrize("subnet", ["10.0.0.1/24", "fd00::/64", "10.0.0.0/31", "10.0.0.0/7", ""])
def test_bad_subnets_are_refused(subnet: str) -> None:
    with pytest.raises(UserError):
        parse_subnet(subnet)


def test_addresses_rotate_and_skip_the_reserved_ones() -> None:
    assert next_address("10.0.1.0/29", "10.0.1.1", []) == "10.0.1.2"
    assert next_address("10.0.1.0/29", "10.0.1.1", ["10.0.1.2"], after="10.0.1.4") == "10.0.1.5"
    assert next_address("10.0.1.0/29", "10.0.1.1", ["10.0.1.2"], after="10.0.1.6") == "10.0.1.3"


def test_full_subnet_is_named_with_its_size() -> None:
    used = [f"10.0.1.{number}" for number in range(2, 255)]
    with pytest.raises(ConflictError, match=r"network web: all 253 addresses of 10\.0\.1\.0/24 are in use"):
        next_address("10.0.1.0/24", "10.0.1.1", used, network="web")


def test_range_narrows_the_choice_but_not_a_request() -> None:
    assert next_address("10.0.1.0/24", "10.0.1.1", [], "10.0.1.128/30") == "10.0.1.128"
    used = [f"10.0.1.{number}" for number in range(128, 132)]
    with pytest.raises(ConflictError, match=r"all 4 addresses of 10\.0\.1\.128/30"):
        next_address("10.0.1.0/24", "10.0.1.1", used, "10.0.1.128/30")
    assert next_address("10.0.1.0/24", "10.0.1.1", [], "10.0.1.128/30", "10.0.1.7") == "10.0.1.7"
    with pytest.raises(UserError, match="is not inside"):
        next_address("10.0.1.0/24", "10.0.1.1", [], "10.0.2.0/30")


@pytest.mark.parametrize(
    ("requested", "error"),
    [
        ("10.0.1.1", ConflictError),
        ("10.0.1.9", ConflictError),
        ("10.0.1.0", UserError),
        ("10.0.1.255", UserError),
        ("10.0.2.1", UserError),
        ("x", UserError),
    ],
)
def test_impossible_requests_are_refused(requested: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        next_address("10.0.1.0/24", "10.0.1.1", ["10.0.1.9"], requested=requested)


def test_mac_address_is_local_and_carries_the_address() -> None:
    assert mac_for("10.0.1.255") == "02:42:0a:00:01:ff"


def test_names_fit_the_kernel_and_tell_owners_apart() -> None:
    one, two = Owner("/var/lib/fleet"), Owner("/srv/other")
    names = [one.bridge("n" * 128), one.vxlan("n" * 128), one.new_veth()]
    assert all(len(name) <= 15 for name in names)
    assert len(set(names)) == 3
    assert one.group != two.group
    assert one.group < 1 << 31
    assert one.table != two.table
    assert one.bridge("n") != two.bridge("n")
    assert one.bridge("n") == Owner("/var/lib/fleet").bridge("n")
    assert len(one.alias("veth", "x" * 300)) <= 255
