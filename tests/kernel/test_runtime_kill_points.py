"""kill -9 of the engine's process, of the supervisor, or of both, at moments spread over every step of a container's life;
the next engine adopts or clears away everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path

import pytest
from containers_host import RealHost, on_real_host
from test_containers_crash import Holder, _assert_only_what_runs
from test_runtime_support import Node, eventually, on_node

from fleet.errors import FleetError
from fleet.node_runtime.events import SupervisorRestarted
from fleet.node_runtime.spec import MountSpec, ProcessSpec

pytestmark = pytest.mark.kernel

STORY = """
import itertools
from fleet.node_runtime.spec import ProcessSpec
tar = Path({root!r}, "again.tar")
print("supervisor", host.runtime.supervisor_pid, flush=True)
async def chunks():
    yield tar.read_bytes()
async def images():
    for n in itertools.count():
        await host.images.import_tar(chunks(), reference=f"loaded{{n % 3}}", changes=())
async def life(n):
    config = ContainerConfig(image="busybox", command=("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.01; done"))
    while True:
        made = await engine.create(config)
        print("created", made.id, flush=True)
        await engine.start(made.id)
        print("started", made.id, flush=True)
        await host.runtime.exec_capture(made.id, ProcessSpec(args=("true",)), timeout_s=20)
        await engine.pause(made.id)
        await engine.unpause(made.id)
        await engine.stop(made.id, grace_s=5)
        print("stopped", made.id, engine.get(made.id).state.exit.code, flush=True)
        await engine.remove(made.id)
        print("removed", made.id, flush=True)
await asyncio.gather(images(), *(life(n) for n in range(2)))
"""


@pytest.mark.parametrize("victims", ["engine", "supervisor", "both"])
def test_killed_at_any_step_everything_is_adopted_or_cleared(unique: str, victims: str) -> None:
    rng = random.Random(unique)

    async def check(host: RealHost) -> None:
        from support.images import busybox_rootfs_tar

        busybox_rootfs_tar(host.root / "again.tar", extra_files={"big": os.urandom(1 << 20)})
        for round_ in range(5):
            holder = Holder(host, STORY.format(root=str(host.root)))
            word, pid = (await asyncio.to_thread(holder.line)).split()
            assert word == "supervisor"
            await asyncio.sleep(rng.uniform(0.0, 0.12 * (round_ + 1)))
            if victims != "engine":
                os.kill(int(pid), signal.SIGKILL)
                await asyncio.sleep(rng.uniform(0.0, 0.3) if victims == "supervisor" else 0.0)
            holder.process.send_signal(signal.SIGKILL)
            output = (await asyncio.to_thread(holder.process.communicate))[0]
            told: dict[str, str] = {}
            for words in map(str.split, output.splitlines()):
                if len(words) >= 2 and len(words[1]) == 64:
                    told[words[1]] = words[0]
                    if words[0] == "stopped":
                        assert words[2:] in (["7"], ["255"]), "its own code, or said to be lost"
            async with host.opened() as engine:
                await engine.recover()
                known = {container.id: container for container in engine.list()}
                for container_id, last in told.items():
                    if last == "removed":
                        assert container_id not in known
                    elif last in ("created", "started"):
                        assert container_id in known
                await _assert_only_what_runs(host)
                for container in known.values():
                    if container.state.exit is not None and container.id in told:
                        ended = container.state.exit
                        assert ended.code in (7, 137, 143, 255) or (ended.code == 128 and ended.error), ended
                    if container.is_up:  # adopted for good: it obeys, and its end is known
                        with contextlib.suppress(FleetError):
                            await engine.unpause(container.id)
                        await engine.stop(container.id, grace_s=5)
                        ended = engine.get(container.id).state.exit
                        assert ended is not None
                        assert ended.code in (7, 137, 143), ended
                    await engine.remove(container.id, force=True, volumes=True)
                await host.add_image("busybox", 'CMD ["sh"]')  # the image store is whole
                assert (await host.run("sh", "-c", "exit 3"))[1].code == 3
                for container in engine.list():
                    await engine.remove(container.id, force=True)
                await _assert_only_what_runs(host)

    on_real_host(check, unique=unique, opened=False)


@on_node
async def test_an_exec_lives_on_when_the_client_or_the_supervisor_is_gone(node: Node) -> None:
    """The process does; who waited for it learns that its status is lost instead of waiting for ever."""
    flags = node.directory / "flags"
    flags.mkdir()
    spec = node.spec("sleep", "60", mounts=(MountSpec(kind="bind", source=str(flags), target="/flags"),))
    await node.client.start(spec)
    script = "while [ ! -e /flags/go ]; do sleep 0.01; done; touch /flags/done"
    first = await node.client.exec(spec.id, ProcessSpec(args=("sh", "-c", script)))
    await node.client.close()
    await node.connect()
    assert Path(f"/proc/{first.pid}").exists(), "ended with the client"
    os.kill(node.client.supervisor_pid, signal.SIGKILL)
    event = await node.event(lambda event: isinstance(event, SupervisorRestarted))
    assert isinstance(event, SupervisorRestarted)
    node.supervisors.add(event.pid)
    assert Path(f"/proc/{first.pid}").exists(), "ended with the supervisor"
    (flags / "go").touch()
    await eventually((flags / "done").exists)
    second = await node.client.exec(spec.id, ProcessSpec(args=("sh", "-c", "exit 4")))
    assert await node.client.wait_exec(second.exec_id) == 4


@on_node
async def test_who_waits_for_an_exec_is_told_when_the_supervisor_dies(node: Node) -> None:
    spec = node.spec("sleep", "60")
    await node.client.start(spec)
    started = await node.client.exec(spec.id, ProcessSpec(args=("sleep", "50")))
    waiting = asyncio.create_task(node.client.wait_exec(started.exec_id))
    await asyncio.sleep(0.05)
    os.kill(node.client.supervisor_pid, signal.SIGKILL)
    event = await node.event(lambda event: isinstance(event, SupervisorRestarted))
    assert isinstance(event, SupervisorRestarted)
    node.supervisors.add(event.pid)
    async with asyncio.timeout(10):
        results = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(results[0], FleetError) or results[0] == 255


@on_node
async def test_what_the_client_keeps_leaves_the_low_descriptors_free(node: Node) -> None:
    """libnftables in the same process aborts it when its socket is numbered above 1023."""
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await node.client.start(node.spec("sleep", "60"))
    new = {int(fd) for fd in set(os.listdir("/proc/self/fd")) - before}
    assert len({fd for fd in new if fd >= 1024}) == 15
    assert len({fd for fd in new if fd < 1024}) <= 1
