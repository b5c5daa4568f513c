"""``HostNetwork``: one host's network for asyncio code. A thin shell over ``plane``, which does the work on its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from fleet.cancellation import cancel_and_wait
from fleet.errors import FleetError, InvariantError, RuntimeFault, UnsupportedError
from fleet.network.doctor.view import PlaneView
from fleet.network.kernel.thread import KernelThread
from fleet.network.naming import Owner
from fleet.network.plane import Plane
from fleet.network.store import Store
from fleet.network.topology import (
    AttachmentSpec,
    HostPort,
    Interface,
    NetworkSpec,
    NetworkState,
    PublishedPort,
    Sandbox,
    SandboxSpec,
)

__all__ = ["HostNetwork", "OutsidePorts"]

T = TypeVar("T")

_RESTART_FIRST_S, _RESTART_MAX_S = 0.02, 5.0
_QUIET_S = 0.02


class OutsidePorts(Protocol):
    """Ports of the machine, where this host's namespace is not the machine's and its rules do not reach there."""

    async def open_ports(self, sandbox_id: str, ports: Sequence[HostPort]) -> None:
        """Lead them to the same ports of 127.0.0.1 here; all or none. Raises ``FleetError``."""
        ...

    async def close_ports(self, sandbox_id: str) -> None:
        """Idempotent."""
        ...

    async def keep_ports(self, sandboxes: Collection[str]) -> None:
        """Close those of others."""
        ...


class HostNetwork:
    """This host's part of the cluster network.

    Use: ``open`` once, then anything in any order; calls from several tasks are carried out one after another. Every
    ``ensure``, ``apply``, ``create`` and ``remove`` is idempotent. Cancelling a call stops the waiting, not the
    work. Errors are ``UserError`` and its kin for bad requests, ``RuntimeFault`` when the kernel refuses.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        state_dir: Path,
        owner: str,
        underlay_address: Callable[[], str] | str,
        local_node_id: str = "",
        host_netns: Path | None = None,
        resolv_conf: Path = Path("/etc/resolv.conf"),
        pool_size: int = 4,
        outside: OutsidePorts | None = None,
        open_namespace: Callable[[int, int], Awaitable[int]] | None = None,
        shelter: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """``run_dir`` (a tmpfs) is for what ends with the boot, ``state_dir`` for what does not; ``owner`` marks
        kernel objects.

        ``underlay_address`` is this host's IPv4 address for VXLAN. ``host_netns`` is the host's network namespace if it is not
        the calling thread's (tests, labs). ``pool_size`` namespaces are prepared ahead
        (0.3 MiB of kernel memory each). ``outside``: where published ports have to be opened as well. ``open_namespace`` makes an
        empty namespace that belongs to a user namespace with these ids (first, count), which takes a process of one thread;
        without it all belong to the host's. ``shelter`` is called with each process that is to outlive this one, so that a
        service manager's kill spares it.
        """
        self._store = Store(run_dir=run_dir, state_dir=state_dir)
        self._owner = Owner(owner)
        self._underlay = underlay_address if callable(underlay_address) else lambda: underlay_address
        self._node_id = local_node_id
        self._resolv_conf = resolv_conf
        self._pool_size = pool_size
        self._outside = outside
        self._open_namespace = open_namespace
        self._shelter = shelter
        self._taken = asyncio.Event()
        self._thread = KernelThread(host_netns=host_netns)
        self._plane: Plane | None = None
        self.tunnel_key = ""
        """Public key (base64) of this host's end of the tunnel for encrypted networks; empty before ``open``, and on a host that
        can have none."""
        self._helpers: list[asyncio.Task[None]] = []

    async def open(self) -> list[str]:
        """Adopt what an earlier daemon left, start the DNS process if needed; returns what had to be mended, in sentences."""
        done = await self._thread.run(self._open)
        if self._outside is not None:
            await self._outside.keep_ports(await self.sandboxes())
        self._helpers = [
            asyncio.create_task(self._guard(self.dns_pid, Plane.revive_dns), name="fleet-dns-guard"),
            asyncio.create_task(self._guard(self.tunnel_pid, Plane.revive_tunnel), name="fleet-tunnel-guard"),
            asyncio.create_task(self._refill(), name="fleet-netns-refill"),
        ]
        return done

    async def close(self) -> None:
        """Stop; containers keep their network and their names."""
        await self._stop(lambda plane: plane.close())

    async def destroy(self) -> None:
        """Remove everything this owner ever made on this host, then stop."""

        def destroy(plane: Plane) -> None:
            plane.destroy()
            plane.close()

        await self._stop(destroy)

    async def ensure_network(self, spec: NetworkSpec) -> None:
        """Make a network's bridge (and VXLAN device); needed before a sandbox can join it."""
        await self._run(lambda plane: plane.ensure_network(spec))

    async def remove_network(self, network_id: str) -> None:
        """Remove a network. Raises ``ConflictError`` while a sandbox is on it."""
        await self._run(lambda plane: plane.remove_network(network_id))

    async def apply_state(self, state: NetworkState) -> None:
        """Bring one network to a complete state: reachability, virtual addresses, published ports, names."""
        await self._run(lambda plane: plane.apply_state(state))

    async def apply_published(self, ports: Sequence[PublishedPort]) -> None:
        """Open exactly these ports on this host, leading to the ingress network."""
        await self._run(lambda plane: plane.apply_published(ports))

    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        """Make a container's network namespace, complete with cards, routes, rules, names and host ports."""
        spec = await self._open_outside(spec)
        try:
            return await self._create_sandbox(spec)
        except BaseException:
            await self._close_outside(spec.id)
            raise
        finally:
            self._taken.set()

    async def _create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        if self._open_namespace is None:
            spec = dataclasses.replace(spec, ids=None)
        made = await self._run(lambda plane: plane.create_sandbox(spec))
        if made is None:
            assert self._open_namespace is not None and spec.ids is not None
            try:
                netns = await self._open_namespace(*spec.ids)
            except UnsupportedError:  # by a supervisor that was there before an upgrade: as it knows it, the host's
                return await self._create_sandbox(dataclasses.replace(spec, ids=None))
            made = await self._run_with(netns, lambda plane: plane.create_sandbox(spec, netns=netns))
            assert made is not None
        return made

    async def _open_outside(self, spec: SandboxSpec) -> SandboxSpec:
        """Open its ports out there; here they are then every address's, for out there it was decided which."""
        if self._outside is None or not spec.host_ports:
            return spec
        await self._outside.open_ports(spec.id, spec.host_ports)
        ports = tuple(dataclasses.replace(port, host_address="0.0.0.0") for port in spec.host_ports)
        return dataclasses.replace(spec, host_ports=ports)

    async def _close_outside(self, sandbox_id: str) -> None:
        if self._outside is not None:
            await self._outside.close_ports(sandbox_id)

    async def connect(self, sandbox_id: str, attachment: AttachmentSpec) -> Interface:
        """Attach a running sandbox to one more network."""
        return await self._run(lambda plane: plane.connect(sandbox_id, attachment))

    async def disconnect(self, sandbox_id: str, network_id: str) -> None:
        """Detach a running sandbox from a network."""
        await self._run(lambda plane: plane.disconnect(sandbox_id, network_id))

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Close a sandbox. End the container's processes first: its namespace lives as long as they do."""
        await self._close_outside(sandbox_id)
        await self._run(lambda plane: plane.remove_sandbox(sandbox_id))

    async def sandboxes(self) -> list[str]:
        """Ids of all sandboxes on this host."""
        return await self._run(lambda plane: plane.sandboxes())

    async def sandbox(self, sandbox_id: str) -> Sandbox:
        """Describe a sandbox. Raises ``NotFoundError``."""
        return await self._run(lambda plane: plane.sandbox(sandbox_id))

    async def reconcile(self, *, keep_sandboxes: Collection[str], keep_networks: Collection[str]) -> list[str]:
        """Remove what is not to be kept and mend whatever drifted; returns what was done, in sentences.

        Other calls may come between its parts. Takes about 10 ms a sandbox when that has many services: call it every
        minute, not every second.
        """
        done = await self._run(partial(Plane.reconcile, keep_sandboxes=keep_sandboxes, keep_networks=keep_networks))
        for sandbox_id in await self.sandboxes():
            done += await self._run(partial(Plane.mend_sandbox, sandbox_id=sandbox_id))
        if self._outside is not None:
            await self._outside.keep_ports(await self.sandboxes())
        return done

    async def look(self, function: Callable[[PlaneView], T]) -> T:
        """Run ``function`` on the network thread, in the host's namespace, with what should be; it must change nothing."""
        return await self._run(lambda plane: function(plane.view()))

    def open_netns(self, sandbox_id: str) -> int:
        """Open a sandbox's namespace, to enter it or pass it on; the caller closes the descriptor. Raises ``NotFoundError``."""
        return self._opened().netns_of(sandbox_id)

    def dns_pid(self) -> int:
        """The DNS process of this host."""
        return self._opened().dns.pid

    def tunnel_pid(self) -> int:
        """The process that carries the packets of encrypted networks; 0 while there is none."""
        return self._opened().tunnel.pid

    def _open(self) -> list[str]:
        plane = Plane(
            thread=self._thread,
            store=self._store,
            owner=self._owner,
            underlay=self._underlay,
            node_id=self._node_id,
            resolv_conf=self._resolv_conf,
            pool_size=self._pool_size,
        )
        try:
            done = plane.open()
        except BaseException:
            plane.close()
            raise
        self._plane = plane
        self.tunnel_key = plane.tunnel.public_key() if plane.tunnel.is_possible() else ""
        return done

    def _opened(self) -> Plane:
        if self._plane is None:
            raise InvariantError("HostNetwork is used before open() or after close()")
        return self._plane

    async def _run(self, function: Callable[[Plane], T]) -> T:
        plane = self._opened()
        return await self._thread.run(lambda: function(plane))

    async def _run_with(self, netns: int, function: Callable[[Plane], T]) -> T:
        """As ``_run``; closes the descriptor afterwards, however long that takes after a cancellation."""

        def run(plane: Plane) -> T:
            try:
                return function(plane)
            finally:
                os.close(netns)

        return await asyncio.shield(self._run(run))

    async def _stop(self, function: Callable[[Plane], None]) -> None:
        helpers, self._helpers = self._helpers, []
        await cancel_and_wait(*helpers)
        plane, self._plane = self._plane, None
        if plane is not None:
            await self._thread.run(lambda: function(plane))
        self._thread.stop()

    async def _refill(self) -> None:
        """Prepare namespaces while nobody makes sandboxes, to keep out of their way."""
        more = True
        while True:
            if not more:
                await self._taken.wait()
            self._taken.clear()
            await asyncio.sleep(_QUIET_S)
            more = True
            if self._taken.is_set():
                continue
            try:
                more = await self._run(Plane.refill) or await self._refill_owned()
            except FleetError:
                more = False  # not now; a sandbox that needs one makes its own, and says why it cannot

    async def _refill_owned(self) -> bool:
        """Prepare one for a container with ids of its own, as there were some; returns whether there may be room for more."""
        ids = await self._run(Plane.lacking)
        if ids is None or self._open_namespace is None:
            return False
        netns = await self._open_namespace(*ids)
        await self._run_with(netns, partial(Plane.put_owned, ids=ids, netns=netns))
        return True

    async def _guard(self, pid_of: Callable[[], int], revive: Callable[[Plane, int], None]) -> None:
        """Replace a process as soon as it ends, however it ended; slower each time if it keeps ending."""
        pause_s = _RESTART_FIRST_S
        while True:
            pid = pid_of()
            started = asyncio.get_running_loop().time()
            if pid:
                if self._shelter is not None:
                    with contextlib.suppress(OSError):  # it has ended, which comes next
                        await self._shelter(pid)
                await _process_end(pid)
            if asyncio.get_running_loop().time() - started > _RESTART_MAX_S:
                pause_s = _RESTART_FIRST_S
            with contextlib.suppress(
                RuntimeFault, UnsupportedError
            ):  # it will not start now: the next turn tries again, and reconcile reports it
                await self._run(partial(_revive, revive, pid))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _RESTART_MAX_S)


def _revive(revive: Callable[[Plane, int], None], pid: int, plane: Plane) -> None:
    revive(plane, pid)


async def _process_end(pid: int) -> None:
    """Wait until a process ends, whoever its parent is (pidfd_open(2))."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
