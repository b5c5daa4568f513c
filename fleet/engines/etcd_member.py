"""One etcd process of a manager, kept by fleetd: its files, its life, its health.

    folder/  member.json    name, ports, the cluster it was begun in
             tls/           ca.crt member.crt member.key: of the *state* authority, which vouches for managers alone
             data/          etcd's own
             etcd.log       what it says, emptied when it grows beyond 16 MiB

The client side listens on loopback only, both sides demand a certificate of the state authority: a node's certificate opens
neither. The process is none of fleetd's children once fleetd has ended: it goes on, so that the others keep their majority
while a fleetd is upgraded, and the next fleetd takes it up. Two never run on one data folder (etcd locks it).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from fleet import errors
from fleet.cancellation import TaskGroup, cancel_and_wait
from fleet.clock import Clock
from fleet.durable import sync_directory
from fleet.engines.etcd_wire import EtcdTls, Gateway, RevisionGoneError, encode
from fleet.logs import get_logger

__all__ = ["EtcdMember", "MemberFile", "MemberTls", "find_etcd"]

log = get_logger("etcd")

_VERSION: Final = re.compile(r"etcd Version: (\d+)\.(\d+)\.(\d+)")
_OLDEST: Final = (3, 4, 22)
_CORRUPTING: Final = ((3, 5, 0), (3, 5, 2))
"""These can lose data (etcd's own announcement of 2022-03)."""
_LOG_BYTES_MAX: Final = 16 << 20
_HEARTBEAT_MS: Final = 100
_ELECTION_MS: Final = 1000
_QUOTA_BYTES: Final = 4 << 30
_KEPT_REVISIONS: Final = 10_000
_READY_S: Final = 60.0
_STOP_S: Final = 5.0
_RESTART_FIRST_S: Final = 0.2
_RESTART_MAX_S: Final = 10.0
_UPKEEP_S: Final = 15.0
"""How long writers may be refused after the quota was reached before the member begins to make room."""
_DEFRAGMENT_BYTES: Final = 256 << 20
_ROOM: Final = 0.9
"""Of the quota: with less than a tenth free the alarm would be back at once."""
_POLL_S: Final = 0.05


def find_etcd() -> str:
    """Path of a usable etcd binary. Blocks on running it; raises ``UserError`` that says what to install."""
    binary = shutil.which("etcd") or shutil.which("etcd", path="/usr/bin:/usr/local/bin:/usr/sbin")
    if binary is None:
        raise errors.UserError(
            "more than one manager needs etcd, which is not installed on this host: apt-get install etcd-server "
            "(fleet starts and keeps it; the package's own service is not used and may be disabled)"
        )
    try:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise errors.UserError(f"{binary} --version: {cause}") from cause
    match = _VERSION.search(told)
    version = tuple(int(part) for part in match.groups()) if match else ()
    text = ".".join(map(str, version)) or "unknown"
    if version < _OLDEST:
        raise errors.UserError(
            f"{binary} is version {text}; {'.'.join(map(str, _OLDEST))} or later is needed (etcd-server)"
        )
    if _CORRUPTING[0] <= version <= _CORRUPTING[1]:
        raise errors.UserError(
            f"{binary} is version {text}, which can lose data: install a later 3.5 or 3.6 (etcd-server)"
        )
    return binary


class MemberTls(msgspec.Struct, frozen=True, kw_only=True):
    """PEM of the state authority, and of what it issued to this member."""

    ca_pem: str
    certificate_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return "MemberTls(<key>)"


_SNAPSHOTS: Final = "snapshots.json"


class MemberFile(msgspec.Struct, frozen=True, kw_only=True):
    """``member.json``. ``peer`` is host:port that the other members reach; ``initial_cluster`` is etcd's flag of that name."""

    name: str
    peer: str
    client_port: int
    token: str
    initial_cluster: str
    joins: bool
    """Whether it was begun as a member of a cluster that was there."""


class EtcdMember:
    """Of the files in ``folder``; ``create`` makes them. The running process reads its key from ``key_folder``, a folder in
    memory: the one on disk may be locked, and etcd reads it at each handshake. ``provide_key`` puts it there."""

    def __init__(
        self, folder: Path, clock: Clock, *, key_folder: Path | None = None, quota_bytes: int = _QUOTA_BYTES
    ) -> None:
        self._folder = folder
        self._keys = key_folder or folder / "tls"
        self._clock = clock
        self._quota_bytes = quota_bytes
        self._full_at = ""
        """The revision at which all that could be given up was not enough."""
        self._process: asyncio.subprocess.Process | None = None
        self._file = self._load()

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether ``create`` was completed there."""
        return (folder / "member.json").exists()

    @classmethod
    def create(
        cls,
        folder: Path,
        clock: Clock,
        *,
        file: MemberFile,
        tls: MemberTls,
        key_folder: Path | None = None,
        quota_bytes: int = _QUOTA_BYTES,
    ) -> EtcdMember:
        """A member that has never run. Blocks on fsync; ``folder`` must not exist, or be what an earlier try left."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tls").mkdir(mode=0o700, parents=True)
        folder.chmod(0o700)
        (folder / "data").mkdir(mode=0o700)
        for name, text in (("ca.crt", tls.ca_pem), ("member.crt", tls.certificate_pem), ("member.key", tls.key_pem)):
            _write(folder / "tls" / name, text.encode())
        _write(folder / "member.json", msgspec.json.format(msgspec.json.encode(file)))
        return cls(folder, clock, key_folder=key_folder, quota_bytes=quota_bytes)

    def _load(self) -> MemberFile:
        try:
            return msgspec.json.decode((self._folder / "member.json").read_bytes(), type=MemberFile)
        except (OSError, msgspec.DecodeError) as cause:
            raise errors.UserError(
                f"{self._folder}/member.json: {cause}; demote this node on another manager and promote it again"
            ) from cause

    @property
    def name(self) -> str:
        """The member's name, which is the node's id."""
        return self._file.name

    @property
    def endpoint(self) -> str:
        """The client address, on loopback."""
        return f"https://127.0.0.1:{self._file.client_port}"

    @property
    def token(self) -> str:
        """etcd's cluster token."""
        return self._file.token

    @property
    def joined(self) -> bool:
        """Whether it began as a learner among others."""
        return self._file.joins

    @property
    def tls(self) -> EtcdTls:
        """What a client on this host shows and trusts."""
        folder = self._folder / "tls"
        return EtcdTls(ca=folder / "ca.crt", certificate=folder / "member.crt", key=self._keys / "member.key")

    @property
    def key_file(self) -> Path:
        """The key on disk, PEM; locked or not is its reader's matter."""
        return self._folder / "tls" / "member.key"

    def keep_key(self, key_pem: str) -> None:
        """Replace the key on disk by another form of itself. Blocks."""
        aside = self.key_file.with_name(".member.key.new")
        aside.unlink(missing_ok=True)
        _write(aside, key_pem.encode())
        aside.replace(self.key_file)

    def provide_key(self, key_pem: str) -> None:
        """Put the plain key where etcd reads it. Blocks."""
        self._keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keys.chmod(0o700)
        aside = self._keys / ".member.key.new"
        aside.unlink(missing_ok=True)
        _write(aside, key_pem.encode())
        aside.replace(self._keys / "member.key")

    def keep_snapshots(self, *, interval: int, kept: int) -> bool:
        """From the next start on: a snapshot each ``interval`` entries, with ``kept`` older ones beside the newest. Whether that
        is new. Blocks."""
        wanted = msgspec.json.encode({"interval": interval, "kept": kept})
        path = self._folder / _SNAPSHOTS
        if path.exists() and path.read_bytes() == wanted:
            return False
        aside = path.with_suffix(".new")
        aside.unlink(missing_ok=True)
        _write(aside, wanted)
        aside.replace(path)
        return True

    def _snapshot_arguments(self) -> list[str]:
        try:
            wanted = msgspec.json.decode((self._folder / _SNAPSHOTS).read_bytes(), type=dict[str, int])
            return [f"--snapshot-count={wanted['interval']}", f"--max-snapshots={wanted['kept'] + 1}"]
        except FileNotFoundError:
            return []  # as etcd has it
        except (msgspec.DecodeError, KeyError) as cause:
            raise errors.UserError(f"{self._folder / _SNAPSHOTS}: {cause}; remove the file") from cause

    # -- life

    async def start(self, *, force_new_cluster: bool = False) -> None:
        """Take up the running process, or start one. Returns before it is ready. Raises ``UserError`` as ``find_etcd``."""
        if force_new_cluster:
            await self.stop()
        elif await asyncio.to_thread(self._running) is not None:
            log.info("etcd is running already", member=self.name)
            return
        binary = await asyncio.to_thread(find_etcd)
        await asyncio.to_thread(self._trim_log)
        arguments = self._arguments(binary)
        if force_new_cluster:
            arguments.append("--force-new-cluster")
        with (self._folder / "etcd.log").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env={"PATH": os.defpath, "GOGC": "50"},
            )
        log.info("etcd started", member=self.name, pid=self._process.pid, version_of=binary)

    def _arguments(self, binary: str) -> list[str]:
        file, tls = self._file, self._folder / "tls"
        host, _, port = file.peer.rpartition(":")
        listen = "[::]" if host.startswith("[") else "0.0.0.0"
        return [
            binary,
            f"--name={file.name}",
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls=https://{listen}:{port}",
            f"--initial-advertise-peer-urls=https://{file.peer}",
            f"--initial-cluster={file.initial_cluster}",
            f"--initial-cluster-state={'existing' if file.joins else 'new'}",
            f"--initial-cluster-token={file.token}",
            "--client-cert-auth",
            f"--trusted-ca-file={tls / 'ca.crt'}",
            f"--cert-file={tls / 'member.crt'}",
            f"--key-file={self._keys / 'member.key'}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={tls / 'ca.crt'}",
            f"--peer-cert-file={tls / 'member.crt'}",
            f"--peer-key-file={self._keys / 'member.key'}",
            f"--heartbeat-interval={_HEARTBEAT_MS}",
            f"--election-timeout={_ELECTION_MS}",
            "--pre-vote",
            f"--quota-backend-bytes={self._quota_bytes}",
            *self._snapshot_arguments(),
            "--auto-compaction-mode=revision",
            f"--auto-compaction-retention={_KEPT_REVISIONS}",
            "--logger=zap",
            "--log-outputs=stderr",
        ]

    async def wait_ready(self, timeout_s: float = _READY_S) -> None:
        """Until a linearizable read succeeds: it is a voting member of a majority. Raises ``UnavailableError`` with the end of
        what etcd said, as soon as the process has ended or after the time."""
        deadline = self._clock.monotonic() + timeout_s
        gateway = Gateway([self.endpoint], tls=self.tls, timeout_s=2.0)
        end = asyncio.create_task(self.ended())
        try:
            while True:
                try:
                    await gateway.call("/v3/kv/range", {"key": encode("/")}, repeatable=True)
                    return
                except errors.UnavailableError as cause:
                    if end.done():
                        raise errors.UnavailableError(
                            f"etcd member {self.name} ended before it was ready; it said: {self._last_words()}",
                            retry_after_s=1.0,
                        ) from cause
                    if self._clock.monotonic() > deadline:
                        raise errors.UnavailableError(
                            f"etcd member {self.name} is not ready after {timeout_s:g} s: {cause}; it said: {self._last_words()}",
                            retry_after_s=1.0,
                        ) from cause
                await self._clock.sleep(_POLL_S)
        finally:
            await cancel_and_wait(end)
            await gateway.close()

    async def keep(self) -> None:
        """Start it again whenever it ends, and keep its file and log small. Until cancelled; the process stays."""
        async with TaskGroup() as group:
            group.create_task(self._restart())
            group.create_task(self._upkeep())

    async def _restart(self) -> None:
        pause_s = _RESTART_FIRST_S
        while True:
            began = self._clock.monotonic()
            await self.ended()
            if self._clock.monotonic() - began > 60:
                pause_s = _RESTART_FIRST_S
            log.warning("etcd ended; starting it again", member=self.name, said=self._last_words())
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _RESTART_MAX_S)
            try:
                await self.start()
            except errors.UserError as cause:
                log.error("etcd not started", cause=str(cause))

    async def ended(self) -> None:
        """Until the process has ended; at once when there is none."""
        if self._process is not None:
            await self._process.wait()
            self._process = None
            return
        pid = await asyncio.to_thread(self._running)
        if pid is None:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(descriptor, gone.set)
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    async def stop(self) -> None:
        """End the process; idempotent."""
        pid = self._process.pid if self._process is not None else await asyncio.to_thread(self._running)
        if pid is None:
            return
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await self.ended()
                    return

    async def erase(self) -> None:
        """End the process and remove everything."""
        await self.stop()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, self._keys, ignore_errors=True)

    def _running(self) -> int | None:
        """The process on our data folder, whoever started it. Containers can give their processes any name and arguments, but
        not be in the host's mount namespace."""
        wanted = os.fsencode(f"--data-dir={self._folder / 'data'}")
        own = Path("/proc/self/ns/mnt").stat()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if wanted in arguments and os.path.samestat((entry / "ns/mnt").stat(), own):
                    return int(entry.name)
            except OSError:
                continue  # it ended meanwhile
        return None

    # -- upkeep

    def _trim_log(self) -> None:
        path = self._folder / "etcd.log"
        if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
            os.truncate(path, 0)  # etcd appends, so it goes on at the beginning

    def _last_words(self) -> str:
        try:
            with (self._folder / "etcd.log").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return "nothing"
        return lines[-1][:400] if lines else "nothing"

    async def _upkeep(self) -> None:
        while True:
            await self._clock.sleep(_UPKEEP_S * random.uniform(0.8, 1.2))  # noqa: S311 - members defragment in turn
            await asyncio.to_thread(self._trim_log)
            try:
                await self.make_room()
            except errors.FleetError as cause:
                log.warning("etcd not looked after", cause=str(cause))

    async def make_room(self) -> None:
        """Give unused space of this member's file back; after the quota was reached, give the history up too, and let writers in
        again if that was enough. Each member sees to its own alarm, so none is lifted before that member has room.

        Without an alarm etcd compacts by itself. Raises ``UnavailableError``; repeating it is harmless.
        """
        gateway = Gateway([self.endpoint], tls=self.tls, timeout_s=30.0)
        try:
            status = await gateway.call("/v3/maintenance/status", {}, repeatable=True)
            own = str(status["header"]["member_id"])
            alarms = (
                await gateway.call("/v3/maintenance/alarm", {"action": "GET", "alarm": "NOSPACE"}, repeatable=True)
            ).get("alarms", [])
            is_full = any(str(alarm.get("memberID")) == own for alarm in alarms)
            size, used = int(status.get("dbSize", 0)), int(status.get("dbSizeInUse", 0))
            if not is_full:
                if size - used > _DEFRAGMENT_BYTES and used < size / 2:
                    log.info("defragmenting etcd", member=self.name, bytes=size, used=used)
                    await gateway.call("/v3/maintenance/defragment", {}, repeatable=True)
                return
            revision = str(status["header"]["revision"])
            if revision == self._full_at:
                return  # nothing was deleted since
            with contextlib.suppress(RevisionGoneError):  # compacted already
                body = {"revision": revision, "physical": True}
                await gateway.call("/v3/kv/compaction", body, repeatable=True)
            # What a compaction freed is counted (``dbSizeInUse``) at the next write only: just the file tells.
            await gateway.call("/v3/maintenance/defragment", {}, repeatable=True)
            status = await gateway.call("/v3/maintenance/status", {}, repeatable=True)
            size = int(status.get("dbSize", 0))
            if size >= self._quota_bytes * _ROOM:
                self._full_at = revision
                log.error(
                    "etcd is full: remove services, secrets or configs", bytes=size, quota_bytes=self._quota_bytes
                )
                return
            body = {"action": "DEACTIVATE", "memberID": own, "alarm": "NOSPACE"}
            await gateway.call("/v3/maintenance/alarm", body, repeatable=True)
            log.warning("etcd's space quota was reached; there is room again", bytes=size)
        finally:
            await gateway.close()


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    sync_directory(path.parent)
