"""The lab's network: one switch in a namespace of its own, a cable to each host and one to the machine.

The switch is a bridge in a network namespace of its own, not in the machine's: with Docker installed, frames that
cross a bridge of the machine run through its firewall (br_netfilter) and are dropped by its FORWARD policy. Here host-to-host
traffic never meets the machine's firewall, and the machine gets a single link that carries ``.1``. A host's port is named after
the host; ``nsenter --net=/run/fleet-lab/NAME/switch tcpdump -i br0`` shows everything. (A file of our own holds the namespace,
rather than a name of ip-netns(8), which would leave a mount on /run/netns behind.)

A partition is a table in the *receiving* host's own namespace that drops by source address in prerouting: silent loss, as on a
broken cable. (Dropping in output instead would answer ``sendto`` with EPERM, which no broken cable does.) All traffic between
hosts, VXLAN included, carries the hosts' own addresses, so this cuts everything.

All through ip(8), nft(8) and nsenter(1): a lab makes a handful of links, once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from fleet import errors
from fleet.lab.names import Layout, mac_of, machine_address

__all__ = ["BLOCK_TABLE", "Switch", "block_sources", "require_tools", "run", "used_networks"]

BLOCK_TABLE: Final = "fleet_lab"
_TOOLS: Final = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "setpriv": "util-linux"}
_COMMAND_TIMEOUT_S: Final = 30.0


def require_tools(*extra: tuple[str, str]) -> None:
    """Raises ``UnsupportedError`` naming the first missing program and its Debian package."""
    for program, package in [*_TOOLS.items(), *extra]:
        if shutil.which(program) is None:
            raise errors.UnsupportedError(
                f"the lab needs {program!r}, which is not on PATH: install the package {package} (scripts/setup does)"
            )


def run(argv: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a program to its end and return its output; raises ``RuntimeFault`` with what it said."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise errors.RuntimeFault(f"run {' '.join(argv)}: {cause}") from cause
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise errors.RuntimeFault(f"run {' '.join(argv)}: {said}")
    return done.stdout


def used_networks(*, except_link: str) -> list[str]:
    """Every IPv4 network this machine has a route to, except through ``except_link``; the default route is none."""
    routes = json.loads(run(["ip", "-4", "-j", "route", "show", "table", "all"]) or "[]")
    return [r["dst"] for r in routes if r.get("dev") != except_link and r["dst"] not in ("default", "0.0.0.0/0")]


def block_sources(pid: int, addresses: Collection[str]) -> None:
    """Make the host whose process 1 is ``pid`` deaf to ``addresses`` and to no others; idempotent, atomic."""
    rules = f"add table inet {BLOCK_TABLE}\ndelete table inet {BLOCK_TABLE}\n"
    if addresses:
        # Priority -400: before defragmentation, connection tracking and everything of fleet's own.
        rules += f"""
table inet {BLOCK_TABLE} {{
  chain prerouting {{
    type filter hook prerouting priority -400; policy accept;
    ip saddr {{ {", ".join(sorted(addresses))} }} drop
  }}
}}
"""
    run(["nsenter", f"--net=/proc/{pid}/ns/net", "nft", "-f", "-"], stdin=rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """The switch of one lab; every method is idempotent or says what it needs."""

    layout: Layout
    token: str
    subnet: str

    @property
    def link(self) -> str:
        """The machine's end; the name carries the token, so a link of this name is ours."""
        return f"flab{self.token[:8]}"

    def exists(self) -> bool:
        """Whether a namespace is mounted on the switch's file, which is then of another device (nsfs) than its folder."""
        path = self.layout.switch
        return path.exists() and path.stat().st_dev != path.parent.stat().st_dev

    def _inside(self, *commands: str) -> None:
        run([*self._enter(), "ip", "-batch", "-"], stdin="".join(command + "\n" for command in commands))

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net={self.layout.switch}"]

    def ensure(self) -> None:
        """Make the switch and the machine's cable. What a crash left half made is removed first."""
        if self.exists() and self._complete():
            return
        self.remove()
        self.layout.switch.touch()
        run(["unshare", f"--net={self.layout.switch}", "true"])
        alias = f"fleet-lab/{self.layout.name}/{self.token}"
        self._inside(
            "link set lo up",
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set br0 alias {alias}",
            "link set br0 up",
        )
        run(
            ["ip", "-batch", "-"],
            stdin=(
                f"link add {self.link} type veth peer name machine netns {self.layout.switch}\n"
                f"link set {self.link} alias {alias}\n"
                f"address add {machine_address(self.subnet)}/24 dev {self.link}\n"
                f"link set {self.link} up\n"
            ),
        )
        self._inside("link set machine master br0 up")

    def _complete(self) -> bool:
        """Whether the last step of ``ensure`` was reached: the machine's cable is up and plugged in."""
        links = json.loads(run([*self._enter(), "ip", "-j", "link", "show"]) or "[]")
        plugged = any(link["ifname"] == "machine" and link.get("master") == "br0" for link in links)
        return plugged and self.link in {link["ifname"] for link in json.loads(run(["ip", "-j", "link", "show"]))}

    def remove(self) -> None:
        """Remove cable and switch. Cables to hosts that are on go with it."""
        if self.link in {link["ifname"] for link in json.loads(run(["ip", "-j", "link", "show"]))}:
            run(["ip", "link", "delete", self.link])
        if self.exists():
            run(["umount", str(self.layout.switch)])
        self.layout.switch.unlink(missing_ok=True)

    def _ports(self) -> set[str]:
        if not self.exists():
            return set()
        links = json.loads(run([*self._enter(), "ip", "-j", "link", "show"]) or "[]")
        return {link["ifname"] for link in links}

    def plug(self, host: str, *, pid: int, address: str) -> None:
        """Give the host its cable: ``eth0`` with its address in the namespace of process ``pid``, up, and a default route."""
        self.pull(host)
        self._inside(
            f"link add {host} type veth peer name eth0 address {mac_of(address)} netns {pid}",
            f"link set {host} master br0 up",
        )
        run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"],
            stdin=(
                "link set lo up\n"
                f"address add {address}/24 dev eth0\n"
                "link set eth0 up\n"
                f"route add default via {machine_address(self.subnet)}\n"
            ),
        )

    def unplug(self, hosts: Collection[str]) -> None:
        """Cut the hosts' cables: from now on nothing they send arrives, not even the farewell of dying connections."""
        for host in sorted(self._ports() & set(hosts)):
            self._tell(host, f"link set {host} down")

    def pull(self, host: str) -> None:
        """Remove the host's cable, if there is one."""
        if host in self._ports():
            self._tell(host, f"link delete {host}")

    def _tell(self, host: str, command: str) -> None:
        """A command about a cable that the kernel may be removing just now: a dead host's namespace ends in the background."""
        try:
            self._inside(command)
        except errors.RuntimeFault:
            if host in self._ports():
                raise
