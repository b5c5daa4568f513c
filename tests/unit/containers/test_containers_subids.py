"""Which ids of the host stand for those of containers."""

from __future__ import annotations

import pytest

from fleet.containers.subids import DEFAULT_RANGE, IdRange, parse_subids


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", DEFAULT_RANGE),
        ("other:5:65536\nfleet:200000:65536\n", IdRange(first_id=200_000)),
        ("fleet:200000:131072\n", IdRange(first_id=200_000)),
        ("fleet:200000:1000\n", DEFAULT_RANGE),
        ("fleet:0:65536\n", DEFAULT_RANGE),
        ("fleet:4294967000:65536\n", DEFAULT_RANGE),
        ("fleet:x:65536\nfleet\n", DEFAULT_RANGE),
    ],
)
def test_the_first_usable_entry_of_fleet_counts(text: str, expected: IdRange) -> None:
    assert parse_subids(text) == expected


def test_host_ids_as_the_container_sees_them() -> None:
    ids = IdRange(first_id=1000, count=100)
    assert [ids.container_id(host_id) for host_id in (1000, 1099, 1100, 0)] == [0, 99, 65534, 65534]
