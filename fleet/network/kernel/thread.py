"""The one thread that does kernel work.

``setns`` changes the calling thread, so it must never run on the event loop's thread or in a shared pool. One thread is enough
(an operation takes 0.05 to 4 ms) and makes the rest simple: all state of ``plane`` belongs to it and needs no locks. A helper
process was the alternative; it would cost 10 MiB and a protocol, and win only isolation from a crash of the library.

If the thread ever fails to return to the host's namespace it refuses all further work: doing host work inside a container's
namespace is the one mistake that must not happen.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fleet.errors import InvariantError, RuntimeFault
from fleet.network.kernel import syscalls

__all__ = ["KernelThread"]

T = TypeVar("T")


class KernelThread:
    """Runs functions one after another on a thread whose home is the host's network namespace."""

    def __init__(self, *, host_netns: Path | None = None) -> None:
        """``host_netns`` names the host's namespace; ``None`` means the one of the thread that first calls ``run``."""
        self._host_netns = host_netns
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fleet-network")
        self._home = -1
        self._lost = False

    @property
    def home(self) -> int:
        """Descriptor of the host's namespace; valid inside a call and until ``stop``."""
        return self._home

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` on the thread and return its result.

        Cancelling the caller does not interrupt the function: kernel work is never left half done because someone
        stopped waiting.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._call, function)

    def stop(self) -> None:
        """End the thread when its work is done, and close its descriptor; idempotent."""
        self._executor.shutdown(wait=True)
        if self._home >= 0:
            os.close(self._home)
            self._home = -1

    @contextmanager
    def inside(self, netns: int) -> Iterator[None]:
        """Be in the namespace behind descriptor ``netns`` for the length of the block (on this thread only)."""
        syscalls.setns_net(netns)
        try:
            yield
        finally:
            self._go_home()

    @contextmanager
    def inside_new(self) -> Iterator[None]:
        """Be in a new, empty namespace for the length of the block."""
        syscalls.unshare_net()
        try:
            yield
        finally:
            self._go_home()

    def _go_home(self) -> None:
        try:
            syscalls.setns_net(self._home)
        except RuntimeFault as error:
            self._lost = True
            raise InvariantError("the network thread cannot return to the host's namespace") from error

    def _call(self, function: Callable[[], T]) -> T:
        if self._lost:
            raise InvariantError("the network thread is not in the host's namespace; restart the daemon")
        if self._home < 0:
            self._home = os.open(self._host_netns or syscalls.thread_netns_path(), os.O_RDONLY | os.O_CLOEXEC)
            if self._host_netns is not None:
                syscalls.setns_net(self._home)
        return function()
