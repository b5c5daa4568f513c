from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from fleet import errors
from fleet.lab import names


@pytest.mark.parametrize("good", ["lab", "a", "0", "my-lab-2", "a" * 24])
def test_short_plain_names_are_taken(good: str) -> None:
    assert names.check_name(good) == good


@pytest.mark.parametrize("bad", ["", "Lab", "-lab", "lab-", "../x", "a/b", "a b", "a" * 25, "lab\n"])
def test_names_that_would_not_do_as_folder_and_namespace_are_refused(bad: str) -> None:
    with pytest.raises(errors.UserError, match="lab name"):
        names.check_name(bad)


@pytest.mark.parametrize(("managers", "workers"), [(0, 1), (10, 0), (1, -1), (1, 101)])
def test_counts_outside_the_bounds_are_refused(managers: int, workers: int) -> None:
    with pytest.raises(errors.UserError, match="a lab has"):
        names.check_counts(managers=managers, workers=workers)


def test_every_host_of_the_largest_lab_has_an_address_and_mac_of_its_own() -> None:
    hosts = names.host_names(managers=names.MANAGERS_MAX, workers=names.WORKERS_MAX)
    addresses = [names.host_address("10.210.3.0/24", host) for host in hosts]
    taken = {*addresses, names.machine_address("10.210.3.0/24")}
    assert len(taken) == len(hosts) + 1
    assert all(ipaddress.ip_address(a) in ipaddress.ip_network("10.210.3.0/24") for a in taken)
    assert len({names.mac_of(address) for address in addresses}) == len(hosts)


def test_addresses_are_easy_to_guess() -> None:
    assert names.machine_address("10.210.3.0/24") == "10.210.3.1"
    assert names.host_address("10.210.3.0/24", "m1") == "10.210.3.11"
    assert names.host_address("10.210.3.0/24", "w2") == "10.210.3.102"


@pytest.mark.parametrize("bad", ["x1", "m", "m0", "w01", "w1000", ""])
def test_a_name_that_is_no_host_has_no_address(bad: str) -> None:
    with pytest.raises(errors.UserError, match="hosts of a lab are called"):
        names.host_address("10.210.3.0/24", bad)


def test_mac_addresses_are_unicast_and_locally_administered() -> None:
    first = int(names.mac_of("10.210.3.11").split(":")[0], 16)
    assert first & 0b11 == 0b10


def test_a_subnet_in_use_is_passed_over() -> None:
    first = names.choose_subnet([], start=5)
    second = names.choose_subnet([first], start=5)
    assert first != second
    assert not ipaddress.ip_network(first).overlaps(ipaddress.ip_network(second))


def test_a_wide_route_blocks_all_subnets_in_it() -> None:
    chosen = names.choose_subnet(["10.200.0.0/13"], start=0)
    assert not ipaddress.ip_network(chosen).overlaps(ipaddress.ip_network("10.200.0.0/13"))


def test_a_machine_that_routes_all_of_ten_is_told_what_to_do() -> None:
    with pytest.raises(errors.ConflictError, match="give one with --subnet"):
        names.choose_subnet(["10.0.0.0/8"], start=0)
    assert names.choose_subnet(["10.0.0.0/8"], start=0, wanted="192.168.77.0/24") == "192.168.77.0/24"


@pytest.mark.parametrize("bad", ["10.0.0.0/16", "8.8.8.0/24", "10.0.0.1/24", "fd00::/64", "nonsense"])
def test_only_a_private_slash_24_can_be_asked_for(bad: str) -> None:
    with pytest.raises(errors.UserError, match="subnet"):
        names.choose_subnet([], start=0, wanted=bad)


def test_sockets_of_the_longest_names_fit_the_kernels_limit() -> None:
    layout = names.Layout(root=Path("/a/very/long/root" * 20), name="a" * 24)
    for path in (
        layout.socket("w100"),
        layout.control("w100"),
        layout.exec_root("w100") / "runtime" / "supervisor-0.sock",
    ):
        assert len(str(path).encode()) <= 107, "unix(7): sun_path is 108 bytes with the final zero"
