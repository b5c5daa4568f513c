"""The agent's connection to a manager: one at a time, opened again for as long as the agent runs.

A session ends when the connection breaks, when the manager is silent for ``_SILENT_BEATS`` beats, or when an increment does
not follow. Then the next manager is tried, soon at first, then less often.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Final

from websockets.exceptions import InvalidHandshake, WebSocketException

from fleet import errors
from fleet.agent.dialer import OPEN_TIMEOUT_S, Connection, Dial
from fleet.agent.reporter import Reporter
from fleet.agent.usage import UsageReporter, nothing_used
from fleet.agent.worker import OutOfStepError, Worker
from fleet.api import dispatch
from fleet.cancellation import TaskGroup
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.metrics import Counter
from fleet.model.node import NodeDescription

__all__ = ["Session"]

log = get_logger("session")

_SILENT_BEATS: Final = 5.0
_SILENT_BEATS_SEVERAL: Final = 2.5
"""With several managers another may lead by then, and asking costs nothing."""
_SPARE_S: Final = 0.5
"""A beat goes out so long before its period ends; where the period is short, twice in it."""
_REDIRECTS_MAX: Final = 3
"""In a row without a pause: managers may point at each other while they have not all heard who leads."""
_RETRY_FIRST_S: Final = 0.1
_RETRY_MAX_S: Final = 2.0
_RETRY_SEVERAL_S: Final = 0.5
"""With several managers one of them will lead soon."""


class _Redirected(errors.UnavailableError):
    """The manager does not lead; ``_managers`` has the one that does in front."""


class Session:
    """``run`` until cancelled; ``describe`` sends a changed description or image list on the open session."""

    def __init__(
        self,
        *,
        worker: Worker,
        reporter: Reporter,
        clock: Clock,
        dial: Dial,
        managers: Sequence[str],
        managers_changed: Callable[[tuple[str, ...]], None],
        trust_changed: Callable[[dispatch.Trust], None],
        hello: Callable[[], dispatch.Hello],
        usage: UsageReporter | None = None,
    ) -> None:
        self._worker = worker
        self._reporter = reporter
        self._clock = clock
        self._dial = dial
        self._managers = list(managers)
        self._managers_changed = managers_changed
        self._trust_changed = trust_changed
        self._hello = hello
        self._usage = usage or UsageReporter(clock, nothing_used)
        self._connection: Connection | None = None
        self._redirects = 0
        self._heard = 0.0
        self._period_s = 1.0
        self._to_confirm = 0
        """Number of the newest assignment set that asked for it; 0 when there is none."""
        self._asked = asyncio.Event()
        self.connected = asyncio.Event()
        self.beats = Counter("fleet_agent_heartbeats_sent_total", "Heartbeats sent to a manager")
        self.last_error = ""

    async def run(self) -> None:
        """Until cancelled. Refusals (removed node, foreign certificate) are logged and tried again, less and less often."""
        await self._worker.ready.wait()
        delay_s = _RETRY_FIRST_S
        while True:
            address = self._managers[0]
            redirected = False
            try:
                await self._hold(address)
                delay_s = _RETRY_FIRST_S
            except* _Redirected as group:
                redirected = self._managers[0] != address
                self.last_error = _sentence(_first(group))
            except* (OSError, WebSocketException, TimeoutError, errors.FleetError) as group:
                first = _first(group)
                if self.connected.is_set():
                    delay_s = _RETRY_FIRST_S
                self.last_error = _sentence(first)
                log.warning("session ended", manager=address, cause=self.last_error)
            finally:
                self.connected.clear()
                self._connection = None
                self._reporter.rewind()
            if redirected and self._redirects < _REDIRECTS_MAX:
                self._redirects += 1
                continue
            if not redirected:
                self._managers.append(self._managers.pop(0))
            self._redirects = 0
            await self._clock.sleep(delay_s * random.uniform(0.7, 1.3))  # noqa: S311 - spreading load, not secrets
            delay_s = min(delay_s * 2, _RETRY_MAX_S if len(self._managers) == 1 else _RETRY_SEVERAL_S)

    async def describe(self, description: NodeDescription, images: tuple[str, ...]) -> None:
        """Tell the manager; nothing when no session is open (``Hello`` will say it)."""
        if self._connection is not None and self.connected.is_set():
            with contextlib.suppress(WebSocketException, OSError):
                await self._connection.send(dispatch.encode(dispatch.Describe(description=description, images=images)))

    async def _hold(self, address: str) -> None:
        async with self._dial(address) as connection:
            await connection.send(dispatch.encode(self._hello()))
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                welcome = dispatch.decode_manager(await _frame(connection))
            if isinstance(welcome, dispatch.Redirect):
                self._redirect(address, welcome)
            if not isinstance(welcome, dispatch.Welcome):
                raise errors.UserError(f"manager {address}: expected Welcome first, got {type(welcome).__name__}")
            log.info("session opened", manager=address, session=welcome.session_id)
            self._connection = connection
            self._period_s = welcome.beat_period_s
            self._heard = self._clock.monotonic()
            self.last_error = ""
            self._redirects = 0
            if welcome.managers:
                self._managers = [address, *(m for m in welcome.managers if m != address)]
                self._managers_changed(welcome.managers)
            self._asked.clear()
            self._usage.ask(dispatch.Measure())
            self._worker.report_all()
            self.connected.set()
            async with TaskGroup() as group:
                group.create_task(self._receive(connection))
                group.create_task(self._beat(connection))
                group.create_task(self._confirm(connection))
                group.create_task(self._reporter.run(lambda r: connection.send(dispatch.encode(r))))
                group.create_task(self._usage.run(lambda u: connection.send(dispatch.encode(u))))

    def _redirect(self, address: str, said: dispatch.Redirect) -> None:
        others = [manager for manager in said.managers or self._managers if manager not in (address, said.leader)]
        if said.leader and said.leader != address:
            self._managers = [said.leader, *others, address]
            raise _Redirected(f"manager {address} does not lead, {said.leader} does")
        self._managers = [address, *others]
        raise _Redirected(f"manager {address} does not lead, and does not know who does")

    async def _receive(self, connection: Connection) -> None:
        while True:
            message = dispatch.decode_manager(await _frame(connection))
            self._heard = self._clock.monotonic()
            match message:
                case dispatch.Assign():
                    self._worker.apply(message)
                    if message.confirm:
                        self._to_confirm = message.results_in
                        self._asked.set()
                case dispatch.Reported():
                    self._reporter.acknowledge(message.number)
                case dispatch.BeatReply():
                    self._period_s = message.beat_period_s
                case dispatch.Measure():
                    self._usage.ask(message)
                case dispatch.Trust():
                    if message.managers:
                        self._managers = [self._managers[0], *(m for m in message.managers if m != self._managers[0])]
                        self._managers_changed(message.managers)
                    self._trust_changed(message)
                case dispatch.Welcome() | dispatch.Redirect():
                    raise OutOfStepError("a second Welcome in one session")

    async def _confirm(self, connection: Connection) -> None:
        """Say which set the host's network is as, where a manager waits for it: for those behind each other once."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            number = self._to_confirm
            await self._worker.network_applied()
            await connection.send(dispatch.encode(dispatch.Applied(number=number)))

    async def _beat(self, connection: Connection) -> None:
        beat = dispatch.encode(dispatch.Beat())
        woke = self._clock.monotonic()
        while True:
            await self._clock.sleep(max(self._period_s / 2, self._period_s - _SPARE_S))
            now = self._clock.monotonic()
            self._heard += max(0.0, now - woke - self._period_s)  # our own stall is not the manager's silence
            woke = now
            silence_s = now - self._heard
            beats = _SILENT_BEATS if len(self._managers) == 1 else _SILENT_BEATS_SEVERAL
            if silence_s > beats * self._period_s:
                raise errors.UnavailableError(f"the manager has been silent for {silence_s:.1f} s")
            await connection.send(beat)
            self.beats.inc()


async def _frame(connection: Connection) -> bytes:
    frame = await connection.recv()
    if isinstance(frame, str):
        raise errors.UserError("text frame from manager; expected a binary one")
    return frame


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _sentence(cause: BaseException) -> str:
    if isinstance(cause, InvalidHandshake):
        return f"the manager refused the session: {cause}"
    return str(cause) or type(cause).__name__
