"""Names, addresses and paths of a lab: all of it computed, nothing touched.

NAME                 1-24 of [a-z0-9-]; machine-wide, because network namespaces and cgroups are
token                16 hex digits drawn when the lab is made; whatever carries it was made by this very lab
subnet 10.X.Y.0/24   .1 the machine, .10+i manager i, .100+i worker i
ROOT/NAME/           lab.json (the record), hosts, HOST/data (or HOST/disk.img), HOST/fleetd.toml, HOST/fleetd.log
/run/fleet-lab/NAME/ owner.json, switch, HOST/ (the daemon's exec root, emptied at each boot), HOST.init.sock
fleet-lab-NAME       network namespace with the switch: bridge ``br0``, a port named after each host, port ``machine``
flab<token[:8]>      the machine's link into the switch
/fleet-lab/NAME/HOST the cgroup below which the host's containers run, in every hierarchy
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fleet import errors

__all__ = [
    "CGROUP_ROOT",
    "MANAGERS_MAX",
    "RUN_ROOT",
    "WORKERS_MAX",
    "Layout",
    "Role",
    "check_counts",
    "check_name",
    "choose_subnet",
    "host_address",
    "host_names",
    "mac_of",
    "machine_address",
    "parse_subnet",
    "role_of",
]

Role = Literal["manager", "worker"]

RUN_ROOT: Final = Path("/run/fleet-lab")
"""Short on purpose: socket paths below it must fit the 107 bytes of unix(7)."""
CGROUP_ROOT: Final = "/fleet-lab"
MANAGERS_MAX: Final = 9
WORKERS_MAX: Final = 100
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,22}[a-z0-9])?")
_HOST: Final = re.compile(r"([mw])([1-9][0-9]{0,2})")
_SUBNETS: Final = [
    ipaddress.IPv4Network((10 << 24 | x << 16 | y << 8, 24)) for x in range(200, 254) for y in range(256)
]
"""High in 10/8: a swarm hands overlay networks out from 10.0.0.0 upwards."""


def check_name(name: str) -> str:
    """The name itself; raises ``UserError`` when it cannot name a lab."""
    if not _NAME.fullmatch(name):
        raise errors.UserError(f"lab name {name!r}: use 1 to 24 lower-case letters, digits and inner dashes")
    return name


def check_counts(*, managers: int, workers: int) -> None:
    """Raises ``UserError`` unless ``1 <= managers <= MANAGERS_MAX`` and ``0 <= workers <= WORKERS_MAX``."""
    if not 1 <= managers <= MANAGERS_MAX:
        raise errors.UserError(f"{managers} managers: a lab has 1 to {MANAGERS_MAX}")
    if not 0 <= workers <= WORKERS_MAX:
        raise errors.UserError(f"{workers} workers: a lab has 0 to {WORKERS_MAX}")


def host_names(*, managers: int, workers: int) -> list[str]:
    """``m1, m2, ..., w1, w2, ...``; the first is where the swarm begins."""
    return [f"m{i}" for i in range(1, managers + 1)] + [f"w{i}" for i in range(1, workers + 1)]


def role_of(host: str) -> Role:
    """By the first letter of the name."""
    return "manager" if host.startswith("m") else "worker"


def host_address(subnet: str, host: str) -> str:
    """The host's own address, without prefix length."""
    match = _HOST.fullmatch(host)
    if match is None:
        raise errors.UserError(f"host {host!r}: hosts of a lab are called m1, m2, ... and w1, w2, ...")
    offset = (10 if match[1] == "m" else 100) + int(match[2])
    return str(ipaddress.IPv4Network(subnet)[offset])


def machine_address(subnet: str) -> str:
    """The machine's address on the lab's switch; hosts know it as ``machine``."""
    return str(ipaddress.IPv4Network(subnet)[1])


def mac_of(address: str) -> str:
    """A locally administered MAC made from the address, so that it survives a loss of power and no neighbour entry goes stale."""
    return "02:fa:" + ":".join(f"{part:02x}" for part in ipaddress.IPv4Address(address).packed)


def parse_subnet(text: str) -> str:
    """Canonical form; raises ``UserError`` unless it is a private IPv4 /24."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as cause:
        raise errors.UserError(f"subnet {text!r}: {cause}; expected for example 10.210.0.0/24") from cause
    if network.prefixlen != 24 or not network.is_private:
        raise errors.UserError(f"subnet {text}: a lab takes a private /24, for example 10.210.0.0/24")
    return str(network)


def overlapping(subnet: str, used: Iterable[str]) -> str | None:
    """The first of ``used`` (IPv4 networks) that shares an address with ``subnet``."""
    wanted = ipaddress.IPv4Network(subnet)
    return next((other for other in used if wanted.overlaps(ipaddress.IPv4Network(other, strict=False))), None)


def choose_subnet(used: Iterable[str], *, start: int, wanted: str | None = None) -> str:
    """A subnet that overlaps none of ``used``: ``wanted``, or the first free one from position ``start`` of our range on.

    Raises ``ConflictError`` when the wanted one, or every one, is taken.
    """
    taken = list(used)
    if wanted is not None:
        subnet = parse_subnet(wanted)
        if (other := overlapping(subnet, taken)) is not None:
            raise errors.ConflictError(f"subnet {subnet} is taken: this machine has a route or a lab on {other}")
        return subnet
    for step in range(len(_SUBNETS)):
        candidate = str(_SUBNETS[(start + step) % len(_SUBNETS)])
        if overlapping(candidate, taken) is None:
            return candidate
    raise errors.ConflictError("no free subnet for a lab in 10.200.0.0 to 10.253.255.255; give one with --subnet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything of one lab is. ``root`` is the folder of all labs."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def record(self) -> Path:
        return self.folder / "lab.json"

    @property
    def record_draft(self) -> Path:
        """What a crash while writing the record may leave."""
        return self.folder / "lab.json.new"

    @property
    def run(self) -> Path:
        return RUN_ROOT / self.name

    @property
    def owner(self) -> Path:
        return self.run / "owner.json"

    def owner_draft(self, token: str) -> Path:
        """Becomes ``run`` in one step, owner and all."""
        return RUN_ROOT / f".{self.name}.{token}"

    @property
    def switch(self) -> Path:
        return self.run / "switch"

    @property
    def cgroup(self) -> str:
        return f"{CGROUP_ROOT}/{self.name}"

    @property
    def hosts_file(self) -> Path:
        return self.folder / "hosts"

    def host_folder(self, host: str) -> Path:
        return self.folder / host

    def data(self, host: str) -> Path:
        return self.folder / host / "data"

    def disk(self, host: str) -> Path:
        return self.folder / host / "disk.img"

    def config(self, host: str) -> Path:
        return self.folder / host / "fleetd.toml"

    def log(self, host: str) -> Path:
        return self.folder / host / "fleetd.log"

    def exec_root(self, host: str) -> Path:
        return self.run / host

    def socket(self, host: str) -> Path:
        return self.run / host / "fleet.sock"

    def control(self, host: str) -> Path:
        return self.run / f"{host}.init.sock"

    def host_cgroup(self, host: str) -> str:
        return f"{self.cgroup}/{host}"
