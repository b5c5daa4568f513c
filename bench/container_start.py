"""Starting containers and processes in them: fleet's runtime against crun, runc and podman, same busybox root, same limits,
same security, in one run.

Each start has its own network namespace, an overlay, the fourteen default capabilities, no_new_privs, a seccomp
filter (crun and runc: Debian's packaged default profile), masked paths, and limits of memory, processor and
processes. For crun and runc the overlay is mounted by this program around each run, as an engine would. Rounds are
interleaved, so all suffer the same neighbours.

What is not alike: crun and runc are executed afresh for each container, as engines do; fleet's supervisor is running
already, as it does on a node. ``fleet`` figures go through its asyncio client. "first instruction" is when a byte
arrives in a FIFO the container's command writes to; "exit" is when the caller knows the exit status (fleet: on disk
by then); "gone" includes removal of cgroup and records. "exec" is /bin/true in a running container until its exit status is
known. podman, over crun, is an engine and not only a runtime: its records and its conmon are in its figures.

``ready`` and ``userns`` are fleet with a network namespace made before, as fleetd has some in stock: the host's, and one in a
user namespace of the container's own. Between these two is the cost of user namespaces.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleet.network.kernel import syscalls
from fleet.node_runtime.capabilities import DEFAULT_CAPABILITIES
from fleet.node_runtime.client import RuntimeClient
from fleet.node_runtime.events import Exited
from fleet.node_runtime.spec import (
    DEFAULT_MASKED_PATHS,
    DEFAULT_PATH,
    DEFAULT_READ_ONLY_PATHS,
    ContainerSpec,
    LogSpec,
    MountSpec,
    ProcessSpec,
    ResourceLimits,
    RootFs,
    UserNamespace,
)

ROUNDS = 7
RUNS = 12
STARTS = 32
PROFILE = Path("/usr/share/containers/seccomp.json")
CAPABILITIES = [f"CAP_{name}" for name in DEFAULT_CAPABILITIES]
_libc = ctypes.CDLL(None, use_errno=True)


def mount_overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    options = f"lowerdir={lower},upperdir={upper},workdir={work}".encode()
    if _libc.mount(b"overlay", bytes(target), b"overlay", ctypes.c_ulong(0), options):
        raise OSError(ctypes.get_errno(), "mount")


def unmount(target: Path) -> None:
    if _libc.umount2(bytes(target), 2):
        raise OSError(ctypes.get_errno(), "umount")


def profile() -> dict[str, Any] | None:
    """The packaged profile resolved for this machine and the default capabilities, as an engine resolves it."""
    if not PROFILE.exists():
        return None
    rules = []
    held = set(CAPABILITIES)
    for rule in json.loads(PROFILE.read_text())["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if includes.get("arches") and "amd64" not in includes["arches"]:
            continue
        if "amd64" in (excludes.get("arches") or []) or not held.issuperset(includes.get("caps") or []):
            continue
        if held.intersection(excludes.get("caps") or []):
            continue
        kept = {"names": rule["names"], "action": rule["action"]}
        if rule.get("args"):
            kept["args"] = rule["args"]
        if rule.get("errnoRet") is not None and rule["action"] == "SCMP_ACT_ERRNO":
            kept["errnoRet"] = rule["errnoRet"]
        rules.append(kept)
    architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": architectures, "syscalls": rules}


def oci_config(root: Path, args: list[str], sync: Path) -> dict[str, Any]:
    devices = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)]
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup")],
        "maskedPaths": list(DEFAULT_MASKED_PATHS),
        "readonlyPaths": list(DEFAULT_READ_ONLY_PATHS),
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}]
            + [
                {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
                for major, minor in devices
            ],
            "memory": {"limit": 128 << 20},
            "cpu": {"quota": 100000, "period": 100000},
            "pids": {"limit": 256},
        },
    }
    seccomp = profile()
    if seccomp is not None:
        linux["seccomp"] = seccomp
    plain = ["nosuid", "noexec", "nodev"]
    mounts = [
        ("/proc", "proc", "proc", plain),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", "shm", [*plain, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", plain),
        ("/sys", "sysfs", "sysfs", [*plain, "ro"]),
        ("/sync", "bind", str(sync), ["rbind", "rprivate"]),
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "cwd": "/",
            "env": [f"PATH={DEFAULT_PATH}"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": str(root)},
        "hostname": "bench",
        "mounts": [{"destination": d, "type": t, "source": s, "options": o} for d, t, s, o in mounts],
        "linux": linux,
    }


class Site:
    """Directories everybody shares."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.image = directory / "image"
        for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "sync"):
            (self.image / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", self.image / "bin/busybox")
        for applet in ("sh", "true", "sleep", "echo"):
            (self.image / "bin" / applet).symlink_to("/bin/busybox")
        (self.image / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (self.image / "etc/group").write_text("root:x:0:\n")
        self.sync = directory / "sync"
        self.sync.mkdir()
        os.mkfifo(self.sync / "fifo")
        self.first = os.open(self.sync / "fifo", os.O_RDWR | os.O_NONBLOCK)

    def layers(self, name: str) -> tuple[Path, Path]:
        upper, work = self.directory / f"{name}.upper", self.directory / f"{name}.work"
        upper.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        return upper, work

    async def first_byte(self) -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(self.first, arrived.set)
        try:
            await arrived.wait()
            os.read(self.first, 64)
        finally:
            loop.remove_reader(self.first)


class FleetPeer:
    """Through the client, one supervisor."""

    name = "fleet"
    share = 1
    """Of how many repetitions it does one: a slow peer would take the whole time."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.number = 0

    async def open(self) -> None:
        directory = self.site.directory
        self.client = await RuntimeClient.open(
            state_dir=directory / "state", run_dir=directory / "run", cgroup_parent=f"/fleet-bench-{os.getpid()}"
        )
        self.events = self.client.subscribe()

    def _spec(self, *args: str) -> ContainerSpec:
        self.number += 1
        name = f"f{self.number}"
        upper, work = self.site.layers(name)
        return ContainerSpec(
            id=name,
            root=RootFs(lower_dirs=(str(self.site.image),), upper_dir=str(upper), work_dir=str(work)),
            process=ProcessSpec(args=args),
            mounts=(MountSpec(kind="bind", source=str(self.site.sync), target="/sync"),),
            resources=ResourceLimits(nano_cpus=1_000_000_000, memory_bytes=128 << 20, pids_limit=256),
            log=LogSpec(path=str(self.site.directory / f"{name}.log")),
        )

    async def _start(self, spec: ContainerSpec) -> None:
        await self.client.start(spec)

    async def prepare(self, count: int) -> None:
        """What is not measured before so many starts."""

    async def _gone(self, name: str) -> None:
        async for event in self.events:
            if isinstance(event, Exited) and event.id == name:
                assert event.exit_code == 0, event
                return

    async def run_true(self) -> tuple[float, float]:
        spec = self._spec("/bin/true")
        begin = time.perf_counter()
        await self._start(spec)
        await self._gone(spec.id)
        exited = time.perf_counter()
        await self.client.remove(spec.id)
        return exited - begin, time.perf_counter() - begin

    async def first(self) -> float:
        spec = self._spec("/bin/sh", "-c", "echo >/sync/fifo")
        begin = time.perf_counter()
        started = asyncio.ensure_future(self._start(spec))
        await self.site.first_byte()
        spent = time.perf_counter() - begin
        await started
        await self._gone(spec.id)
        await self.client.remove(spec.id)
        return spent

    async def start_sleep(self) -> None:
        await self.client.start(self._spec("/bin/sleep", "1000"))

    async def start_many(self, count: int, concurrency: int) -> float:
        specs = [self._spec("/bin/sleep", "1000") for _ in range(count)]
        begin = time.perf_counter()
        await at_once(concurrency, [lambda spec=spec: self._start(spec) for spec in specs])  # type: ignore[misc]
        spent = time.perf_counter() - begin
        await asyncio.gather(*(self.client.remove(spec.id) for spec in specs))
        return count / spent

    async def hold(self) -> None:
        """Start the container that `execute` is for."""
        spec = self._spec("/bin/sleep", "1000")
        self.held = spec.id
        await self._start(spec)

    async def execute(self) -> float:
        begin = time.perf_counter()
        code, _ = await self.client.exec_capture(self.held, ProcessSpec(args=("/bin/true",)), timeout_s=60)
        assert code == 0
        return time.perf_counter() - begin

    async def close(self) -> None:
        for state in await self.client.list():
            await self.client.remove(state.id)
        await self.client.shutdown()


class ReadyPeer(FleetPeer):
    """The same supervisor; networks are made before."""

    name = "ready"

    def __init__(self, site: Site, base: FleetPeer) -> None:
        super().__init__(site)
        self.base = base
        self.ready: list[int] = []

    async def open(self) -> None:
        self.client = self.base.client
        self.events = self.client.subscribe()

    def _spec(self, *args: str) -> ContainerSpec:
        spec = super()._spec(*args)
        return replace(spec, id=f"{self.name}-{spec.id}", network="fd")

    async def _start(self, spec: ContainerSpec) -> None:
        netns = self.ready.pop()
        try:
            await self.client.start(spec, netns_fd=netns)
        finally:
            os.close(netns)

    async def prepare(self, count: int) -> None:
        while len(self.ready) < count:
            self.ready.append(await self._open_network())

    async def _open_network(self) -> int:
        def make() -> int:
            syscalls.unshare_net()
            return os.open(syscalls.thread_netns_path(), os.O_RDONLY | os.O_CLOEXEC)

        with ThreadPoolExecutor(max_workers=1) as thread:  # which ends with it
            return await asyncio.get_running_loop().run_in_executor(thread, make)

    async def close(self) -> None:
        for netns in self.ready:
            os.close(netns)


class MappedPeer(ReadyPeer):
    """... in user namespaces of their own."""

    name = "userns"
    _first_id = 1_000_000

    def _spec(self, *args: str) -> ContainerSpec:
        return replace(super()._spec(*args), user_namespace=UserNamespace(first_id=self._first_id))

    async def _open_network(self) -> int:
        return await self.client.open_network_namespace(self._first_id, 65536)


class OciPeer:
    """crun or runc by their command line."""

    share = 1

    def __init__(self, site: Site, binary: str) -> None:
        self.site = site
        self.name = binary
        self.base = [binary, "--root", str(site.directory / f"{binary}.state")]
        self.bundles: dict[str, Path] = {}

    async def open(self) -> None:
        return

    async def prepare(self, count: int) -> None:
        return

    def _bundle(self, name: str, *args: str) -> Path:
        bundle = self.site.directory / f"{self.name}.{name}"
        if name not in self.bundles:
            (bundle / "root").mkdir(parents=True)
            (bundle / "config.json").write_text(json.dumps(oci_config(bundle / "root", list(args), self.site.sync)))
            self.site.layers(bundle.name)
            self.bundles[name] = bundle
        return bundle

    def _mount(self, bundle: Path) -> None:
        upper, work = self.site.layers(bundle.name)
        mount_overlay(self.site.image, upper, work, bundle / "root")

    async def _call(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *self.base, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if await process.wait():
            raise RuntimeError(f"{self.name} {' '.join(arguments)}: status {process.returncode}")

    async def run_true(self) -> tuple[float, float]:
        bundle = self._bundle("true", "/bin/true")
        begin = time.perf_counter()
        self._mount(bundle)
        await self._call("run", "--bundle", str(bundle), f"{self.name}-true")
        exited = time.perf_counter()
        unmount(bundle / "root")
        return exited - begin, time.perf_counter() - begin

    async def first(self) -> float:
        bundle = self._bundle("first", "/bin/sh", "-c", "echo >/sync/fifo")
        begin = time.perf_counter()
        self._mount(bundle)
        running = asyncio.ensure_future(self._call("run", "--bundle", str(bundle), f"{self.name}-first"))
        await self.site.first_byte()
        spent = time.perf_counter() - begin
        await running
        unmount(bundle / "root")
        return spent

    async def start_many(self, count: int, concurrency: int) -> float:
        bundles = {f"s{number}": self._bundle(f"s{number}", "/bin/sleep", "1000") for number in range(count)}

        async def start(name: str) -> None:
            self._mount(bundles[name])
            await self._call("run", "-d", "--bundle", str(bundles[name]), f"{self.name}-{name}")

        begin = time.perf_counter()
        await at_once(concurrency, [lambda name=name: start(name) for name in bundles])  # type: ignore[misc]
        spent = time.perf_counter() - begin
        for name, bundle in bundles.items():
            await self._call("delete", "--force", f"{self.name}-{name}")
            unmount(bundle / "root")
        return count / spent

    async def hold(self) -> None:
        bundle = self._bundle("held", "/bin/sleep", "1000")
        self._mount(bundle)
        await self._call("run", "-d", "--bundle", str(bundle), f"{self.name}-held")

    async def execute(self) -> float:
        begin = time.perf_counter()
        await self._call("exec", f"{self.name}-held", "/bin/true")
        return time.perf_counter() - begin

    async def close(self) -> None:
        if "held" in self.bundles:
            await self._call("delete", "--force", f"{self.name}-held")
            unmount(self.bundles["held"] / "root")


class PodmanPeer:
    """podman over crun, from the same directory as root, with a directory of its own for all it keeps."""

    name = "podman"
    share = 4

    def __init__(self, site: Site) -> None:
        self.site = site
        own = site.directory / "podman"
        own.mkdir()
        folders = [f"--{name}={own / name}" for name in ("root", "runroot", "tmpdir")]
        self.base = ["podman", *folders, "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=crun"]

    async def open(self) -> None:
        return

    async def prepare(self, count: int) -> None:
        """Nothing."""

    async def _call(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *self.base, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, said = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"podman {' '.join(arguments)}: {said.decode(errors='replace')}")

    async def _run(self, *words: str) -> None:
        limits = ["--memory=128m", "--cpus=1", "--pids-limit=256", "--security-opt=no-new-privileges"]
        limits += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]  # its own may be above what a host gives
        sync = f"--volume={self.site.sync}:/sync"
        await self._call("run", "--network=none", *limits, sync, *words)

    def _root(self, *command: str) -> tuple[str, ...]:
        return ("--rootfs", f"{self.site.image}:O", *command)

    async def run_true(self) -> tuple[float, float]:
        begin = time.perf_counter()
        await self._run("--rm", *self._root("/bin/true"))
        spent = time.perf_counter() - begin
        return spent, spent

    async def first(self) -> float:
        begin = time.perf_counter()
        running = asyncio.ensure_future(self._run("--rm", *self._root("/bin/sh", "-c", "echo >/sync/fifo")))
        await self.site.first_byte()
        spent = time.perf_counter() - begin
        await running
        return spent

    async def start_many(self, count: int, concurrency: int) -> float:
        count //= self.share
        names = [f"s{number}" for number in range(count)]

        def start(name: str) -> Awaitable[None]:
            return self._run("--detach", f"--name={name}", *self._root("/bin/sleep", "1000"))

        begin = time.perf_counter()
        await at_once(concurrency, [lambda name=name: start(name) for name in names])  # type: ignore[misc]
        spent = time.perf_counter() - begin
        await self._call("rm", "--force", "--time=0", *names)
        return count / spent

    async def hold(self) -> None:
        await self._run("--detach", "--name=held", *self._root("/bin/sleep", "1000"))

    async def execute(self) -> float:
        begin = time.perf_counter()
        await self._call("exec", "held", "/bin/true")
        return time.perf_counter() - begin

    async def close(self) -> None:
        await self._call("rm", "--force", "--all", "--time=0")
        for _ in range(100):
            if remove_podman_groups():
                return
            await asyncio.sleep(0.1)  # a conmon is ending


def remove_podman_groups() -> bool:
    """Empty ones only; whether none is left. podman's mounts end with the namespace of this program."""
    left = False
    for directory, _, _ in os.walk(
        "/sys/fs/cgroup", topdown=False
    ):  # others' groups may vanish meanwhile: it does not mind
        if "/libpod_parent" in directory:
            try:
                os.rmdir(directory)
            except OSError:
                left = True
    return not left


async def at_once(concurrency: int, calls: list[Callable[[], Awaitable[object]]]) -> None:
    limit = asyncio.Semaphore(concurrency)

    async def one(call: Callable[[], Awaitable[object]]) -> None:
        async with limit:
            await call()

    await asyncio.gather(*(one(call) for call in calls))


async def measure(directory: Path) -> dict[str, Any]:
    site = Site(directory)
    base = FleetPeer(site)
    peers: list[FleetPeer | OciPeer | PodmanPeer] = [base, ReadyPeer(site, base), MappedPeer(site, base)]
    peers += [OciPeer(site, binary) for binary in ("crun", "runc") if shutil.which(binary)]
    peers += [PodmanPeer(site)] if shutil.which("podman") else []
    rounds: dict[str, dict[str, list[float]]] = {peer.name: {} for peer in peers}

    def note(peer: FleetPeer | OciPeer | PodmanPeer, key: str, value: float) -> None:
        rounds[peer.name].setdefault(key, []).append(value)

    try:
        for peer in peers:
            await peer.open()
            await peer.prepare(2)
            await peer.run_true()
            await peer.hold()
        for _ in range(ROUNDS):
            for peer in peers:
                await peer.prepare(2 * RUNS // peer.share)
                note(peer, "first_ms", statistics.median([await peer.first() for _ in range(RUNS // peer.share)]) * 1e3)
            for peer in peers:
                execs = [await peer.execute() for _ in range(RUNS // peer.share)]
                note(peer, "exec_ms", statistics.median(execs) * 1e3)
            for peer in peers:
                times = [await peer.run_true() for _ in range(RUNS // peer.share)]
                note(peer, "exit_ms", statistics.median(exited for exited, _ in times) * 1e3)
                note(peer, "gone_ms", statistics.median(gone for _, gone in times) * 1e3)
            for concurrency in (1, 4, 16):
                for peer in peers:
                    await peer.prepare(STARTS)
                    note(peer, f"per_s_c{concurrency}", await peer.start_many(STARTS, concurrency))
    finally:
        for peer in reversed(peers):
            await peer.close()
    return rounds


ROWS = (
    ("start to first instruction, ms", "first_ms", False),
    ("start to exit of /bin/true, ms", "exit_ms", False),
    ("... and everything removed, ms", "gone_ms", False),
    ("starts/s, one at a time", "per_s_c1", True),
    ("starts/s, four at a time", "per_s_c4", True),
    ("starts/s, sixteen at a time", "per_s_c16", True),
    ("exec of /bin/true, ms", "exec_ms", False),
)


def run(json_path: str | None = None) -> None:
    """Print the table; with ``json_path`` write the numbers there too. Needs root, busybox-static; crun and runc
    where installed.
    """
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder:
        result = Path(folder) / "result.json"
        # A mount namespace of its own: crun refuses a hybrid hierarchy, so the idle cgroup2 is hidden.
        command = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
        subprocess.run(
            [
                "unshare",
                "-m",
                "sh",
                "-c",
                command,
                "sh",
                sys.executable,
                "-m",
                "bench.container_start",
                "--inside",
                folder,
                str(result),
            ],
            check=True,
        )
        rounds = json.loads(result.read_text())
    middle = {name: {key: statistics.median(values) for key, values in rows.items()} for name, rows in rounds.items()}
    peers = [name for name in middle if name != "fleet"]
    print(
        f"{'median of ' + str(ROUNDS) + ' rounds':34}"
        + "".join(f"{name:>9}" for name in middle)
        + "".join(f"{'vs ' + p:>9}" for p in peers)
    )
    for label, key, more_is_better in ROWS:
        own = middle["fleet"][key]
        ratios = [middle[peer][key] / own for peer in peers]
        if more_is_better:
            ratios = [1 / ratio for ratio in ratios]
        print(
            f"{label:34}"
            + "".join(f"{middle[name][key]:9.2f}" for name in middle)
            + "".join(f"{ratio:8.1f}x" for ratio in ratios)
        )
    if json_path is not None:
        Path(json_path).write_text(json.dumps({"rounds": rounds, "median": middle}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        Path(sys.argv[3]).write_text(json.dumps(asyncio.run(measure(Path(sys.argv[2])))))
    else:
        run(*sys.argv[1:2])
