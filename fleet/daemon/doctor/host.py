"""One host's part of an examination: its ears, the look at itself, what it sent and heard."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from fleet import errors
from fleet.cancellation import TaskGroup
from fleet.containers.apparmor import AppArmor
from fleet.daemon.doctor.words import (
    EarWord,
    HeardAnswer,
    HeardWord,
    ListenAnswer,
    ListenRequest,
    LookAnswer,
    LookRequest,
    TooBig,
    check_run,
)
from fleet.network.doctor import examine, inside, probe
from fleet.network.doctor.finding import Check, Finding, Level, note, right
from fleet.network.host import HostNetwork

__all__ = ["HostDoctor"]

_RUNS_MAX: Final = 4
_RUN_S: Final = 60.0
_AT_ONCE: Final = 32


@dataclass(slots=True)
class _Run:
    hearing: probe.Hearing
    end: asyncio.TimerHandle


class HostDoctor:
    """``listen``, ``look``, ``heard`` in that order, for each run; ``alone`` for a host on its own."""

    def __init__(self, network: HostNetwork, *, apparmor: AppArmor) -> None:
        self._network = network
        self._apparmor = apparmor
        self._runs: dict[bytes, _Run] = {}

    def close(self) -> None:
        """Stop listening."""
        for run in list(self._runs):
            self._end(run)

    async def listen(self, run_id: str, wish: ListenRequest) -> ListenAnswer:
        """Open the ears of a run. Raises ``UnavailableError`` while too many others are under way."""
        run = check_run(run_id)
        self._end(run)
        if len(self._runs) >= _RUNS_MAX:
            raise errors.UnavailableError(
                f"{_RUNS_MAX} examinations of this host's network are under way", retry_after_s=10.0
            )
        networks = await self._network.look(partial(examine.network_ids, wanted=wish.networks))
        listening = await self._network.look(partial(probe.ears, networks=networks))
        if not listening and (plain := await self._network.look(partial(probe.plain_ear, port=wish.vxlan_port))):
            listening.append(plain)
        end = asyncio.get_running_loop().call_later(_RUN_S, self._end, run)
        self._runs[run] = _Run(probe.Hearing(run, listening), end)
        words = [
            EarWord(
                network=ear.network_id,
                name=ear.name,
                vni=ear.vni,
                port=ear.port,
                mac=ear.mac,
                mtu=ear.mtu,
                peers=tuple(sorted(ear.peers)),
                encrypted=ear.encrypted,
            )
            for ear in listening
        ]
        return ListenAnswer(underlay=await self._network.look(lambda view: view.underlay), ears=tuple(words))

    async def look(self, run_id: str, wish: LookRequest) -> LookAnswer:
        """Send to the targets, and examine this host meanwhile. Raises ``NotFoundError`` for a run that has ended."""
        run = check_run(run_id)
        if run not in self._runs:
            raise errors.NotFoundError("the examination is over on this host; begin anew")
        mouths = {
            probe.Mouth(
                underlay=target.underlay,
                network_id=ear.network,
                vni=ear.vni,
                port=ear.port,
                mac=ear.mac,
                mtu=self._mtu(run, ear),
            ): target.number
            for target in wish.targets
            for ear in target.ears
        }
        addresses = {target.underlay: target.number for target in wish.targets}
        pings = await self._network.look(probe.ping_socket)
        elsewhere = [(door.name, door.underlay) for door in wish.doors]
        async with TaskGroup() as group:
            spoken = group.create_task(self._speak(list(mouths), run=run, number=wish.number))
            pinged = group.create_task(probe.ping(pings, list(addresses), run=run))
            examined = group.create_task(self._examine(wish.networks, elsewhere=elsewhere)) if wish.examine else None
        suspects: dict[str, None] = {}
        for port in sorted({mouth.port for mouth in mouths}):
            suspects |= dict.fromkeys(await self._network.look(partial(examine.suspects, port=port)))
        return LookAnswer(
            findings=tuple(examined.result()) if examined is not None else (),
            too_big=tuple(
                TooBig(target=mouths[mouth], network=mouth.network_id, size=size)
                for mouth, size in spoken.result().items()
            ),
            pinged=tuple(sorted(addresses[address] for address in pinged.result())),
            suspects=tuple(suspects),
        )

    async def _speak(self, mouths: Sequence[probe.Mouth], *, run: bytes, number: int) -> dict[probe.Mouth, int]:
        """To plain networks' mouths plainly, to encrypted ones' through the tunnel; where that is missing they are not heard."""
        sealed = {ear.network_id for ear in self._runs[run].hearing.ears if ear.encrypted}
        too_big: dict[probe.Mouth, int] = {}
        for encrypted in (False, True):
            some = [mouth for mouth in mouths if (mouth.network_id in sealed) is encrypted]
            if some:
                with suppress(OSError):
                    sock = await self._network.look(partial(probe.speaking_socket, encrypted=encrypted))
                    too_big |= await probe.speak(sock, some, run=run, number=number)
        return too_big

    def heard(self, run_id: str) -> HeardAnswer:
        """What arrived; the run is over. Raises ``NotFoundError`` for one that is over already."""
        run = check_run(run_id)
        known = self._runs.get(run)
        if known is None:
            raise errors.NotFoundError("the examination is over on this host; begin anew")
        heard = known.hearing.heard
        self._end(run)
        return HeardAnswer(
            heard=tuple(
                HeardWord(sender=sender, network=network, sizes=tuple(sorted(sizes)))
                for (network, sender), sizes in sorted(heard.items())
            )
        )

    async def alone(self, networks: Sequence[str]) -> list[Finding]:
        """What this host can see by itself."""
        return await self._examine(networks, elsewhere=())

    async def knows(self, network: str) -> bool:
        """Whether a network of that id or name is on this host."""
        return bool(await self._network.look(partial(examine.network_ids, wanted=(network,))))

    async def _examine(self, networks: Sequence[str], *, elsewhere: Sequence[tuple[str, str]]) -> list[Finding]:
        look = self._network.look
        found = [*await look(examine.look_at_host), *self._confinement()]
        ids = await look(partial(examine.network_ids, wanted=networks))
        for network_id in ids:
            found += await look(partial(examine.look_at_network, network_id=network_id))
        found += await look(partial(examine.look_at_tunnel, networks=ids))
        sandboxes = await look(partial(examine.sandboxes_on, networks=ids))
        inner: list[Finding] = []
        for sandbox_id in sandboxes:
            inner += await look(partial(examine.look_at_sandbox, sandbox_id=sandbox_id, networks=ids))
        if sandboxes and not inner:
            inner.append(right(Check.RULES, f"{len(sandboxes)} containers: cards and rules are as they should be"))
        found += inner
        for network_id in ids:
            found += await self._names(network_id)
        if await look(lambda view: any(view.states[i].network.ingress for i in ids if i in view.states)):
            found += await self._ports(elsewhere)
        return found

    def _confinement(self) -> list[Finding]:
        """Not the network's, but nobody else examines hosts: whether containers here lack a wall that they could have."""
        warning = self._apparmor.warning()
        if not warning:
            return []
        return [note(Check.HOST, warning, "mend that and restart the containers: each start tries again")]

    async def _names(self, network_id: str) -> list[Finding]:
        asked = await self._network.look(partial(inside.questions, network_id=network_id))
        answers = await asyncio.gather(*(inside.ask(question) for question in asked))
        judged = [inside.judge_answer(question, answer) for question, answer in zip(asked, answers, strict=True)]
        bad = [finding for finding in judged if finding.level is not Level.RIGHT]
        if judged and not bad:
            says = f"names are answered rightly inside {len(judged)} containers"
            return [right(Check.NAMES, says, network=judged[0].network)]
        return bad

    async def _ports(self, elsewhere: Sequence[tuple[str, str]]) -> list[Finding]:
        doors, found = await self._network.look(partial(inside.doors, elsewhere=elsewhere))
        gate = asyncio.Semaphore(_AT_ONCE)

        async def knock(door: inside.Door) -> Finding | None:
            async with gate:
                return await inside.knock(door)

        closed = [finding for finding in await asyncio.gather(*map(knock, doors)) if finding is not None]
        if doors and not closed:
            found.append(right(Check.PORTS, f"published ports are open ({len(doors)} tried)"))
        return found + closed

    def _mtu(self, run: bytes, ear: EarWord) -> int:
        """This host's own of that network: its packets are to arrive."""
        own = {mine.network_id: mine.mtu for mine in self._runs[run].hearing.ears}
        return own.get(ear.network) or ear.mtu

    def _end(self, run: bytes) -> None:
        known = self._runs.pop(run, None)
        if known is not None:
            known.end.cancel()
            known.hearing.close()
