"""What goes wrong: processes killed and paused, hosts without power, wires cut, disks full, clocks wrong. Troubles overlap."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.host import Host
    from simulation.world import World

__all__ = ["Nemesis"]


class Nemesis:
    """``run`` for some seconds; ``heal`` ends all troubles."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance

    async def run(self, seconds: float) -> None:
        end = self._world.loop.time() + seconds
        kinds = (self._kill,) * 4 + (self._pause,) * 3 + (self._partition,) * 4 + (self._lose_power,) * 2
        kinds += (self._jump,) * 2 + (self._fill, self._fill_state, self._slow, self._compact, self._kill_container)
        while self._world.loop.time() < end:
            await asyncio.sleep(self._chance.uniform(0.2, 4.0))
            self._chance.choice(kinds)()

    def heal(self) -> None:
        world = self._world
        world.network.cuts.clear()
        world.truth.is_full = False
        for host in world.hosts:
            host.disk.is_full = False
            host.slowness = 1.0
            if host.process is not None and host.process.is_paused:
                world.loop.resume(host.process)
            host.boot()
            host.start()
            world.troubled(host.name)

    def _host(self) -> Host:
        host = self._chance.choice(self._world.hosts)
        self._world.troubled(host.name)
        return host

    def _kill(self) -> None:
        host, pause_s = self._host(), self._chance.uniform(0.05, 4.0)
        self._world.note(f"kill fleetd of {host.name}, back in {pause_s:.1f} s")
        host.kill()
        self._world.loop.later(pause_s, host.start)

    def _pause(self) -> None:
        host, pause_s = self._host(), self._chance.uniform(0.3, 6.0)
        process = host.process
        if process is None:
            return
        self._world.note(f"pause {host.name} for {pause_s:.1f} s")
        self._world.loop.pause(process)
        self._world.loop.later(pause_s, lambda: (self._world.loop.resume(process), self._world.troubled(host.name)))

    def _lose_power(self) -> None:
        host, pause_s = self._host(), self._chance.uniform(0.5, 8.0)
        self._world.note(f"{host.name} loses power for {pause_s:.1f} s")
        host.lose_power()
        self._world.loop.later(pause_s, lambda: (host.boot(), self._world.troubled(host.name)))

    def _partition(self) -> None:
        chance, world = self._chance, self._world
        names = [host.name for host in world.hosts]
        chance.shuffle(names)
        cut = chance.randint(1, len(names) - 1)
        one_way = chance.random() < 0.3
        pairs = {(a, b) for a in names[:cut] for b in names[cut:]}
        if not one_way:
            pairs |= {(b, a) for a, b in pairs}
        pause_s = chance.uniform(0.5, 9.0)
        world.note(f"{names[:cut]} cut off{' one way' if one_way else ''} for {pause_s:.1f} s")
        world.network.cuts |= pairs
        for name in names:
            world.troubled(name)

        def mend() -> None:
            world.network.cuts -= pairs
            for name in names:
                world.troubled(name)

        world.loop.later(pause_s, mend)

    def _jump(self) -> None:
        host, jump_s = self._host(), self._chance.uniform(-20, 20)
        self._world.note(f"clock of {host.name} jumps by {jump_s:.1f} s")
        host.clock.jump_s += jump_s
        for name in (h.name for h in self._world.hosts):
            self._world.troubled(name)

    def _fill(self) -> None:
        host, pause_s = self._host(), self._chance.uniform(1, 8)
        self._world.note(f"disk of {host.name} full for {pause_s:.1f} s")
        host.disk.is_full = True

        def empty() -> None:
            host.disk.is_full = False

        self._world.loop.later(pause_s, empty)

    def _fill_state(self) -> None:
        truth, pause_s = self._world.truth, self._chance.uniform(0.5, 5)
        self._world.note(f"disk of the state full for {pause_s:.1f} s")
        truth.is_full = True

        def empty() -> None:
            truth.is_full = False

        self._world.loop.later(pause_s, empty)

    def _slow(self) -> None:
        host, pause_s = self._host(), self._chance.uniform(1, 8)
        self._world.note(f"{host.name} is slow for {pause_s:.1f} s")
        host.slowness = self._chance.uniform(5, 40)

        def mend() -> None:
            host.slowness = 1.0
            self._world.troubled(host.name)

        self._world.loop.later(pause_s, mend)

    def _compact(self) -> None:
        truth = self._world.truth
        truth.compacted = max(truth.compacted, truth.revision - self._chance.randint(0, 20))
        self._world.note(f"history compacted to {truth.compacted}")

    def _kill_container(self) -> None:
        host = self._host()
        running = sorted(host.running())
        if running:
            name = self._chance.choice(running)
            self._world.note(f"container of {name} at {host.name} killed")
            host.containers[name].end(137)
