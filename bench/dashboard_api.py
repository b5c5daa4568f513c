"""A manager API with as many nodes and tasks as one likes: the dashboard's own files and guard, and pretended answers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import parse_qs

import uvicorn

from fleet.api.client import STALE_HEADER
from fleet.daemon.dashboard import BrowserGuard, DashboardMode, DashboardPages

__all__ = ["PretendCluster", "serving"]

Json = dict[str, Any]

_POINTS: Final = 180
_GIB: Final = 2**30
_SERVICE_TASKS: Final = 20


def _stamp(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


class PretendCluster:
    """``nodes`` with ``tasks`` that run on them in services of twenty. Lines can be told to whoever watches, from any thread."""

    def __init__(self, *, nodes: int, tasks: int) -> None:
        self.nodes, self.tasks = nodes, tasks
        self._watchers: list[tuple[asyncio.AbstractEventLoop, asyncio.Queue[bytes]]] = []
        self._now_s = time.time()
        self.swarm: Json = {"LocalNodeState": "active", "ControlAvailable": True, "NodeID": "node0"}
        """What ``/info`` says of it."""
        self.stale_s = ""
        """Seconds since its managers lost their majority."""

    # What there is --------------------------------------------------------------------------------------------

    def node_line(self, number: int, **changed: Any) -> Json:
        """A line of the stream of changes."""
        node = {
            "ID": f"node{number}",
            "Version": {"Index": 1},
            "Spec": {"Role": "manager" if number == 0 else "worker", "Availability": "active"},
            "Description": {"Hostname": f"n{number}", "Resources": {"NanoCPUs": 8 * 10**9, "MemoryBytes": 32 * _GIB}},
            "Status": {"State": "ready", "Addr": f"10.0.{number // 250}.{number % 250 + 1}"},
            **changed,
        }
        return {"Type": "node", "Action": "put", "ID": f"node{number}", "Object": node}

    def service_line(self, number: int, *, version: int = 1, **changed: Any) -> Json:
        """A line of the stream of changes."""
        count = min(_SERVICE_TASKS, self.tasks - number * _SERVICE_TASKS)
        service = {
            "ID": f"service{number}",
            "Version": {"Index": version},
            "Spec": {
                "Name": f"shop{number % 7}_s{number}",
                "Labels": {"com.docker.stack.namespace": f"shop{number % 7}"},
                "Mode": {"Replicated": {"Replicas": count}},
                "TaskTemplate": {"ContainerSpec": {"Image": "example/app:1"}},
            },
            "ServiceStatus": {"RunningTasks": count, "DesiredTasks": count, "CompletedTasks": 0},
            **changed,
        }
        return {"Type": "service", "Action": "put", "ID": f"service{number}", "SpecVersion": version, "Object": service}

    def task_line(
        self, number: int, *, version: int = 1, state: str = "running", suffix: str = "", **status: Any
    ) -> Json:
        """A line of the stream of changes."""
        id_ = f"task{number}{suffix}"
        task = {
            "ID": id_,
            "Version": {"Index": version},
            "CreatedAt": _stamp(self._now_s - 60),
            "UpdatedAt": _stamp(self._now_s),
            "ServiceID": f"service{number // _SERVICE_TASKS}",
            "Slot": number % _SERVICE_TASKS + 1,
            "NodeID": f"node{number % self.nodes}",
            "DesiredState": "running",
            "Status": {"State": state, "Timestamp": _stamp(self._now_s - number), "Message": "started", **status},
            "Spec": {"ContainerSpec": {"Image": "example/app:1"}},
        }
        return {"Type": "task", "Action": "put", "ID": id_, "SpecVersion": version, "Object": task}

    def _everything(self) -> Iterator[Json]:
        yield {"Type": "reset"}
        yield from (self.node_line(number) for number in range(self.nodes))
        yield from (self.service_line(number) for number in range(-(-self.tasks // _SERVICE_TASKS)))
        yield from (self.task_line(number) for number in range(self.tasks))
        yield {"Type": "synced"}

    def usage(self, *, since: float) -> Json:
        """What nodes and tasks use, with a history of half an hour after ``since``."""
        now = time.time()

        def load(at_s: float, number: int) -> Json:
            cpu = (1 + number % 5 + (at_s // 60) % 2) * 10**9
            own = {"NanoCPUs": cpu // 2, "MemoryBytes": 4 * _GIB}
            return {"Time": round(at_s, 1), "NanoCPUs": cpu, "MemoryBytes": 12 * _GIB, "Containers": own}

        begin = self._now_s - 10 * _POINTS
        return {
            "PeriodSeconds": 10.0,
            "Nodes": [
                {
                    "NodeID": f"node{number}",
                    "Now": load(now, number),
                    "History": [
                        load(at, number) for at in (begin + 10 * n for n in range(_POINTS)) if at > since + 0.1
                    ],
                }
                for number in range(self.nodes)
            ],
            "Tasks": [
                {"ID": f"task{n}", "NanoCPUs": 10**7 * (n % 90), "MemoryBytes": 2**20 * (n % 200)}
                for n in range(self.tasks)
            ],
        }

    # Told -----------------------------------------------------------------------------------------------------

    def tell(self, *lines: Json) -> float:
        """Send lines to those who watch; returns the Unix time in milliseconds."""
        text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        at_ms = time.time() * 1000
        for loop, queue in list(self._watchers):
            with suppress(RuntimeError):  # its server has ended
                loop.call_soon_threadsafe(queue.put_nowait, text)
        return at_ms

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """The API, for ASGI."""
        answers: dict[str, Any] = {
            "/info": {"Name": "n0", "Swarm": self.swarm},
            "/fleet/v1/whoami": {"User": "", "Role": "admin"},
        }
        path = scope["path"]
        if path in ("/fleet/v1/watch", "/events"):
            await self._stream(send, receive, is_watch=path != "/events")
            return
        since = float(parse_qs(scope["query_string"].decode()).get("since", ["0"])[0])
        answer = self.usage(since=since) if path == "/fleet/v1/usage" else answers.get(path)
        status = 404 if answer is None else 200
        body = json.dumps(answer if answer is not None else {"message": f"no {path} here"}).encode()
        headers = [(b"content-type", b"application/json")]
        if self.stale_s:
            headers.append((STALE_HEADER.lower().encode(), self.stale_s.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Any, receive: Any, *, is_watch: bool) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        watcher = (asyncio.get_running_loop(), queue)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if is_watch:
            self._watchers.append(watcher)
            text = b"".join(json.dumps(line).encode() + b"\n" for line in self._everything())
            await send({"type": "http.response.body", "body": text, "more_body": True})
        gone = asyncio.ensure_future(receive())
        try:
            while not gone.done():
                following = asyncio.ensure_future(queue.get())
                await asyncio.wait({gone, following}, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    await send({"type": "http.response.body", "body": following.result(), "more_body": True})
                else:
                    following.cancel()
                while gone.done() and gone.result()["type"] == "http.request":
                    gone = asyncio.ensure_future(receive())
                    await asyncio.sleep(0)
        finally:
            gone.cancel()
            if is_watch:
                self._watchers.remove(watcher)


@contextmanager
def serving(cluster: PretendCluster) -> Iterator[str]:
    """Its URL, with the dashboard at ``/``."""
    app = BrowserGuard(DashboardPages(cluster.app, mode=DashboardMode.ON))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
