"""Containers whose root is nobody on the host."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_runtime_support import Node, eventually, on_node

from fleet.errors import UserError
from fleet.node_runtime.spec import ContainerSpec, DeviceSpec, MountSpec, ProcessSpec, UserNamespace

pytestmark = pytest.mark.kernel

FIRST = 300_000


def mapped(node: Node, *args: str, **changes: Any) -> ContainerSpec:
    return node.spec(*args, user_namespace=UserNamespace(first_id=FIRST), **changes)


@on_node
async def test_root_inside_is_a_subordinate_id_outside(node: Node) -> None:
    spec = mapped(node, "sh", "-c", "id -u; touch /made; ls -ln /made /bin/sh | cut -c1-40; exec sleep 1000")
    started = await node.client.start(spec)
    uids = next(line for line in Path(f"/proc/{started.pid}/status").read_text().splitlines() if line.startswith("Uid"))
    assert uids.split()[1:] == [str(FIRST)] * 4
    assert Path(f"/proc/{started.pid}/uid_map").read_text().split() == ["0", str(FIRST), "65536"]
    upper = Path(spec.root.upper_dir)
    await eventually((upper / "made").exists)
    assert (upper / "made").stat().st_uid == FIRST  # on disk the writable layer is shifted
    assert (node.image / "bin").stat().st_uid == 0  # and the image is not


@on_node
async def test_what_containers_expect_is_there(node: Node) -> None:
    script = """
        id -u; stat -c %u /bin /made 2>/dev/null
        echo x > /dev/null; head -c 2 /dev/zero | wc -c; echo y > /dev/shm/y; cat /dev/shm/y
        echo out > /dev/stdout; ls -d /sys/class/net/lo; cat /proc/sys/kernel/shmmni
        touch /proc/sys/kernel/x 2>/dev/null || echo proc-read-only
        chown 1000:1000 /tmp; stat -c %u /tmp; cat /proc/self/oom_score_adj
        grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
    """
    spec = mapped(node, "sh", "-c", script, oom_score_adj=300, sysctls={"kernel.shmmni": "1234"})
    code, out = await node.run(spec)
    expected = "0 0 2 y out /sys/class/net/lo 1234 proc-read-only 1000 300 CapEff: 00000000a80425fb"
    expected += " CapBnd: 00000000a80425fb NoNewPrivs: 1 Seccomp: 2"
    assert " ".join(out.split()) == expected, code


@on_node
async def test_binds_keep_the_owners_the_host_knows(node: Node) -> None:
    shared = node.directory / "shared"
    shared.mkdir()
    (shared / "roots").write_text("old")
    (shared / "roots").chmod(0o600)
    mounts = (MountSpec(kind="bind", source=str(shared), target="/shared"),)
    script = "cat /shared/roots; echo new > /shared/made; stat -c %u /shared/made /shared/roots"
    _, out = await node.run(mapped(node, "sh", "-c", script, mounts=mounts))
    assert out.split() == ["old0", "0"] or out.split() == ["old", "0", "0"]
    assert (shared / "made").stat().st_uid == 0
    _, out = await node.run(mapped(node, "sh", "-c", "touch /shared/webs", mounts=mounts, user="0:0"))
    shared.chmod(0o777)
    await node.run(mapped(node, "touch", "/shared/users", mounts=mounts, user="1000:1001"))
    assert (shared / "users").stat().st_uid == 1000


@on_node
async def test_a_bind_is_mapped_though_something_mounted_below_it_cannot_be(node: Node) -> None:
    """/run/fleet is like that: network namespaces are mounted in it, and a container that watches the cluster binds it."""
    shared = node.directory / "shared"
    shared.mkdir()
    (shared / "roots").write_text("old")
    (shared / "roots").chmod(0o600)
    (shared / "proc").mkdir()
    subprocess.run(["mount", "-t", "proc", "proc", shared / "proc"], check=True)
    try:
        mounts = (MountSpec(kind="bind", source=str(shared), target="/shared", recursive=True),)
        code, out = await node.run(
            mapped(node, "sh", "-c", "cat /shared/roots; stat -c %u /shared/roots", mounts=mounts)
        )
        assert (code, out.split()) == (0, ["old0"]), out
    finally:
        subprocess.run(["umount", shared / "proc"], check=True)


@on_node
async def test_exec_users_terminals_devices_and_init(node: Node) -> None:
    spec = mapped(node, "sleep", "1000", init=True, devices=(DeviceSpec(source="/dev/zero", target="/dev/widget"),))
    await node.client.start(spec)
    code, data = await node.client.exec_capture(
        spec.id,
        ProcessSpec(args=("sh", "-c", "id -u; cat /proc/self/uid_map; head -c 3 /dev/widget | wc -c")),
        timeout_s=10,
    )
    assert code == 0, data
    assert data.split() == [b"0", b"0", str(FIRST).encode(), b"65536", b"3"]
    code, data = await node.client.exec_capture(spec.id, ProcessSpec(args=("id", "-u"), user="1000"), timeout_s=10)
    assert (code, data.split()) == (0, [b"1000"])
    tty = mapped(node, "sh", "-c", "test -t 0 && tty && stat -c %u $(tty)", tty=True)
    started = await node.client.start(tty)
    assert started.terminal_fd is not None
    os.close(started.terminal_fd)
    assert (await node.exited(tty.id)).exit_code == 0
    _, out = await node.run(mapped(node, "sh", "-c", "id -u; echo e > /dev/stderr", user="1000"))
    assert out.split() == ["1000", "e"]


@on_node
async def test_failures_are_told_and_leave_nothing(node: Node) -> None:
    with pytest.raises(Exception, match="no-such"):
        await node.client.start(mapped(node, "no-such-program"))
    gone = MountSpec(kind="bind", source="/no/such/source", target="/x")
    with pytest.raises(Exception, match="bind source path does not exist: /no/such/source"):
        await node.client.start(mapped(node, "true", mounts=(gone,)))
    assert list(await node.client.list()) == []
    for changes in ({"privileged": True}, {"pid": "host"}, {"network": "host"}):
        with pytest.raises(UserError, match="user namespace"):
            await node.client.start(mapped(node, "true", **changes))
    with pytest.raises(UserError, match="range of ids"):
        await node.client.start(replace(node.spec("true"), user_namespace=UserNamespace(first_id=0)))


@on_node
async def test_many_that_end_at_once_start_and_go(node: Node) -> None:
    async def one() -> int:
        spec = mapped(node, "true")
        await node.client.start(spec)
        await node.client.remove(spec.id)
        return 1

    for _ in range(3):
        assert sum(await asyncio.gather(*(one() for _ in range(20)))) == 20
    assert list(await node.client.list()) == []
