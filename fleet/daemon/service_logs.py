"""Logs of a service or task from every node that runs or ran it, merged into one stream (LOG-01..05).

Without *follow* the lines of all tasks come in order of time; with it, each task's lines in order as they arrive, and tasks
that begin later join in. A node that can not be reached is said so in the stream, and the others go on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Final

import httpx
import msgspec

from fleet import errors
from fleet.cancellation import cancel_and_wait
from fleet.clock import SystemClock
from fleet.containers.engine import ContainerEngine
from fleet.daemon.log_stream import LogFrame, LogQuery, container_log_lines, multiplexed, read_frames
from fleet.model.ids import NodeId
from fleet.model.task import Task, TaskState, task_name
from fleet.store import Kind, Store

__all__ = ["ServiceLogs"]

_QUEUE_MAX: Final = 1_000
_LABEL: Final = "com.docker.swarm"


class ServiceLogs:
    """Reads logs of tasks anywhere; one for the daemon."""

    def __init__(
        self, *, store: Store, engine: ContainerEngine, node_id: NodeId, tls: Callable[[], ssl.SSLContext]
    ) -> None:
        self._store = store
        self._engine = engine
        self._node_id = node_id
        self._tls = tls

    async def stream(self, tasks: Callable[[], Sequence[Task]], query: LogQuery) -> AsyncIterator[bytes]:
        """Bytes for the client. ``tasks`` is asked again while following."""
        merged = self._followed(tasks, query) if query.follow else self._merged(tasks(), query)
        async with aclosing(merged) as lines:
            async for task, frame in lines:
                details = (
                    f"{_LABEL}.node.id={task.node_id},{_LABEL}.service.id={task.service_id},{_LABEL}.task.id={task.id}"
                )
                yield multiplexed(frame, query, details=details, raw=task.spec.container_spec.tty)

    async def _lines(self, client: httpx.AsyncClient, task: Task, query: LogQuery) -> AsyncIterator[LogFrame]:
        name = task_name(task)
        try:
            if task.node_id == self._node_id:
                async for frame in container_log_lines(self._engine, name, query):
                    yield frame
                return
            node = self._store.nodes.get(task.node_id)
            if node is None or not node.cluster_addr:
                raise errors.UnavailableError("its node is not known any more")
            url = f"https://{node.cluster_addr}/cluster/v1/containers/{name}/logs"
            async with client.stream("GET", url, params=query.to_query()) as response:
                if response.status_code == 404:
                    return
                if response.status_code != 200:
                    raise errors.UnavailableError(f"its node answered HTTP {response.status_code}")
                async for frame in read_frames(response.aiter_raw()):
                    yield frame
        except errors.NotFoundError:
            return
        except (httpx.HTTPError, errors.FleetError) as cause:
            text = f"incomplete log stream: task {task.id} on node {task.node_id}: {cause or type(cause).__name__}"
            yield LogFrame(2, SystemClock().now(), text.encode())

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(verify=self._tls(), timeout=httpx.Timeout(5.0, read=None), trust_env=False)

    async def _merged(self, tasks: Sequence[Task], query: LogQuery) -> AsyncGenerator[tuple[Task, LogFrame], None]:
        async with self._client() as client:
            sources = [(task, self._lines(client, task, query)) for task in tasks if _has_log(task)]
            heads: list[tuple[LogFrame, int]] = []
            for number, (_, lines) in enumerate(sources):
                first = await anext(lines, None)
                if first is not None:
                    heads.append((first, number))
            while heads:
                frame, number = min(heads, key=lambda head: (head[0].time, head[1]))
                heads.remove((frame, number))
                task, lines = sources[number]
                yield task, frame
                following = await anext(lines, None)
                if following is not None:
                    heads.append((following, number))

    async def _followed(
        self, tasks: Callable[[], Sequence[Task]], query: LogQuery
    ) -> AsyncGenerator[tuple[Task, LogFrame], None]:
        queue: asyncio.Queue[tuple[Task, LogFrame]] = asyncio.Queue(_QUEUE_MAX)
        readers: dict[str, asyncio.Task[None]] = {}
        with self._store.subscribe(Kind.TASK) as changes:
            async with self._client() as client:

                async def read(task: Task, wanted: LogQuery) -> None:
                    async for frame in self._lines(client, task, wanted):
                        await queue.put((task, frame))

                async def watch() -> None:
                    wanted = query
                    while True:
                        for task in tasks():
                            if task.id not in readers and _has_log(task):
                                readers[task.id] = asyncio.create_task(read(task, wanted))
                        wanted = msgspec.structs.replace(query, tail=None)
                        await changes.wait()

                watcher = asyncio.create_task(watch())
                try:
                    while True:
                        yield await queue.get()
                finally:
                    await cancel_and_wait(watcher, *readers.values())


def _has_log(task: Task) -> bool:
    return (
        bool(task.node_id)
        and task.status.state.rank >= TaskState.STARTING.rank
        and task.status.state
        not in (
            TaskState.REJECTED,
            TaskState.ORPHANED,
        )
    )
