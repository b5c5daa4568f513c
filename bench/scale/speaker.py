"""One process with many nodes. Orders come as JSON lines on its input, each is answered with one on its output; at the end of its
input, and when its parent dies, it ends.

Orders: ``join`` (ask for certificates), ``connect`` (open the sessions, so many at a time), ``stats``.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import json
import os
import resource
import signal
import ssl
import sys
import time
from typing import Any, Final

import httpx
import msgspec
import uvloop

from bench.scale.pretend import PretendWorker, Tally, describe
from fleet import errors
from fleet.agent.dialer import manager_dialer
from fleet.agent.session import Session
from fleet.clock import SystemClock
from fleet.identity.keys import NodeIdentity, generate_request, make_identity
from fleet.identity.tls import client_context, insecure_context, pinned_context
from fleet.identity.tokens import check_root, parse_token
from fleet.manager.admission import JoinAnswer, JoinRequest

_JOINS_AT_ONCE: Final = 16
_OPENINGS_AT_ONCE: Final = 32
_PR_SET_PDEATHSIG: Final = 1
_JOIN_TRIES: Final = 5


class Speaker:
    """``first`` and ``count``: which nodes these are, for their names and addresses."""

    def __init__(self, first: int, count: int) -> None:
        self._names = [f"node-{number:05}" for number in range(first, first + count)]
        self._tally = Tally()
        self._joined: list[tuple[str, NodeIdentity, JoinAnswer]] = []
        self._sessions: list[Session] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def join(self, remote: str, token: str) -> dict[str, Any]:
        """The real way in: the root proved by the token, then a request with the token for each node."""
        async with httpx.AsyncClient(verify=insecure_context(), timeout=30, trust_env=False) as client:
            root = (await client.get(f"https://{remote}/cluster/v1/root")).text
        check_root(parse_token(token), root)
        began, limit = time.perf_counter(), asyncio.Semaphore(_JOINS_AT_ONCE)
        async with httpx.AsyncClient(verify=pinned_context(root), timeout=60, trust_env=False) as client:

            async def one(name: str) -> None:
                async with limit:
                    key = generate_request()
                    wish = JoinRequest(token=token, csr_pem=key.csr_pem, hostname=name, address=describe(name).address)
                    for tried in range(1, _JOIN_TRIES + 1):
                        answer = await client.post(
                            f"https://{remote}/cluster/v1/join", content=msgspec.json.encode(wish)
                        )
                        if answer.status_code == 200:
                            break
                        if tried == _JOIN_TRIES:
                            raise errors.UnavailableError(f"{name} cannot join: {answer.text}")
                        await asyncio.sleep(0.5 * tried)
                    said = msgspec.json.decode(answer.content, type=JoinAnswer)
                    identity = make_identity(cert_pem=said.certificate_pem, key_pem=key.key_pem, ca_pem=said.ca_pem)
                    self._joined.append((name, identity, said))

            await asyncio.gather(*(one(name) for name in self._names))
        return {"seconds": time.perf_counter() - began}

    async def connect(self, managers: list[str]) -> dict[str, Any]:
        """Open all sessions, a few at a time; from then on each is opened again whenever it ends, as the agent does."""
        began, limit = time.perf_counter(), asyncio.Semaphore(_OPENINGS_AT_ONCE)

        async def one(name: str, identity: NodeIdentity) -> None:
            async with limit:
                context = client_context(identity)
                worker = PretendWorker(self._tally)
                session = Session(
                    worker=worker,  # type: ignore[arg-type]
                    reporter=worker.reporter,
                    clock=SystemClock(),
                    dial=manager_dialer(functools.partial(_same, context), identity.cluster_id),
                    managers=managers,
                    managers_changed=lambda _managers: None,
                    trust_changed=lambda _trust: None,
                    hello=functools.partial(describe, name),
                )
                self._sessions.append(session)
                self._tasks.append(asyncio.create_task(session.run(), name=name))
                await session.connected.wait()

        await asyncio.gather(*(one(name, identity) for name, identity, _ in self._joined))
        self._joined = []
        return {"seconds": time.perf_counter() - began}

    def stats(self) -> dict[str, Any]:
        """Counts now; ``failed`` are sessions that ended for good, which none should."""
        return {
            "nodes": len(self._sessions),
            "connected": sum(session.connected.is_set() for session in self._sessions),
            "failed": [repr(task.exception()) for task in self._tasks if task.done()][:1],
            "assigned": self._tally.assigned,
            "running": len(self._tally.running),
            "updated": len(self._tally.updated),
            "rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }

    async def serve(self) -> None:
        """Orders until the input ends."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = json.loads(line)
            try:
                match order.pop("do"):
                    case "join":
                        answer = await self.join(**order)
                    case "connect":
                        answer = await self.connect(**order)
                    case _:
                        answer = self.stats()
            except (errors.FleetError, httpx.HTTPError, OSError) as cause:
                answer = {"error": f"{type(cause).__name__}: {cause}"}
            print(json.dumps(answer), flush=True)
        for task in self._tasks:
            task.cancel()


def _same(context: ssl.SSLContext) -> ssl.SSLContext:
    return context


def main() -> None:
    """``python -m bench.scale.speaker FIRST COUNT``."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked to be told
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this at ^C, by the end of the input
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(Speaker(int(sys.argv[1]), int(sys.argv[2])).serve())


if __name__ == "__main__":
    main()
