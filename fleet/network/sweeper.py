"""Forgets tracked flows to backends that left, in the background.

Why a thread of its own: listing one namespace's flows makes the kernel walk the table of *all* namespaces (10 ms on a host with
262,144 buckets), once for each sandbox, and nobody must wait for that. Requests for one namespace are joined while they wait,
and the thread rests four times as long as it worked: at worst a fifth of one core, however fast services change. Until a sweep
came by, a UDP client may send a few more packets to a backend that left; new flows never do.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from fleet.errors import NotFoundError, RuntimeFault
from fleet.network.kernel import syscalls
from fleet.network.kernel.conntrack import UDP, Flow, forget_flows
from fleet.network.namespaces import open_namespace

__all__ = ["FlowSweeper", "Sweep"]

_REST = 4.0


@dataclass(slots=True)
class Sweep:
    """What to forget in one namespace."""

    lost: set[str] = field(default_factory=set)
    """Backends that take no new flows: their UDP flows, which have no end of their own."""
    dead: set[str] = field(default_factory=set)
    """Backends that are gone: all their flows, so that TCP clients are reset instead of left hanging."""
    opened: set[int] = field(default_factory=set)
    """UDP ports that lead somewhere now: flows from before, which are tracked as leading to the host itself."""

    def picks(self, flow: Flow) -> bool:
        """Whether ``flow`` is to be forgotten."""
        if flow.answers == flow.destination:  # not translated
            return flow.protocol == UDP and flow.port in self.opened
        return flow.answers in self.dead or (flow.protocol == UDP and flow.answers in self.lost)


class FlowSweeper:
    """The thread and what waits for it. ``ask`` from any thread; ``stop`` once."""

    def __init__(self, *, host_netns: int) -> None:
        """``host_netns`` is a descriptor of the host's namespace; the caller keeps it open until after ``stop``."""
        self._home = host_netns
        self._waiting: dict[Path | None, Sweep] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._faults: list[str] = []
        self._thread = threading.Thread(target=self._run, name="fleet-flow-sweeper", daemon=True)
        self._thread.start()

    def ask(
        self,
        where: Path | None,
        *,
        lost: Collection[str] = (),
        dead: Collection[str] = (),
        opened: Collection[int] = (),
    ) -> None:
        """Sweep the namespace held at ``where`` (``None``: the host's) soon; nothing to forget is fine."""
        if not (lost or dead or opened):
            return
        with self._changed:
            sweep = self._waiting.setdefault(where, Sweep())
            sweep.lost.update(lost)
            sweep.dead.update(dead)
            sweep.opened.update(opened)
            self._changed.notify()

    def faults(self) -> list[str]:
        """What went wrong since the last call, in sentences; at most a few."""
        with self._changed:
            faults, self._faults = self._faults, []
        return faults

    def stop(self) -> None:
        """End the thread after the sweep under way; what waits is dropped."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping.is_set():
                    self._changed.wait()
                if self._stopping.is_set():
                    return
                where = next(iter(self._waiting))
                sweep = self._waiting.pop(where)
            start = time.monotonic()
            try:
                self._sweep(where, sweep)
            except NotFoundError:
                pass  # the sandbox was closed meanwhile, and its flows with it
            except (RuntimeFault, OSError) as error:
                with self._changed:
                    self._faults = [*self._faults[-4:], f"tracked flows in {where or 'the host'}: {error}"]
            self._stopping.wait((time.monotonic() - start) * _REST)

    def _sweep(self, where: Path | None, sweep: Sweep) -> None:
        netns = open_namespace(where) if where is not None else os.dup(self._home)
        try:
            syscalls.setns_net(netns)
            forget_flows(sweep.picks)
        finally:
            os.close(netns)
            syscalls.setns_net(self._home)
