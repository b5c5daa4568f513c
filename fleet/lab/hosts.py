"""Switching one host of a lab on and off, and its daemon.

Boot: old run folder and cgroups away (a machine that boots has none), process 1 with its namespaces, the cable, the addresses,
the standing partitions; then the daemon. Loss of power: the cable first, so that nobody hears the connections die, then SIGKILL
for process 1, with which the kernel takes every process of the host. What is on disk stays; the page cache survives, so this is
a power loss for processes and peers, not for writes that were never synced.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleet import errors
from fleet.api.client import EngineClient
from fleet.lab import cgroups, disks, processes, wires
from fleet.lab.control import request
from fleet.lab.hostinit import BOOT_ID
from fleet.lab.names import Layout
from fleet.lab.processes import Identity
from fleet.lab.record import HostRecord, LabRecord

__all__ = ["DAEMON", "HostPower", "tail"]

DAEMON: Final = "fleetd"
_BOOT_TIMEOUT_S: Final = 30.0
_OFF_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.05
_DAEMON_ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "PYTHONUNBUFFERED": "1",
}
_CONFIG: Final = (
    "# Settings of this lab host's fleetd; they hold from its next start. The machine's own are not read.\n"
)
_RESOLV_CONF: Final = "# A lab host has no way out, so it has no name servers; /etc/hosts knows the other hosts.\n"


def tail(path: Path, *, lines: int, bytes_max: int = 256 * 1024) -> list[str]:
    """The last lines of a text file, at most ``bytes_max`` of it; empty when there is none."""
    try:
        with path.open("rb") as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(max(0, size - bytes_max))
            text = source.read(bytes_max).decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:] if lines else []


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPower:
    """The operations on hosts of one lab. Callers hold the lab's lock and write the record."""

    layout: Layout
    switch: wires.Switch
    token: str
    disk_bytes: int = 0

    def identity(self, host: HostRecord) -> Identity | None:
        """Process 1 of the host if it is on: the noted one, or one found by token because a crash came before the note."""
        noted = Identity(host.pid, host.started_ticks)
        if processes.is_alive(noted):
            return noted
        return None

    def boot(self, host: HostRecord, *, deaf_to: Collection[str]) -> Identity:
        """Switch the host on, without its daemon; ``deaf_to`` are the addresses partitions keep from it. Safe in a thread.

        Raises ``RuntimeFault`` with the failing step; nothing of the host is left running then.
        """
        self._discard(host.name)
        order = self._boot_order(host)
        with (self.layout.host_folder(host.name) / "init.log").open("ab") as log:
            outer = subprocess.Popen(
                [sys.executable, "-I", "-S", processes.HOSTINIT, f"{self.layout.name}/{host.name}", self.token],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        try:
            said, _ = outer.communicate(json.dumps(order).encode(), timeout=_BOOT_TIMEOUT_S)
            identity = self._started(host.name, said)
            self.switch.plug(host.name, pid=identity.pid, address=host.address)
            if deaf_to:
                wires.block_sources(identity.pid, deaf_to)
        except BaseException as cause:
            outer.kill()
            outer.wait()
            self._discard(host.name)
            if isinstance(cause, subprocess.TimeoutExpired):
                raise errors.RuntimeFault(f"boot {host.name}: not ready after {_BOOT_TIMEOUT_S:g} s") from cause
            raise
        return identity

    def _discard(self, name: str) -> None:
        """End whatever a crash left of this host and clear what a boot finds empty."""
        cgroups.thaw(self.layout.host_cgroup(name))
        processes.end_found(self.token, label=f"{self.layout.name}/{name}", timeout_s=_OFF_TIMEOUT_S)
        self.switch.pull(name)
        cgroups.sweep(self.layout.host_cgroup(name))
        if self.layout.exec_root(name).exists():
            shutil.rmtree(self.layout.exec_root(name))

    def _boot_order(self, host: HostRecord) -> dict[str, Any]:
        folder = self.layout.host_folder(host.name)
        self.layout.data(host.name).mkdir(parents=True, exist_ok=True)
        self.layout.exec_root(host.name).mkdir(mode=0o755, parents=True)
        disk: dict[str, str] = {}
        if self.disk_bytes:
            disks.make(self.layout.disk(host.name), self.disk_bytes)
            disk = {str(self.layout.disk(host.name)): str(self.layout.data(host.name))}
        machine_id = folder / "machine-id"
        if not machine_id.exists():
            machine_id.write_text(uuid.uuid4().hex + "\n", encoding="utf-8")
        (folder / "boot-id").write_text(f"{uuid.uuid4()}\n", encoding="utf-8")
        (folder / "hostname").write_text(host.name + "\n", encoding="utf-8")
        (folder / "resolv.conf").write_text(_RESOLV_CONF, encoding="utf-8")
        kept = [self.layout.run, self.layout.folder]
        if not self.layout.config(host.name).exists():
            self.layout.config(host.name).write_text(_CONFIG, encoding="utf-8")
        return {
            "hostname": host.name,
            "control": str(self.layout.control(host.name)),
            "keep": [str(path) for path in kept if path.is_relative_to("/run")],
            "disks": disk,
            "files": {
                "/etc/hosts": str(self.layout.hosts_file),
                "/etc/hostname": str(folder / "hostname"),
                "/etc/machine-id": str(machine_id),
                "/etc/resolv.conf": str(folder / "resolv.conf"),
                BOOT_ID: str(folder / "boot-id"),
            },
        }

    def _started(self, name: str, said: bytes) -> Identity:
        messages: dict[str, Any] = {}
        for line in said.splitlines():
            messages.update(json.loads(line))
        identity = processes.identify(int(messages.get("pid", 0)))
        if "ready" not in messages or identity is None:
            why = messages.get("error") or "; ".join(tail(self.layout.host_folder(name) / "init.log", lines=3))
            raise errors.RuntimeFault(f"boot {name}: {why or 'its process 1 ended without a word'}")
        return identity

    def lose_power(self, hosts: Collection[HostRecord]) -> None:
        """Cut all the cables, then end every process of all the hosts, at once."""
        self.switch.unplug([host.name for host in hosts])
        identities = [identity for host in hosts if (identity := self.identity(host))]
        for host in hosts:
            cgroups.thaw(self.layout.host_cgroup(host.name))
        processes.end_all(identities, timeout_s=_OFF_TIMEOUT_S)
        for host in hosts:
            self._discard(host.name)

    def shut_down(self, host: HostRecord, *, grace_s: float) -> None:
        """An orderly shutdown: the daemon gets SIGTERM, then everything else, and after ``grace_s`` seconds it is simply over."""
        identity = self.identity(host)
        if identity is not None:
            cgroups.thaw(self.layout.host_cgroup(host.name))
            request(self.layout.control(host.name), op="shutdown", grace_s=grace_s)
            processes.end_all([identity], timeout_s=grace_s + _OFF_TIMEOUT_S, signum=0)
        self._discard(host.name)

    def start_daemon(self, record: LabRecord, host: HostRecord) -> None:
        """Start ``fleetd``; raises ``RuntimeFault`` when it runs already."""
        layout, name = self.layout, host.name
        argv = [
            *record.daemon,
            *("--config", str(layout.config(name))),
            *("--data-root", str(layout.data(name))),
            *("--exec-root", str(layout.exec_root(name))),
            *("--host", f"unix://{layout.socket(name)}"),
            *("--cgroup-parent", layout.host_cgroup(name)),
            *("--hostname", name),
            *("--log-format", "json"),
            *record.daemon_args,
        ]
        request(layout.control(name), op="spawn", name=DAEMON, argv=argv, env=_DAEMON_ENV, log=str(layout.log(name)))

    def signal_daemon(self, host: HostRecord, signum: int) -> None:
        """Signal ``fleetd`` and nothing else of the host."""
        request(self.layout.control(host.name), op="signal", name=DAEMON, signal=signum)

    def daemon_state(self, host: HostRecord) -> str:
        """``running``, ``not started``, ``exited N`` or ``killed by signal N``."""
        status = request(self.layout.control(host.name), op="status")
        if DAEMON in status["running"]:
            return "running"
        ended: Mapping[str, int] = status["ended"]
        if DAEMON not in ended:
            return "not started"
        code = os.waitstatus_to_exitcode(ended[DAEMON])
        return f"exited {code}" if code >= 0 else f"killed by signal {-code}"

    def await_daemon_end(self, host: HostRecord, *, timeout_s: float) -> None:
        """Wait until ``fleetd`` has ended; raises ``UnavailableError`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.daemon_state(host) == "running":
            if time.monotonic() > deadline:
                raise errors.UnavailableError(f"fleetd of {host.name} still runs {timeout_s:g} s after the signal")
            time.sleep(_POLL_S)

    def await_daemon(self, host: HostRecord, *, timeout_s: float, say: Callable[[str], None]) -> None:
        """Wait until ``fleetd`` answers ``GET /_ping``.

        Raises ``RuntimeFault`` with the end of its log when it has exited, ``UnavailableError`` after ``timeout_s``.
        """
        began = time.monotonic()
        told = began
        while True:
            try:
                with EngineClient(f"unix://{self.layout.socket(host.name)}", timeout_s=5.0) as client:
                    client.get("/_ping")
            except errors.UnavailableError as cause:
                self._check_daemon_runs(host)
                now = time.monotonic()
                if now - began > timeout_s:
                    raise errors.UnavailableError(
                        f"fleetd of {host.name} does not answer after {timeout_s:g} s; see {self.layout.log(host.name)}"
                    ) from cause
                if now - told > 5:
                    say(f"still waiting for fleetd of {host.name} ({now - began:.0f} s)")
                    told = now
                time.sleep(_POLL_S)
            else:
                return

    def _check_daemon_runs(self, host: HostRecord) -> None:
        state = self.daemon_state(host)
        if state != "running":
            last = "\n".join("    " + line[:400] for line in tail(self.layout.log(host.name), lines=3))
            raise errors.RuntimeFault(
                f"fleetd of {host.name} {state}; its log {self.layout.log(host.name)} ends:\n{last}"
            )
