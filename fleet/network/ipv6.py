"""The host's side of IPv6 networks: whether it can have them, their rules, forwarding. Used on the network thread.

Nothing here happens before the first network with IPv6 comes to this host: hosts without any are left as they were. A cluster's
network comes to every host that needs it; one whose kernel lacks what IPv6 needs takes part in the IPv4 half, and ``fault`` says
why. The rules for one host's IPv4 and IPv6 are computed by the same functions (``desired``, ``rules``) with another family.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from fleet.errors import FleetError, UnsupportedError
from fleet.network import cardrules, desired, rules
from fleet.network.cardrules import Card
from fleet.network.filters import CardFilter, HostFilter
from fleet.network.forwarding import enable_forwarding6
from fleet.network.kernel.nft import NftCloser, NftContext
from fleet.network.kernel.thread import KernelThread
from fleet.network.rules import HostRules, SandboxRules
from fleet.network.store import SandboxRecord
from fleet.network.sweeper import FlowSweeper
from fleet.network.topology import NetworkState, PublishedPort

__all__ = ["Ipv6"]

_CONF = Path("/proc/sys/net/ipv6/conf")
_TRIAL = Card("try", "02:42:00:00:00:01", "2001:db8::2", "192.0.2.2")


class Ipv6:
    """See the module."""

    def __init__(
        self, *, thread: KernelThread, closer: NftCloser, sweeper: FlowSweeper, table: str, run_dir: Path
    ) -> None:
        self._thread = thread
        self._closer = closer
        self._table = table
        self._run_dir = run_dir
        self._host = HostFilter(closer=closer, sweeper=sweeper, table=table, family="ip6")
        self._cards = CardFilter(closer=closer, table=table)
        self._fault: str | None = None
        self._can_watch: bool | None = None
        self._closed_router: bool | None = None

    @property
    def fault(self) -> str:
        """Why this host has no IPv6 for containers, in a sentence; empty while it has, or nobody asked."""
        return self._fault or ""

    def fit(self, state: NetworkState, *, strict: bool = True) -> NetworkState:
        """The state as this host can have it: without IPv6 where the kernel has none.

        ``strict``: raises ``UnsupportedError`` instead for a network of this host alone, so that who makes it is told.
        """
        if not state.network.subnet6:
            return state
        if self._fault is None:
            self._fault = self._find_fault()
        if not self._fault:
            return state
        if strict and state.network.is_local:
            raise UnsupportedError(f"network {state.network.name}: {self._fault}")
        return replace(state, network=state.network.without_ipv6())

    def host_rules(
        self,
        states: Mapping[str, NetworkState],
        *,
        bridges: Mapping[str, str],
        records: Iterable[SandboxRecord],
        published: Iterable[PublishedPort],
        seed: str,
    ) -> HostRules | None:
        """What ``apply`` takes; turns forwarding on when the first network that leads anywhere needs it."""
        if self._closed_router is None and any(s.network.subnet6 and not s.network.internal for s in states.values()):
            self._closed_router = enable_forwarding6(self._run_dir)
        return desired.host_rules(
            states,
            bridges=bridges,
            records=records,
            published=published,
            seed=seed,
            closed_router=bool(self._closed_router),
            family="ip6",
        )

    def can_watch(self) -> bool:
        """Whether this host's kernel filters on bridges, where it has IPv6 or not; found out once."""
        if self._can_watch is None:
            trial = cardrules.plan_cards(None, frozenset({_TRIAL}), table=self._table)
            try:
                with self._thread.inside_new(), NftContext(self._closer) as nft:
                    nft.run(trial)
                self._can_watch = True
            except FleetError:
                self._can_watch = False
        return self._can_watch

    def watch(self, cards: frozenset[Card]) -> None:
        """Bring only the bridges' table to what is wanted. Raises ``RuntimeFault``."""
        self._cards.apply(cards)

    def apply(self, wanted: HostRules | None, cards: frozenset[Card], *, dead: Collection[str] = ()) -> None:
        """Bring the host's and the bridges' tables to what is wanted. Raises ``RuntimeFault``."""
        self._cards.apply(cards)
        self._host.apply(wanted, dead=dead)

    def mend(self, wanted: HostRules | None, cards: frozenset[Card]) -> list[str]:
        """Replace tables that differ from what was ordered; a sentence for each."""
        done = []
        if self._cards.mend(cards):
            done.append("bridge rules of IPv6: differed from what was ordered, replaced")
        if self._host.mend(wanted):
            done.append("host rules of IPv6: differed from what was ordered, replaced")
        return done

    def remove(self) -> None:
        """Delete the tables; absent is fine."""
        for table in (self._host, self._cards):
            try:
                table.remove()
            except FleetError:
                if not self._fault and self._fault is not None:
                    raise  # a kernel that never could has none

    def close(self) -> None:
        """Leave the tables as they are."""
        self._host.close()
        self._cards.close()

    def _find_fault(self) -> str:
        if not _CONF.is_dir():
            return "this host's kernel has no IPv6 (started with ipv6.disable=1, or built without)"
        trials = (
            rules.plan_sandbox(None, SandboxRules(dns_port=1, vips6={"2001:db8::9": ("2001:db8::2", "2001:db8::3")})),
            rules.plan_host(None, HostRules(), table=self._table, family="ip6"),
            cardrules.plan_cards(None, frozenset({_TRIAL}), table=self._table),
        )
        try:
            with self._thread.inside_new(), NftContext(self._closer) as nft:
                for trial in trials:
                    nft.run(trial)
        except FleetError as cause:
            return (
                "this host's kernel or nftables cannot filter IPv6 on bridges, or translate it (modules nf_tables, "
                f"nft_chain_nat, nft_masq, nft_fib_ipv6, nft_reject_ipv6): {cause}"
            )
        return ""
