"""The manager role of one host: everything that runs while this host is the (leading) manager.

Loops do not call each other; each looks at the store and changes it. A loop that fails with an error of the tree is logged
and started again after a pause, because it begins by looking at everything; an ``InvariantError`` or a failed state engine
ends the role, and with it the daemon, which its supervisor starts anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fleet import errors
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.manager.admission import Admission
from fleet.manager.allocator import Allocator
from fleet.manager.control import ControlApi
from fleet.manager.dispatcher import Dispatcher, Tolerances
from fleet.manager.loops import OrchestratorLoop, ReaperLoop, RotationLoop, SchedulerLoop
from fleet.model.ids import ID_ENTROPY_BYTES, NodeId, encode_id
from fleet.store import EngineFailedError, Store

__all__ = ["ManagerRole", "new_id"]

log = get_logger("manager")

_RETRY_FIRST_S: Final = 0.2
_RETRY_MAX_S: Final = 5.0


def new_id() -> str:
    """A fresh identifier from the kernel's randomness."""
    return encode_id(os.urandom(ID_ENTROPY_BYTES))


class ManagerRole:
    """Built on an open store; ``run`` until cancelled."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        node_id: NodeId,
        cluster_addr: str,
        tolerances: Tolerances | None = None,
    ) -> None:
        self.store = store
        self.node_id = node_id
        self._clock = clock
        self._addresses = (cluster_addr,)
        self.admission = Admission(store, clock, new_id, managers=lambda: self._addresses)
        self.dispatcher = Dispatcher(
            store, clock, new_session_id=new_id, manager_addresses=lambda: self._addresses, tolerances=tolerances
        )
        self.control = ControlApi(store, clock, os.urandom, rotate_token=self.admission.rotate_token)
        self._loops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "dispatcher": self.dispatcher.run,
            "allocator": Allocator(store, clock).run,
            "orchestrator": OrchestratorLoop(store, clock, os.urandom).run,
            "scheduler": SchedulerLoop(store, clock).run,
            "reaper": ReaperLoop(store, clock).run,
            "root rotation": RotationLoop(store, clock).run,
        }

    async def run(self) -> None:
        """Until cancelled. Raises what ended the role."""
        async with asyncio.TaskGroup() as group:
            for name, loop in self._loops.items():
                group.create_task(self._keep(name, loop), name=name)
            failed: BaseException = await self.store.failed()
            raise failed

    async def _keep(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause_s = _RETRY_FIRST_S
        while True:
            began = self._clock.monotonic()
            try:
                await loop()
            except (errors.FleetError, BaseExceptionGroup) as cause:
                first = _first(cause)
                if isinstance(first, EngineFailedError | errors.InvariantError) or not isinstance(
                    first, errors.FleetError
                ):
                    raise first from cause
                log.warning("loop failed; starting it again", loop=name, cause=str(first))
            if self._clock.monotonic() - began > 60:
                pause_s = _RETRY_FIRST_S
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _RETRY_MAX_S)


def _first(cause: BaseException) -> BaseException:
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
