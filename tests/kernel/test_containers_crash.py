"""The process that holds the engine is killed at any moment; the next one finds the truth and leaves no remains."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host

from fleet.containers import Status
from fleet.containers.config import NetworkMode

pytestmark = pytest.mark.kernel

HOLDER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from containers_host import RealHost
from fleet.containers import ContainerConfig, FileMount
from fleet.network.kernel import syscalls

async def main():
    host = RealHost(Path({root!r}), {name!r})
    async with host.opened() as engine:
        await engine.recover()
{story}

asyncio.run(main())
"""


class Holder:
    """Another process that opens the host's engine and runs a story, to be killed."""

    def __init__(self, host: RealHost, story: str) -> None:
        lines = "\n".join("        " + line for line in story.strip().splitlines())
        code = HOLDER.format(folder=str(Path(__file__).parent), root=str(host.root), name=host.name, story=lines)
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_running_containers_survive_and_exits_meanwhile_are_known(unique: str) -> None:
    story = """
files = (FileMount(target="/run/secrets/key", data=b"hunter2"),)
def config(name, script, **more):
    return ContainerConfig(image="busybox", name=name, command=("sh", "-c", script), **more)
long = await engine.create(config("long", "echo a; sleep 1.5; cat /run/secrets/key; exit 4", files=files))
short = await engine.create(config("short", "sleep 0.4; exit 9"))
await engine.start(long.id)
await engine.start(short.id)
print(engine.get("long").state.pid, flush=True)
await asyncio.sleep(1000)
"""

    async def check(host: RealHost) -> None:
        holder = Holder(host, story)
        pid = int(await asyncio.to_thread(holder.line))
        holder.kill()
        await asyncio.sleep(0.8)
        async with host.opened() as engine:
            recovered = await engine.recover()
            assert (engine.get("long").state.status, engine.get("long").state.pid) == (Status.RUNNING, pid)
            assert engine.get("short").state.exit is not None
            assert engine.get("short").state.exit.code == 9  # type: ignore[union-attr]
            assert (len(recovered.adopted), len(recovered.ended)) == (1, 1)
            async with asyncio.timeout(10):
                assert (await engine.wait("long")).code == 4
            assert await host.output("long") == "a\nhunter2"
            async with asyncio.timeout(5):
                while await host.network.sandboxes() or list(await host.runtime.list()):
                    await asyncio.sleep(0.01)

    on_real_host(check, unique=unique, opened=False)


def test_a_network_of_its_own_user_namespace_is_found_again_by_daemon_and_supervisor(unique: str) -> None:
    story = """
made = await engine.create(ContainerConfig(image="busybox", name="long", command=("sleep", "60")))
await engine.start(made.id)
# what a start that was killed half-way leaves: a namespace on its file, and no record of it
netns = await host.runtime.open_network_namespace(1_000_000, 65536)
left = host.exec_root / "network/netns/left"
left.touch()
syscalls.mount_bind(f"/proc/self/fd/{netns}", left)
print(host.runtime.supervisor_pid, flush=True)
await asyncio.sleep(1000)
"""
    ping = ("ping", "-c", "1", "-W", "5", "172.29.0.1")

    async def check(host: RealHost) -> None:
        holder = Holder(host, story)
        supervisor = int(await asyncio.to_thread(holder.line))
        holder.kill()
        os.kill(supervisor, signal.SIGKILL)
        async with host.opened() as engine:
            await engine.recover()
            assert not (host.exec_root / "network/netns/left").exists()
            long = engine.get("long")
            code, output = await host.inside(long.id, " ".join(ping))
            assert code == 0, output
            sharing = {"network_mode": NetworkMode.CONTAINER, "network_container": long.id}
            partner, status, output = await host.run(*ping, **sharing)
            assert partner.ids == long.ids is not None and status.code == 0, output
            await engine.restart(long.id, grace_s=0)
            code, output = await host.inside(long.id, " ".join(ping))
            assert code == 0, output

    on_real_host(check, unique=unique, opened=False)


def test_killed_at_any_moment_of_any_step_nothing_is_lost_or_left(unique: str) -> None:
    story = """
import itertools
print("go", flush=True)
async def life(n):
    files = (FileMount(target="/s", data=b"x"),)
    config = ContainerConfig(image="busybox", command=("sleep", f"0.0{n}"), volume_targets=("/v",), files=files)
    for k in itertools.count():
        made = await engine.create(config)
        print("created", made.id, flush=True)
        await engine.start(made.id)
        if k % 2:
            await engine.stop(made.id, grace_s=0)
        else:
            await engine.wait(made.id)
        if k % 3:
            await engine.remove(made.id, force=True, volumes=True)
            print("removed", made.id, flush=True)
await asyncio.gather(*(life(n) for n in range(1, 4)))
"""
    rng = random.Random(unique)

    async def check(host: RealHost) -> None:
        acknowledged: set[str] = set()
        removed: set[str] = set()
        for _round in range(6):
            holder = Holder(host, story)
            assert await asyncio.to_thread(holder.line) == "go"
            await asyncio.sleep(rng.uniform(0.02, 0.6))
            holder.process.send_signal(signal.SIGKILL)
            output = (await asyncio.to_thread(holder.process.communicate))[0]
            for line in output.splitlines():
                match line.split():
                    case ["created", key] if len(key) == 64:
                        acknowledged.add(key)
                    case ["removed", key] if len(key) == 64:
                        removed.add(key)
            async with host.opened() as engine:
                await engine.recover()
                known = {container.id for container in engine.list()}
                assert known & removed == set(), "a removed container came back"
                lost = acknowledged - removed - known
                assert len(lost) <= 3, "only a removal under way, one for each of three lives, may have taken effect"
                acknowledged -= lost
                removed |= lost
                await _assert_only_what_runs(host)
        async with host.opened() as engine:
            for container in engine.list():
                await engine.remove(container.id, force=True, volumes=True)
            assert not [*(host.root / "d/containers").iterdir()]
            assert not [*(host.exec_root / "files").iterdir()]

    on_real_host(check, unique=unique, opened=False)


async def _assert_only_what_runs(host: RealHost) -> None:
    """Sandboxes, supervisor entries, cgroups and directories are those of known containers; finished ones hold none."""
    engine = host.engine

    async def remains() -> list[str]:
        up = {c.id for c in engine.list() if c.is_up}
        known = {c.id for c in engine.list()}
        found = [f"sandbox {s}" for s in await host.network.sandboxes() if s not in up]
        found += [f"supervised {s.id}" for s in await host.runtime.list() if s.id not in up]
        found += [f"directory {p}" for p in (host.root / "d/containers").iterdir() if p.name not in known]
        mounted = {point.name for c in engine.list() for point in c.mounts}
        found += [f"volume {v.name}" for v in engine.volumes.all() if v.name not in mounted]
        found += [f"files {p}" for p in (host.exec_root / "files").iterdir() if p.name not in known]
        for top in {Path(p) for p in _cgroup_tops()}:
            here = top / host.cgroup_parent.strip("/")
            if here.is_dir():
                found += [f"cgroup {p}" for p in here.iterdir() if p.is_dir() and p.name not in up]
        return found

    async with asyncio.timeout(8):
        while await remains():
            await asyncio.sleep(0.02)


def _cgroup_tops() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split(" - ")[1].split()[0] in ("cgroup", "cgroup2")]
