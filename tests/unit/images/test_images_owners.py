"""Owners of unpacked files where not every id exists: fleetd in a user namespace. And registries that cannot be reached."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fleet.errors import RejectedFault
from fleet.images import unpack
from fleet.images.registry import RegistryOptions, RegistrySource


def owner(uid: int, gid: int) -> tuple[int, int]:
    entry: Any = SimpleNamespace(uid=uid, gid=gid)
    return unpack._owner(entry)


def test_an_owner_outside_the_range_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "may_own", lambda number: number <= 65536)
    monkeypatch.setattr(unpack, "has_single_id", lambda: False)
    assert owner(1000, 65536) == (1000, 65536)
    with pytest.raises(RejectedFault, match=r"owner 70000 .* /etc/subuid"):
        owner(0, 70000)


def test_with_one_id_everything_is_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "may_own", lambda number: number == 0)
    monkeypatch.setattr(unpack, "has_single_id", lambda: True)
    assert owner(1000, 5) == (0, 0)


def test_without_a_network_a_registry_is_not_even_asked() -> None:
    async def ask() -> None:
        options = RegistryOptions(unreachable="slirp4netns is missing")
        source = RegistrySource("registry.example.com/some/thing:1", options=options)
        await source.manifest("registry.example.com/some/thing:1")

    with pytest.raises(RejectedFault, match="no network beyond this host: slirp4netns is missing"):
        asyncio.run(ask())
