"""What it means that a packet was sent and not heard; pure.

Ways are judged one direction at a time: a firewall often lets packets out that it does not let in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from fleet.daemon.doctor.words import EarWord, HeardWord, ListenAnswer, LookAnswer, Target
from fleet.network.doctor.finding import Check, Finding, note, right, wrong
from fleet.network.doctor.frames import OUTER_BYTES, SMALL_BYTES

__all__ = ["HostSeen", "judge_ways", "targets_of", "way_ears"]


@dataclass(slots=True, kw_only=True)
class HostSeen:
    """A host that answered. ``examined``: it was asked for; another may only be the far end of its ways."""

    number: int
    name: str
    listening: ListenAnswer
    examined: bool = True
    look: LookAnswer = field(default_factory=LookAnswer)
    heard: tuple[HeardWord, ...] = ()


def way_ears(source: HostSeen, target: HostSeen) -> list[EarWord]:
    """The target's ears that the source can be heard by: on a network both are on and let each other in."""
    own = {ear.network: ear for ear in source.listening.ears}
    return [
        ear
        for ear in target.listening.ears
        if not ear.network
        or (
            ear.network in own
            and source.listening.underlay in ear.peers
            and target.listening.underlay in own[ear.network].peers
        )
    ]


def targets_of(source: HostSeen, hosts: Sequence[HostSeen]) -> tuple[Target, ...]:
    """Whom ``source`` sends to: everybody if it is examined, else those that are."""
    return tuple(
        Target(
            number=other.number, name=other.name, underlay=other.listening.underlay, ears=tuple(way_ears(source, other))
        )
        for other in hosts
        if other is not source and (source.examined or other.examined)
    )


def judge_ways(hosts: Sequence[HostSeen]) -> list[Finding]:
    """All ways between them, and whether they agree about each network's MTU."""
    found: list[Finding] = []
    for source in hosts:
        good: list[str] = []
        untried: list[str] = []
        for target in hosts:
            if target is source or not (source.examined or target.examined):
                continue
            ears = way_ears(source, target)
            if not ears:
                untried.append(target.name)
                continue
            bad = list(_way(source, target, ears))
            found += [replace(finding, host=source.name) for finding in bad]
            if not bad:
                good.append(target.name)
        if good:
            found.append(
                replace(right(Check.PATH, f"full-sized VXLAN packets arrive at {_listed(good)}"), host=source.name)
            )
        if untried:
            says = (
                f"the way to {_listed(untried)} was not tried: no overlay network with tasks on both hosts is in order"
            )
            found.append(replace(note(Check.PATH, says), host=source.name))
    return found + _mtus(hosts)


def _way(source: HostSeen, target: HostSeen, ears: Sequence[EarWord]) -> Iterator[Finding]:
    heard = {word.network: set(word.sizes) for word in target.heard if word.sender == source.number}
    names = {ear.network: ear.name for ear in ears}
    silent = [ear for ear in ears if ear.network not in heard]
    if len(silent) == len(ears):
        yield _nothing_arrives(source, target, port=ears[0].port, sealed=all(ear.encrypted for ear in ears))
        return
    if sealed := sorted(ear.name for ear in silent if ear.encrypted):
        port = ears[0].port + 1
        yield wrong(
            Check.PATH,
            f"packets of the encrypted {'network' if len(sealed) == 1 else 'networks'} {_listed(sealed)} do not arrive at "
            f"{target.name}, those of others do",
            f"let UDP port {port} from {source.listening.underlay} to {target.listening.underlay} and back pass, and see what is "
            "said of both hosts' tunnels",
            network=sealed[0] if len(sealed) == 1 else "",
        )
    for ear in (ear for ear in silent if not ear.encrypted):
        yield wrong(
            Check.PATH,
            f"packets of this network (VNI {ear.vni}) do not arrive at {target.name}, those of others do",
            f"see what is said of {target.name}'s links and rules",
            network=ear.name,
        )
    own = {ear.network: ear.mtu for ear in source.listening.ears}
    stuck = {word.network for word in source.look.too_big if word.target == target.number}
    too_small: dict[tuple[int, int, bool], list[str]] = defaultdict(list)
    for ear in ears:
        full = (own.get(ear.network) or ear.mtu) + OUTER_BYTES
        sizes = heard.get(ear.network, set())
        if sizes and full not in sizes:
            too_small[full, max(sizes), ear.network in stuck].append(names[ear.network])
    for (full, largest, is_own), networks in too_small.items():
        yield _too_small(source, target, full=full, largest=largest, is_own=is_own, networks=networks)


def _nothing_arrives(source: HostSeen, target: HostSeen, *, port: int, sealed: bool) -> Finding:
    here, there = source.listening.underlay, target.listening.underlay
    what, port = ("packets of encrypted networks", port + 1) if sealed else ("VXLAN packets", port)
    if target.number not in source.look.pinged:
        return wrong(
            Check.PATH,
            f"{target.name} ({there}) cannot be reached from {here}: neither {what} (UDP port {port}) nor pings arrive",
            f"see the hosts' routes and links (ip route get {there}), and that {there} is the address to use between hosts: "
            "fleet swarm join --data-path-addr sets another",
        )
    blocked = [f"on {host.name}, {rule}" for host in (target, source) for rule in host.look.suspects]
    guess = (
        f"; this may be it: {blocked[0]}"
        if blocked
        else f"; between the hosts, or at {target.name} or here (nft list ruleset)"
    )
    return wrong(
        Check.PATH,
        f"{what} (UDP port {port}) do not arrive at {target.name} ({there}), though it answers pings: a firewall takes "
        "them away",
        f"let UDP port {port} from {here} to {there} pass{guess}",
    )


def _too_small(
    source: HostSeen, target: HostSeen, *, full: int, largest: int, is_own: bool, networks: Sequence[str]
) -> Finding:
    where = "do not fit this host's link" if is_own else "are lost on the way"
    fits = f"the largest that arrived had {largest}" if largest > SMALL_BYTES else "only small ones arrived"
    mtu = max(largest - OUTER_BYTES, 576)
    of = "the network" if len(networks) == 1 else f"the networks {_listed(sorted(networks))}"
    return wrong(
        Check.MTU,
        f"packets of {full} bytes to {target.name} {where} ({fits}): connections between {source.name} and {target.name} stall "
        "as soon as they send much",
        f"give every link between the hosts an MTU of at least {full}, or make {of} anew with --opt "
        f"com.docker.network.driver.mtu={mtu}",
        network=networks[0] if len(networks) == 1 else "",
    )


def _mtus(hosts: Sequence[HostSeen]) -> list[Finding]:
    """A network's MTU follows each host's own link unless it is given, so hosts may differ."""
    seen: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for host in hosts:
        for ear in host.listening.ears:
            if ear.network:
                seen[ear.name][ear.mtu].append(host.name)
    return [
        wrong(
            Check.MTU,
            "its MTU is "
            + _listed([f"{mtu} bytes on {_listed(names)}" for mtu, names in sorted(by_mtu.items(), reverse=True)])
            + ": large packets from the first are lost at the last",
            "give the hosts' links the same MTU and restart the tasks, or make the network anew with --opt "
            f"com.docker.network.driver.mtu={min(by_mtu)}",
            network=name,
        )
        for name, by_mtu in sorted(seen.items())
        if len(by_mtu) > 1
    ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
