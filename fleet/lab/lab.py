"""The lab itself: what ``fleet lab`` commands, tests and benchmarks call.

Every method that changes something holds the lab's lock, reads the record afresh and writes it before and after; methods that
only look take none. So any number of commands may work on one lab, and each may be killed at any point: the next one finds what
is there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from fleet import errors
from fleet.api.client import EngineClient
from fleet.lab import cgroups, disks, processes, wires
from fleet.lab.hosts import HostPower
from fleet.lab.names import (
    CGROUP_ROOT,
    RUN_ROOT,
    Layout,
    Role,
    check_counts,
    check_name,
    choose_subnet,
    host_address,
    host_names,
    machine_address,
    role_of,
)
from fleet.lab.record import HostRecord, LabRecord, Owner, load, locked, locked_folder, owners, save, write_durably
from fleet.lab.swarm import Member, form_swarm

__all__ = ["DEFAULT_ROOT", "HostStatus", "Lab", "list_labs"]

DEFAULT_ROOT: Final = Path("/var/lib/fleet-lab")
DAEMON_COMMAND: Final = (sys.executable, "-m", "fleet.daemon.main")
_BOOTS_AT_ONCE: Final = 4
_GRACE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """One row of ``fleet lab ls``, asked of the kernel and the host just now."""

    lab: str
    name: str
    role: Role
    address: str
    state: str
    """``on``, ``killed``, ``stopped``, or ``off`` when it should be on and is not."""
    daemon: str
    """``running``, ``exited N``, ... or ``-`` when the host is off."""
    socket: str


def _silent(_: str) -> None:
    return


def list_labs(root: Path = DEFAULT_ROOT) -> list[str]:
    """Names of the labs whose data is below ``root``."""
    return sorted(path.parent.name for path in root.glob("*/lab.json"))


class Lab:
    """One lab by name. Making the object touches nothing; ``up`` makes the lab, ``down`` removes it.

    As a context manager it takes the lab down at the end, whatever happened. ``daemon`` is the command that starts the daemon
    (the lab appends its options and then ``daemon_args``); with ``disk_bytes`` each host gets a disk of that size. All of it is
    remembered from the first ``up`` on. Needs root.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        root: Path = DEFAULT_ROOT,
        say: Callable[[str], None] = _silent,
        daemon: Sequence[str] = DAEMON_COMMAND,
        daemon_args: Sequence[str] = (),
        disk_bytes: int = 0,
    ) -> None:
        self.name = check_name(name)
        self.layout = Layout(root=root.absolute(), name=name)
        self._say = say
        self._daemon = tuple(daemon)
        self._daemon_args = tuple(daemon_args)
        self._disk_bytes = disks.check_size(disk_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # -- making and removing

    def up(
        self,
        *,
        managers: int = 1,
        workers: int = 2,
        swarm: bool = True,
        subnet: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Make the lab as asked, or bring an existing one there: missing hosts are added, those that are off are started,
        those outside the swarm join. Hosts beyond those asked for stay.

        ``timeout_s`` bounds the wait for each daemon, and for the nodes to be ready. Raises ``UserError``, ``ConflictError``
        (name or subnet taken), ``UnsupportedError`` (a program is missing), ``RuntimeFault``; what was made until then stays,
        for ``up`` to continue or ``down`` to remove.
        """
        check_counts(managers=managers, workers=workers)
        _require_root()
        wires.require_tools()
        with self._claimed(subnet) as found:
            record = found
            for name in host_names(managers=managers, workers=workers):
                if all(host.name != name for host in record.hosts):
                    record = record.with_host(HostRecord(name=name, address=host_address(record.subnet, name)))
            self._save(record)
            self._write_hosts_file(record)
            self._switch(record).ensure()
            record = self._boot(record, [host.name for host in record.hosts])
            self._start_daemons(record, [host.name for host in record.hosts], timeout_s=timeout_s)
            if swarm:
                form_swarm(self._members(record), say=self._say, timeout_s=timeout_s)

    def down(self) -> None:
        """Remove everything the lab made and nothing else; fine when there is none, and after a crash half way."""
        _require_root()
        if not self.layout.folder.exists():
            return
        try:
            with locked_folder(self.layout.folder, waiting=self._waiting):
                record = load(self.layout)
                if record is None:
                    self._remove_unfinished_folder()
                    return
                self._save(msgspec.structs.replace(record, cuts=()))
                self._say(f"removing lab {self.name} with {len(record.hosts)} hosts")
                self._remove(record)
        except FileNotFoundError as cause:
            if cause.filename != str(self.layout.folder):
                raise  # otherwise somebody else took it down while we waited

    def _remove(self, record: LabRecord) -> None:
        switch = self._switch(record)
        switch.unplug([host.name for host in record.hosts])
        cgroups.thaw(self.layout.cgroup)
        processes.end_found(record.token, timeout_s=30.0)
        switch.remove()
        cgroups.sweep(self.layout.cgroup)
        cgroups.remove_empty(CGROUP_ROOT)  # stays while another lab has groups in it
        for entry in sorted(self.layout.folder.iterdir()):
            if entry != self.layout.record:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if (draft := self.layout.owner_draft(record.token)).exists():
            shutil.rmtree(draft)
        owner = owners().get(self.name)
        if owner is not None and owner.token == record.token:
            shutil.rmtree(self.layout.run)
        self.layout.record.unlink()
        self.layout.folder.rmdir()

    def _remove_unfinished_folder(self) -> None:
        self.layout.record_draft.unlink(missing_ok=True)
        try:
            self.layout.folder.rmdir()
        except OSError as cause:
            raise errors.ConflictError(
                f"{self.layout.folder} has no lab.json, so fleet did not make it and leaves it alone"
            ) from cause

    @contextlib.contextmanager
    def _claimed(self, subnet: str | None) -> Iterator[LabRecord]:
        """Hold the lab's lock with its record, which is made, with name and subnet claimed, if there is none."""
        self.layout.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with locked_folder(self.layout.folder, waiting=self._waiting):
            RUN_ROOT.mkdir(mode=0o755, exist_ok=True)
            try:
                with locked_folder(RUN_ROOT):
                    record = self._claim(subnet)
            except errors.FleetError:
                if not any(self.layout.folder.iterdir()):
                    self.layout.folder.rmdir()
                raise
            yield record

    def _claim(self, subnet: str | None) -> LabRecord:
        record = load(self.layout)
        self.layout.record_draft.unlink(missing_ok=True)
        held = owners()
        owner = held.pop(self.name, None)
        token = record.token if record else secrets.token_hex(8)
        if (owner is not None and owner.token != token) or (record is None and any(self.layout.folder.iterdir())):
            where = owner.root if owner else f"{self.layout.folder}, which has no lab.json"
            raise errors.ConflictError(
                f"lab name {self.name!r} is taken: its data is in {where}; choose another --name"
            )
        if record is None:
            used = [*wires.used_networks(except_link=""), *(other.subnet for other in held.values())]
            chosen = choose_subnet(used, start=int(token[:4], 16), wanted=subnet)
            record = LabRecord(
                name=self.name,
                token=token,
                subnet=chosen,
                daemon=self._daemon,
                daemon_args=self._daemon_args,
                disk_bytes=self._disk_bytes,
            )
            self._say(f"lab {self.name}: subnet {chosen}, data in {self.layout.folder}")
            self._save(record)
        else:
            if subnet is not None and subnet != record.subnet:
                raise errors.ConflictError(f"lab {self.name} has subnet {record.subnet} already, not {subnet}")
            if self._disk_bytes not in (0, record.disk_bytes):
                raise errors.ConflictError(f"lab {self.name} has been made with disks of {record.disk_bytes} bytes")
            used = [*wires.used_networks(except_link=self._switch(record).link), *(o.subnet for o in held.values())]
            choose_subnet(used, start=0, wanted=record.subnet)
        if owner is None:
            self._write_owner(record)
        return record

    def _write_owner(self, record: LabRecord) -> None:
        draft = self.layout.owner_draft(record.token)
        draft.mkdir(mode=0o755, exist_ok=True)
        owner = Owner(root=str(self.layout.root), token=record.token, subnet=record.subnet)
        write_durably(draft / "owner.json", msgspec.json.encode(owner))
        draft.rename(self.layout.run)

    # -- power

    def kill(self, *hosts: str) -> None:
        """Power loss: every process of the hosts is gone at once, and the others hear nothing of it."""
        with self._locked() as found:
            record = found
            victims = [record.host(name) for name in hosts]
            self._power(record).lose_power(victims)
            for victim in victims:
                record = record.with_host(msgspec.structs.replace(victim, pid=0, started_ticks=0, off="killed"))
            self._save(record)

    def stop(self, *hosts: str, grace_s: float = _GRACE_S) -> None:
        """Shut the hosts down in order, all at once; after ``grace_s`` seconds it is simply over."""
        with self._locked() as found:
            record = found
            power = self._power(record)
            chosen = [record.host(name) for name in hosts]
            with ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
                list(pool.map(lambda host: power.shut_down(host, grace_s=grace_s), chosen))
            for host in chosen:
                record = record.with_host(msgspec.structs.replace(host, pid=0, started_ticks=0, off="stopped"))
            self._save(record)

    def start(self, *hosts: str, timeout_s: float = 60.0) -> None:
        """Boot hosts that are off, start their daemons and wait until they answer; on those that are on, only what is missing."""
        with self._locked() as found:
            record = found
            for name in hosts:
                record.host(name)
            self._switch(record).ensure()
            record = self._boot(record, hosts)
            self._start_daemons(record, hosts, timeout_s=timeout_s)

    def signal_daemon(self, host: str, signum: int = signal.SIGKILL) -> None:
        """Signal only the host's ``fleetd``; containers live on. Waits for the end of one that is killed, for nothing else."""
        record = self._read()
        found, power = self._on(record, host), self._power(record)
        power.signal_daemon(found, signum)
        if signum == signal.SIGKILL:  # else a start that follows at once would find it dying and take it for its own
            power.await_daemon_end(found, timeout_s=_GRACE_S)

    def start_daemon(self, host: str, *, timeout_s: float = 60.0) -> None:
        """Start the host's ``fleetd`` if it does not run, and wait until it answers."""
        with self._locked() as record:
            self._on(record, host)
            self._start_daemons(record, [host], timeout_s=timeout_s)

    def restart_daemon(self, host: str, *, signum: int = signal.SIGKILL, timeout_s: float = 60.0) -> None:
        """End ``fleetd`` with the signal, wait for its end, start it, wait until it answers."""
        with self._locked() as record:
            found = self._on(record, host)
            power = self._power(record)
            if power.daemon_state(found) == "running":
                power.signal_daemon(found, signum)
                power.await_daemon_end(found, timeout_s=timeout_s)
            self._start_daemons(record, [host], timeout_s=timeout_s)

    # -- partitions

    def partition(self, one: Sequence[str], other: Sequence[str], *, one_way: bool = False) -> None:
        """Cut the hosts ``one`` off from the hosts ``other``, silently, beside whatever is cut already.

        With ``one_way`` only what ``one`` sends to ``other`` is lost. Connections are not closed; it survives restarts of hosts.
        """
        wires.require_tools(("nft", "nftables"))
        with self._locked() as record:
            for name in (*one, *other):
                record.host(name)
            if overlap := set(one) & set(other):
                raise errors.UserError(f"cannot partition {', '.join(sorted(overlap))} from itself")
            new = {(a, b) for a in one for b in other} | (set() if one_way else {(b, a) for a in one for b in other})
            self._cut(record, tuple(sorted(set(record.cuts) | new)))

    def heal(self) -> None:
        """End all partitions."""
        with self._locked() as record:
            self._cut(record, ())

    def _cut(self, record: LabRecord, cuts: tuple[tuple[str, str], ...]) -> None:
        changed = {receiver for _, receiver in set(record.cuts) ^ set(cuts)}
        record = msgspec.structs.replace(record, cuts=cuts)
        self._save(record)
        power = self._power(record)
        for host in record.hosts:
            if host.name in changed and (identity := power.identity(host)):
                wires.block_sources(identity.pid, self._deaf_to(record, host.name))

    @staticmethod
    def _deaf_to(record: LabRecord, receiver: str) -> set[str]:
        return {record.host(sender).address for sender, to in record.cuts if to == receiver}

    # -- looking

    def exists(self) -> bool:
        """Whether ``up`` was called and ``down`` was not."""
        return load(self.layout) is not None

    def hosts(self) -> list[str]:
        """Names of the hosts, managers first."""
        return [host.name for host in self._read().hosts]

    def address(self, host: str) -> str:
        """The host's address, reachable from the machine."""
        return self._read().host(host).address

    def machine_address(self) -> str:
        """The machine's address as the hosts reach it."""
        return machine_address(self._read().subnet)

    def socket(self, host: str) -> Path:
        """The host's engine API socket, usable from the machine."""
        self._read().host(host)
        return self.layout.socket(host)

    def env(self, host: str) -> dict[str, str]:
        """Variables that point the ``fleet`` and ``docker`` commands at the host."""
        url = f"unix://{self.socket(host)}"
        return {"FLEET_HOST": url, "DOCKER_HOST": url}

    def client(self, host: str, *, timeout_s: float | None = 60.0) -> EngineClient:
        """A client of the host's engine API; the caller closes it."""
        return EngineClient(f"unix://{self.socket(host)}", timeout_s=timeout_s)

    def log_path(self, host: str) -> Path:
        """Where the host's ``fleetd`` writes its log."""
        self._read().host(host)
        return self.layout.log(host)

    def pid(self, host: str) -> int:
        """Process 1 of the host as the machine numbers it; raises ``UnavailableError`` when the host is off."""
        record = self._read()
        return self._on(record, host).pid

    def status(self) -> list[HostStatus]:
        """Every host as it is now."""
        record = self._read()
        power = self._power(record)
        rows = []
        for host in record.hosts:
            alive = power.identity(host) is not None
            daemon = "-"
            if alive:
                try:
                    daemon = power.daemon_state(host)
                except errors.UnavailableError as cause:
                    daemon = f"unknown ({cause})"
            rows.append(
                HostStatus(
                    lab=self.name,
                    name=host.name,
                    role=role_of(host.name),
                    address=host.address,
                    state="on" if alive else host.off or "off",
                    daemon=daemon,
                    socket=str(self.layout.socket(host.name)),
                )
            )
        return rows

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The argument vector that runs ``argv`` inside all namespaces of the host, ended by the kernel if its caller dies."""
        pid = self.pid(host)
        inside = ["env", *(f"{key}={value}" for key, value in self.env(host).items()), *argv]
        namespaces = [f"--{kind}=/proc/{pid}/ns/{name}" for kind, name in _NAMESPACES.items()]
        return ["nsenter", *namespaces, "--wd=/", "--", "setpriv", "--pdeathsig", "KILL", *inside]

    def exec(
        self,
        host: str,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float | None = 60.0,
        stdin: str | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the host's namespaces and collect its output as text.

        Raises ``CalledProcessError`` if ``check`` and it fails, ``TimeoutExpired`` after ``timeout_s`` (it is ended then).
        """
        return subprocess.run(
            self.command(host, argv),
            check=check,
            timeout=timeout_s,
            input=stdin,
            capture_output=True,
            text=True,
            **options,
        )

    # -- parts

    def _waiting(self) -> None:
        self._say(f"waiting for another command at work on lab {self.name}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[LabRecord]:
        _require_root()
        with locked(self.layout, say=self._say) as record:
            yield record

    def _read(self) -> LabRecord:
        record = load(self.layout)
        if record is None:
            raise errors.NotFoundError(
                f"no lab is called {self.name!r} below {self.layout.root}; 'fleet lab up --name {self.name}' makes one"
            )
        return record

    def _save(self, record: LabRecord) -> None:
        save(self.layout, record)

    def _switch(self, record: LabRecord) -> wires.Switch:
        return wires.Switch(layout=self.layout, token=record.token, subnet=record.subnet)

    def _power(self, record: LabRecord) -> HostPower:
        return HostPower(
            layout=self.layout, switch=self._switch(record), token=record.token, disk_bytes=record.disk_bytes
        )

    def _on(self, record: LabRecord, name: str) -> HostRecord:
        host = record.host(name)
        if self._power(record).identity(host) is None:
            raise errors.UnavailableError(f"host {name} is {host.off or 'off'}; 'fleet lab start {name}' starts it")
        return host

    def _members(self, record: LabRecord) -> list[Member]:
        return [
            Member(name=h.name, role=role_of(h.name), address=h.address, url=f"unix://{self.layout.socket(h.name)}")
            for h in sorted(record.hosts, key=lambda h: (h.name[0], int(h.name[1:])))
        ]

    def _write_hosts_file(self, record: LabRecord) -> None:
        """In place: running hosts have this very inode mounted."""
        if not Path("/etc/hosts").exists():  # nothing to mount it on, and the machine's files are not ours to make
            self._say("warning: this machine has no /etc/hosts, so the hosts will not know each other by name")
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", f"{machine_address(record.subnet)} machine"]
        lines += [f"{host.address} {host.name}" for host in record.hosts]
        self.layout.hosts_file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _boot(self, record: LabRecord, names: Sequence[str]) -> LabRecord:
        """Boot those of ``names`` that are off; those that started are noted even when another one failed."""
        power = self._power(record)
        off = [host for host in record.hosts if host.name in names and power.identity(host) is None]
        if not off:
            return record
        self._say(f"starting {', '.join(host.name for host in off)}")
        with ThreadPoolExecutor(max_workers=_BOOTS_AT_ONCE) as pool:
            boots = {h: pool.submit(power.boot, h, deaf_to=self._deaf_to(record, h.name)) for h in off}
        failure: BaseException | None = None
        for host, boot in boots.items():
            if (cause := boot.exception()) is not None:
                failure = failure or cause
                continue
            identity = boot.result()
            record = record.with_host(
                msgspec.structs.replace(host, pid=identity.pid, started_ticks=identity.started_ticks, off="")
            )
        self._save(record)
        if failure is not None:
            raise failure
        return record

    def _start_daemons(self, record: LabRecord, names: Sequence[str], *, timeout_s: float) -> None:
        power = self._power(record)
        hosts = [host for host in record.hosts if host.name in names]
        for host in hosts:
            if power.daemon_state(host) != "running":
                power.start_daemon(record, host)
        for host in hosts:
            power.await_daemon(host, timeout_s=timeout_s, say=self._say)


_NAMESPACES: Final = {"mount": "mnt", "uts": "uts", "ipc": "ipc", "net": "net", "pid": "pid"}


def _require_root() -> None:
    if os.geteuid() != 0:
        raise errors.ForbiddenError("a lab makes namespaces and links, which only root may: run it with sudo")
