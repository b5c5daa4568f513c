"""Real etcd processes for tests: one member, or several that can be killed and started again; and an engine on them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from fleet.engines.etcd import EtcdEngine
from fleet.store.engine import CompareFailed, Entry, Listing, Txn, WatchBatch

__all__ = ["EtcdCluster", "RebasedEtcd", "has_etcd"]


def has_etcd() -> bool:
    return shutil.which("etcd") is not None


def _free_ports(count: int, host: str) -> list[int]:
    sockets = [socket.create_server((host, 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass
class _Member:
    name: str
    client: str
    peer: str
    process: subprocess.Popen[bytes] | None = None


class EtcdCluster:
    """``size`` members on one address, loopback unless told; a context manager that ends them all."""

    def __init__(self, directory: Path, *, size: int = 1, host: str = "127.0.0.1") -> None:
        self._directory = directory
        ports = _free_ports(2 * size, host)
        self.members = [
            _Member(f"m{i}", f"http://{host}:{ports[2 * i]}", f"http://{host}:{ports[2 * i + 1]}") for i in range(size)
        ]

    @property
    def endpoints(self) -> list[str]:
        return [member.client for member in self.members]

    def __enter__(self) -> EtcdCluster:
        for index in range(len(self.members)):
            self.start(index)
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(len(self.members)):
            self.kill(index)

    def start(self, index: int) -> None:
        member = self.members[index]
        initial = ",".join(f"{m.name}={m.peer}" for m in self.members)
        arguments = ["etcd", "--name", member.name, "--data-dir", str(self._directory / member.name)]
        arguments += ["--listen-client-urls", member.client, "--advertise-client-urls", member.client]
        arguments += ["--listen-peer-urls", member.peer, "--initial-advertise-peer-urls", member.peer]
        arguments += ["--initial-cluster", initial, "--heartbeat-interval", "100", "--election-timeout", "1000"]
        with (self._directory / f"{member.name}.log").open("ab") as log:
            member.process = subprocess.Popen(arguments, stdout=log, stderr=log)

    def kill(self, index: int) -> None:
        process = self.members[index].process
        if process is not None:
            process.kill()
            process.wait()
            self.members[index].process = None

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 30
        for endpoint in self.endpoints:
            while True:
                try:
                    if httpx.post(endpoint + "/v3/kv/range", json={"key": "AA=="}, timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                assert time.monotonic() < deadline, f"etcd at {endpoint} did not become ready"
                time.sleep(0.05)

    def compact(self, revision: int) -> None:
        answer = httpx.post(self.endpoints[0] + "/v3/kv/compaction", json={"revision": str(revision), "physical": True})
        assert answer.status_code == 200, answer.text


class RebasedEtcd:
    """An ``EtcdEngine`` whose revisions are told from the engine's start, as the contract's numbers are written."""

    lease_scale = 20.0  # etcd's shortest lease is about 2 s; the suite's are tenths

    def __init__(self, engine: EtcdEngine) -> None:
        self._engine = engine
        self._base = 0

    @property
    def ops_max(self) -> int:
        return self._engine.ops_max

    async def start(self) -> None:
        await self._engine.start()
        self._base = (await self._engine.list("/")).revision - 1

    async def close(self) -> None:
        await self._engine.close()

    async def commit(self, txn: Txn) -> int:
        compares = tuple(
            replace(c, mod_revision=c.mod_revision + self._base if c.mod_revision else 0) for c in txn.compares
        )
        try:
            return await self._engine.commit(replace(txn, compares=compares)) - self._base
        except CompareFailed as failed:
            actual = {key: found - self._base if found else 0 for key, found in failed.actual.items()}
            raise CompareFailed(actual, revision=failed.revision - self._base) from failed

    def _entry(self, entry: Entry) -> Entry:
        return replace(
            entry,
            mod_revision=entry.mod_revision - self._base,
            create_revision=entry.create_revision - self._base,
        )

    async def get(self, key: str) -> Entry | None:
        entry = await self._engine.get(key)
        return entry and self._entry(entry)

    async def list(self, prefix: str, *, at_revision: int | None = None) -> Listing:
        wanted = at_revision + self._base if at_revision else None
        listing = await self._engine.list(prefix, at_revision=wanted)
        return Listing(tuple(self._entry(e) for e in listing.entries), listing.revision - self._base)

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchBatch]:
        inner = self._engine.watch(prefix, from_revision + self._base)
        try:
            async for batch in inner:
                events = tuple(self._entry(e) if isinstance(e, Entry) else e for e in batch.events)
                yield WatchBatch(batch.revision - self._base, events)
        finally:
            await inner.aclose()  # type: ignore[attr-defined]

    async def grant(self, ttl_s: float) -> int:
        return await self._engine.grant(ttl_s)

    async def keep_alive(self, lease: int) -> None:
        await self._engine.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._engine.revoke(lease)
