"""Containers that no service made: their place in the cluster is given back when they ended, and never while they start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fleet.agent.guests import OverlayGuests
from fleet.clock import SystemClock
from fleet.network.topology import AttachmentSpec

BOX, NET = "c" * 64, "net1"


class Engine:
    """What guests the host has by its containers; ``overlays`` is set by who is tested."""

    def __init__(self) -> None:
        self.overlays: Any = None
        self.there: set[tuple[str, str]] = set()

    def guests(self) -> set[tuple[str, str]]:
        return set(self.there)


class Managers:
    """Hold places; what is given back waits for ``may_answer`` on its way."""

    def __init__(self) -> None:
        self.held: set[tuple[str, str]] = {(BOX, NET)}
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        self.asked.append(method)
        if method == "DELETE":
            await self.may_answer.wait()
            self.held.discard((path.rpartition("/")[2], path.split("/")[-2]))
            return None
        self.held.add((body["container_id"], body["network"]))
        return {"address": "10.0.0.9/24"}

    def own_guests(self, node_id: str) -> set[tuple[str, str]]:
        return set(self.held)

    async def ensure_network(self, network_id: str) -> None: ...

    def network_names(self) -> dict[str, str]:
        return {}


def run(body: Callable[[OverlayGuests, Engine, Managers], Awaitable[None]]) -> None:
    async def main() -> None:
        engine, managers = Engine(), Managers()
        guests = OverlayGuests(
            engine=cast("Any", engine), worker=managers, clock=SystemClock(), calls=cast("Any", managers), node_id="n"
        )
        running = asyncio.create_task(guests.run())
        try:
            await body(guests, engine, managers)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    asyncio.run(asyncio.wait_for(main(), 30))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_container_that_starts_while_its_place_is_given_back_has_one_afterwards() -> None:
    async def body(guests: OverlayGuests, engine: Engine, managers: Managers) -> None:
        await until(lambda: managers.asked == ["DELETE"])  # it had ended, as after a loss of power
        engine.there.add((BOX, NET))
        joining = asyncio.create_task(guests.join(BOX, AttachmentSpec(network_id=NET), names=("box",)))
        await asyncio.sleep(0.05)
        managers.may_answer.set()
        assert (await joining).address == "10.0.0.9"
        await asyncio.sleep(0.05)
        assert managers.asked == ["DELETE", "POST"] and managers.held == {(BOX, NET)}

    run(body)


def test_a_place_is_given_back_when_its_container_ended_and_not_before() -> None:
    async def body(guests: OverlayGuests, engine: Engine, managers: Managers) -> None:
        managers.may_answer.set()
        await until(lambda: not managers.held)
        engine.there.add((BOX, NET))
        await guests.join(BOX, AttachmentSpec(network_id=NET), names=("box",))
        guests.left()
        await asyncio.sleep(0.5)
        assert managers.held == {(BOX, NET)}
        engine.there.clear()
        guests.left()
        await until(lambda: not managers.held)

    run(body)
