"""Volumes: creation, options, use, and what becomes of anonymous ones."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleet.containers import ContainerConfig, ContainerEngine
from fleet.containers.volumes import ANONYMOUS_LABEL
from fleet.errors import ConflictError, NotFoundError, RejectedFault, UnsupportedError, UserError


def test_creating_twice_gives_the_same_volume_and_other_options_conflict(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        first = await engine.volumes.create("data", labels={"a": "b"})
        assert await engine.volumes.create("data") == first
        with pytest.raises(ConflictError, match="other options"):
            await engine.volumes.create("data", options={"type": "none", "o": "bind", "device": "/tmp"})

    host.run(story)


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", "-a", "ü1"])
def test_bad_names_are_refused(host: Any, name: str) -> None:
    async def story(engine: ContainerEngine) -> None:
        with pytest.raises(UserError, match="invalid characters"):
            await engine.volumes.create(name)

    host.run(story)


def test_options_describe_a_bind_or_are_refused(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        device = host.root / "device"
        with pytest.raises(RejectedFault, match="does not exist"):
            await engine.volumes.create("disk", options={"type": "none", "o": "bind", "device": str(device)})
        device.mkdir()
        volume = await engine.volumes.create("disk", options={"type": "none", "o": "bind", "device": str(device)})
        assert engine.volumes.path(volume) == device
        await engine.volumes.remove("disk")
        assert device.is_dir()
        with pytest.raises(UnsupportedError, match="not supported"):
            await engine.volumes.create("net", options={"type": "nfs", "o": "addr=1.2.3.4", "device": ":/x"})
        with pytest.raises(UserError, match="invalid option: 'size'"):
            await engine.volumes.create("big", options={"size": "1g"})
        with pytest.raises(UnsupportedError, match="driver"):
            await engine.volumes.create("other", driver="rexray")

    host.run(story)


def test_removing_an_unknown_volume_fails_unless_forced(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        with pytest.raises(NotFoundError, match="get nope: no such volume"):
            await engine.volumes.remove("nope")
        await engine.volumes.remove("nope", force=True)

    host.run(story)


def test_prune_takes_unused_anonymous_volumes_and_named_ones_when_told(host: Any) -> None:
    async def story(engine: ContainerEngine) -> None:
        made = await engine.create(ContainerConfig(image="app", volume_targets=("/v",)))
        await engine.volumes.create("named")
        loose = await engine.volumes.create()
        assert ANONYMOUS_LABEL in loose.labels
        removed, _ = await engine.volumes.prune(include_named=False, keep=lambda _v: False)
        assert removed == [loose.name]
        removed, _ = await engine.volumes.prune(include_named=True, keep=lambda _v: False)
        assert removed == ["named"]
        await engine.remove(made.id)
        assert len(engine.volumes.all()) == 1  # an anonymous volume stays unless it is removed with its container

    host.run(story)


def test_an_anonymous_volume_of_a_creation_cut_short_goes_and_a_kept_one_stays(host: Any) -> None:
    async def main() -> None:
        async with host.opened() as engine:
            made = await engine.create(ContainerConfig(image="app", volume_targets=("/v",)))
            kept = engine.volumes.all()[0].name
            await engine.remove(made.id)
            orphan = await engine.volumes.create(owner="0" * 64)
        async with host.opened() as engine:
            assert {v.name for v in engine.volumes.all()} == {kept, orphan.name}
            await engine.recover()
            assert [v.name for v in engine.volumes.all()] == [kept]

    asyncio.run(main())


def test_volumes_survive_and_half_made_ones_go(host: Any) -> None:
    async def main() -> None:
        async with host.opened() as engine:
            await engine.volumes.create("data", labels={"a": "b"})
        (host.root / "data/volumes/.new-half/_data").mkdir(parents=True)
        async with host.opened() as engine:
            assert [(v.name, v.labels) for v in engine.volumes.all()] == [("data", {"a": "b"})]
        assert not (host.root / "data/volumes/.new-half").exists()

    asyncio.run(main())
