"""Moves of this host, both ways, and the manager's part: announce the source to the target, tell the source to go."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from fleet import errors
from fleet.agent.manager_calls import ManagerCalls
from fleet.cancellation import cancel_and_wait
from fleet.clock import Clock
from fleet.containers import ContainerEngine
from fleet.daemon.moves.arriving import Arriving
from fleet.daemon.moves.leaving import Leaving
from fleet.daemon.moves.notes import Notes
from fleet.daemon.moves.peers import Peers
from fleet.daemon.moves.task_notes import TaskNotes
from fleet.daemon.moves.task_source import TaskSource
from fleet.daemon.moves.task_target import TaskTarget
from fleet.daemon.moves.words import Expected, RunRequest, check_answer
from fleet.images import ImageStore
from fleet.logs import get_logger
from fleet.model import wire
from fleet.model.node import Node, NodeState

__all__ = ["Moves"]

log = get_logger("moves")

_LOOK_S: Final = 2.0
_LINES_MAX: Final = 1000
_LINE_BYTES_MAX: Final = 1 << 20


class Moves:
    """``recover`` when the engine has recovered, ``run`` until cancelled, ``close`` at the end."""

    def __init__(self, folder: Path, *, engine: ContainerEngine, images: ImageStore, clock: Clock) -> None:
        self.peers = Peers()
        self._notes = Notes(folder)
        self._clock = clock
        self.arriving = Arriving(self._notes, engine=engine, images=images, peers=self.peers, clock=clock)
        self.leaving = Leaving(self._notes, engine=engine, images=images, peers=self.peers, clock=clock)
        notes = TaskNotes(folder.with_name("task-moves"))
        self._task_notes = notes
        self.task_source = TaskSource(notes, engine=engine, clock=clock)
        self.task_target = TaskTarget(notes, engine=engine, peers=self.peers, clock=clock)
        self._tasks: set[asyncio.Task[None]] = set()

    async def recover(self) -> None:
        """Finish or undo what a former daemon left, as far as this host alone can."""
        leaving, arriving = await asyncio.to_thread(self._notes.open)
        await self.arriving.recover(arriving)
        await self.leaving.recover(leaving)
        offered, fetched = await asyncio.to_thread(self._task_notes.open)
        self.task_source.recover(offered)
        self.task_target.recover(fetched)

    def join(self, tls: Callable[[], ssl.SSLContext], managers: Callable[[], Sequence[str]]) -> None:
        """This host is a member from now on."""
        self.peers.tls = tls
        self.task_source.calls = self.task_target.calls = ManagerCalls(tls=tls, managers=managers)

    def leave_cluster(self) -> None:
        """It is none any more. Idempotent."""
        self.peers.tls = self.task_source.calls = self.task_target.calls = None

    async def run(self) -> None:
        """Until cancelled: what needs another host, or time."""
        while True:
            await self._clock.sleep(_LOOK_S)
            await self.arriving.look_after()
            if self.peers.tls is not None:
                await self.leaving.look_after()
                await self.task_source.look_after()
                await self.task_target.look_after()

    async def close(self) -> None:
        """Moves under way are cut short: a container that was stopped for one is started again."""
        await cancel_and_wait(*self._tasks)

    def leave(self, move_id: str, wish: RunRequest) -> AsyncIterator[bytes]:
        """Move a container away; lines of JSON about it. It goes on when nobody reads them any more."""
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_LINES_MAX)

        def report(line: dict[str, Any]) -> None:
            with suppress(asyncio.QueueFull):
                lines.put_nowait(line)

        async def work() -> None:
            try:
                report({"done": await self.leaving.run(move_id, wish, report)})
            except errors.FleetError as cause:
                report({"error": str(cause), "status": cause.http_status})
            except BaseException as cause:
                if isinstance(cause, Exception):
                    log.exception("a move failed", container=wish.container)
                report({"error": "the daemon could not go on; see its log", "status": 500})
                raise
            finally:
                if lines.full():
                    lines.get_nowait()
                lines.put_nowait(None)

        task = asyncio.get_running_loop().create_task(work(), name=f"move {wish.container}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        async def read() -> AsyncGenerator[bytes, None]:
            while (line := await lines.get()) is not None:
                yield msgspec.json.encode(line) + b"\n"

        return read()

    async def direct(
        self, container: str, *, source: Node, target: Node, start: bool, keep: bool, host_access: bool
    ) -> AsyncIterator[bytes]:
        """The manager's part. Lines of the source; raises before the first when one of the hosts refuses at once."""
        names = [(node, node.description.hostname or node.id) for node in (source, target)]
        for node, name in names:
            if node.status.state is not NodeState.READY or not node.cluster_addr:
                raise errors.UnavailableError(f"node {name} is {node.status.state}: wait until it is ready")
        if source.id == target.id:
            raise errors.UserError(f"container {container} is on {names[0][1]} already")
        move_id = secrets.token_hex(16)
        expected = Expected(
            source_node=source.id, source_name=names[0][1], source_address=source.cluster_addr, host_access=host_access
        )
        await self.peers.ask(
            "POST",
            target.cluster_addr,
            f"/cluster/v1/moves/{move_id}/expect",
            host=names[1][1],
            body=wire.encode(expected),
        )
        wish = RunRequest(
            container=container, target_name=names[1][1], target_address=target.cluster_addr, start=start, keep=keep
        )
        return _relayed(
            self.peers, f"https://{source.cluster_addr}/cluster/v1/moves/{move_id}/run", wire.encode(wish), names[0][1]
        )


async def _relayed(peers: Peers, url: str, body: bytes, host: str) -> AsyncGenerator[bytes, None]:
    try:
        async with (
            peers.client(answer_s=None) as client,
            client.stream("POST", url, content=body) as response,
        ):
            if not response.is_success:
                await response.aread()
                check_answer(response, host)
            async for line in response.aiter_lines():
                if len(line) > _LINE_BYTES_MAX:
                    raise errors.RuntimeFault(f"{host} answered a line of {len(line)} bytes")
                yield line.encode() + b"\n"
    except httpx.HTTPError as cause:
        text = (
            f"{host} does not answer any more ({str(cause) or type(cause).__name__}); the move goes on or is undone without "
            "this command: look where the container is with fleet container ls on both hosts"
        )
        yield msgspec.json.encode({"error": text, "status": 503}) + b"\n"
    except errors.FleetError as cause:
        yield msgspec.json.encode({"error": str(cause), "status": cause.http_status}) + b"\n"
